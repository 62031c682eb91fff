import json
from pathlib import Path

import pytest
from arithmetic_server import ArithmeticServer
from doubles import Run

from latentry.clients import StreamChunk


def test_classes_that_are_no_numbers_are_refused_everywhere(
    run: Run, server: ArithmeticServer, tmp_path: Path
) -> None:
    options = ("--class", "one", "--url", server.url, "--out", tmp_path / "out")
    code, _, err = run("stream", "digits", "--seeds", "1", *options)
    assert (code, "digits takes an integer from 0 to 2: 0=zero" in err) == (1, True)
    code, _, err = run("generate", "plain", *options)
    assert (code, "plain takes no class" in err) == (1, True)
    code, _, err = run("generate", "nothing", *options)
    assert (code, "--class holds 'one'; give integers and ranges" in err) == (1, True)


def test_stream_writes_every_image(run: Run, server: ArithmeticServer, tmp_path: Path) -> None:
    code, out, _ = run(
        *("stream", "digits", "--seeds", "0-99", "--class", "0-2", "--out", tmp_path),
        *("--json", "--url", server.url),
    )
    assert code == 0
    assert json.loads(out)["delivered"] == 100
    assert len(list(tmp_path.iterdir())) == 100
    code, out, _ = run("stream", "plain", "--n", "10", "--out", tmp_path, "--url", server.url)
    assert code == 0
    assert f"10 images of plain in {tmp_path}" in out


def test_ctrl_c_ends_a_stream_and_says_what_came(
    run: Run, server: ArithmeticServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = StreamChunk.save

    def save(self: StreamChunk, folder: Path) -> list[Path]:
        if self.index >= 8:
            raise KeyboardInterrupt
        return whole(self, folder)

    monkeypatch.setattr(StreamChunk, "save", save)
    code, _, err = run(
        "stream", "plain", "--seeds", "0-999", "--out", tmp_path, "--url", server.url
    )
    assert code == 130
    assert f"stopped: 8 of 1000 images are in {tmp_path}" in err
    assert server.double.stream_ended.wait(60)

import json
from pathlib import Path

import pytest
from arithmetic_server import ArithmeticServer
from doubles import RunCommand

from latentry.clients import StreamChunk


def test_classes_that_are_no_numbers_are_refused_everywhere(
    run_command: RunCommand, arithmetic_server: ArithmeticServer, tmp_path: Path
) -> None:
    options = ("--class", "four", "--url", arithmetic_server.url, "--out", tmp_path / "out")
    code, _, err = run_command("stream", "digits", "--seeds", "1", *options)
    assert (code, "it takes an integer from 0 to 2: 0=zero" in err) == (2, True)
    code, _, err = run_command("generate", "plain", *options)
    assert (code, "--class: this model takes no class_label; it takes seed" in err) == (1, True)
    code, _, err = run_command("generate", "nothing", *options)
    assert (code, "model 'nothing' is not being served; these are: digits" in err) == (1, True)


def test_stream_writes_every_image(
    run_command: RunCommand, arithmetic_server: ArithmeticServer, tmp_path: Path
) -> None:
    code, out, _ = run_command(
        *("stream", "digits", "--seeds", "0-99", "--class", "0-2", "--out", tmp_path),
        *("--json", "--url", arithmetic_server.url),
    )
    assert code == 0
    assert json.loads(out)["delivered"] == 100
    assert len(list(tmp_path.iterdir())) == 100
    code, out, _ = run_command(
        "stream", "plain", "--n", "10", "--out", tmp_path, "--url", arithmetic_server.url
    )
    assert code == 0
    assert f"10 samples of plain in {tmp_path}" in out


def test_ctrl_c_ends_a_stream_and_says_what_came(
    run_command: RunCommand,
    arithmetic_server: ArithmeticServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = StreamChunk.save

    def save(self: StreamChunk, folder: Path) -> list[Path]:
        if self.index >= 8:
            raise KeyboardInterrupt
        return whole(self, folder)

    monkeypatch.setattr(StreamChunk, "save", save)
    code, _, err = run_command(
        "stream", "plain", "--seeds", "0-999", "--out", tmp_path, "--url", arithmetic_server.url
    )
    assert code == 130
    assert f"stopped: 8 of 1000 samples are in {tmp_path}" in err
    assert arithmetic_server.double.stream_ended.wait(60)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--class", "7"], 1, "error: --class: class_label in row 0 is 7"),
        (["--class", "0", "--psi", "2"], 1, "error: --psi: this model takes no truncation_psi"),
        (["--chunk-size", "0"], 2, "Invalid value for '--chunk-size'"),
        (["--chunk-size", "4097"], 2, "Invalid value for '--chunk-size'"),
        (["--format", "raw"], 2, "--format raw is no file format"),
        (["--n", "3"], 2, "give either --seeds"),
    ],
)
def test_stream_refuses(
    run_command: RunCommand,
    arithmetic_server: ArithmeticServer,
    tmp_path: Path,
    options: list[str],
    code: int,
    words: str,
) -> None:
    where = ("--seeds", "1", "--out", tmp_path / "out", "--url", arithmetic_server.url)
    found, _, err = run_command("stream", "digits", *where, *options)
    assert found == code
    assert words in err
    assert not (tmp_path / "out").exists()

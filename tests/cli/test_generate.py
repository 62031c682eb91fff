import json
from pathlib import Path

import pytest
from arithmetic_server import ArithmeticServer
from doubles import Run
from PIL import Image


def test_generate_writes_a_grid_by_default(
    run: Run, server: ArithmeticServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("generate", "digits", "--class", "0-2", "--url", server.url)
    assert code == 0
    assert "16 images of digits version 1, seeds 0, 1, 2" in out
    assert "grid: digits.png" in out
    with Image.open(tmp_path / "digits.png") as grid:
        assert grid.size == (20, 24)


def test_generate_writes_files_and_json(run: Run, server: ArithmeticServer, tmp_path: Path) -> None:
    code, out, _ = run(
        *("generate", "mapped", "--seeds", "3,7-8", "--psi", "0.7", "--format", "webp"),
        *("--out", tmp_path / "files", "--grid", tmp_path / "a" / "b.png", "--json"),
        *("--url", server.url),
    )
    said = json.loads(out)
    assert code == 0
    assert said["seeds"] == [3, 7, 8]
    assert said["controls"] == {"truncation_psi": [0.7, 0.7, 0.7]}
    assert said["model_digest"] == "digest-1"
    assert said["files"][0] == str(tmp_path / "files" / "seed0000000003-psi0.7.webp")
    assert len(list((tmp_path / "files").iterdir())) == 3
    assert (tmp_path / "a" / "b.png").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seeds", "9-3"], "runs backwards"),
        (["--seeds", "1", "--n", "2"], "give either --seeds"),
        (["--n", "0"], "n=0"),
        (["--class", "7"], "class_label in row 0 is 7"),
        (["--class", "seven"], "such as 0-63,100; digits takes an integer from 0 to 2: 0=zero, 1="),
        (["--class", "2-0"], "0-2?; digits takes an integer from 0 to 2: 0=zero, 1=one, 2=two"),
        (["--class", "0", "--n", str(10**13)], "samples are more than one call takes"),
        (["--format", "float"], "--format float is no file format; use png, jpeg or webp"),
        (["--url", "nowhere"], "give HOST:PORT"),
    ],
)
def test_generate_refuses(
    run: Run,
    server: ArithmeticServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTRY_URL", server.url)
    code, _, err = run("generate", "digits", *options)
    assert code == 1
    assert words in err
    assert list(tmp_path.iterdir()) == []

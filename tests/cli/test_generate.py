import json
from pathlib import Path

import pytest
from arithmetic_server import ArithmeticServer, info_of
from doubles import RunCommand, on_terminal
from PIL import Image


def test_generate_writes_a_grid_by_default(
    run_command: RunCommand,
    arithmetic_server: ArithmeticServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run_command(
        "generate", "digits", "--class", "0-2", "--url", arithmetic_server.url
    )
    assert code == 0
    assert "16 samples of digits version 1, seeds 0, 1, 2" in out
    assert "grid: digits.png" in out
    with Image.open(tmp_path / "digits.png") as grid:
        assert grid.size == (20, 24)


def test_generate_writes_files_and_json(
    run_command: RunCommand, arithmetic_server: ArithmeticServer, tmp_path: Path
) -> None:
    code, out, _ = run_command(
        *("generate", "mapped", "--seeds", "3,7-8", "--psi", "0.7", "--format", "webp"),
        *("--out", tmp_path / "files", "--grid", tmp_path / "a" / "b.png", "--json"),
        *("--url", arithmetic_server.url),
    )
    said = json.loads(out)
    assert code == 0
    assert said["seeds"] == [3, 7, 8]
    assert said["inputs"] == {"truncation_psi": [0.7, 0.7, 0.7]}
    assert said["model_digest"] == "digest-1"
    assert said["files"][0] == str(tmp_path / "files" / "seed0000000003-psi0.7.webp")
    assert len(list((tmp_path / "files").iterdir())) == 3
    assert (tmp_path / "a" / "b.png").exists()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--seeds", "9-3"], 2, "runs backwards"),
        (["--seeds", "1", "--n", "2"], 2, "give either --seeds"),
        (["--n", "0"], 2, "Invalid value for '--n'"),
        (["--retry-for-s", "-1"], 2, "Invalid value for '--retry-for-s'"),
        (["--class", "7"], 1, "error: --class: class_label in row 0 is 7"),
        ([], 1, "error: --class: class_label is required by this model; it takes an integer"),
        (["--class", "0", "--psi", "0.5"], 1, "error: --psi: this model takes no truncation_psi"),
        (
            ["--class", "seven"],
            2,
            "--class: class_label holds 'seven'; give integers and ranges, such as 0-63,100, or "
            "names; it takes an integer from 0 to 2: 0=zero, 1=one, 2=two",
        ),
        (["--class", "one,seven"], 2, "--class: class_label has no class 'seven'; it takes an int"),
        (["--class", "2-0"], 2, "0-2?, or names; it takes an integer from 0 to 2: 0=zero, 1=one"),
        (["--class", "0", "--set", "class_label=1"], 2, "--set class_label and --class are the"),
        (["--set", "class_label"], 2, "--set class_label has no value; give --set NAME=VALUE"),
        (["--set", "soul=1"], 1, "error: --set soul: this model takes no soul; it takes seed, z"),
        (["--set", "class_label=0", "--set", "class_label=1"], 2, "is given twice; give several"),
        (["--set", "class_label=x"], 2, "error: --set class_label: class_label holds 'x'; give"),
        (["--set", "class_label=0", "--set", "z=no.npy"], 2, "--set z: z: no.npy cannot be read"),
        (["--class", "0", "--image", "a.png"], 1, "--image: this model takes no picture; it ta"),
        (["--class", "0", "--psi", "half"], 1, "error: --psi: this model takes no truncation_psi"),
        (["--class", "0", "--n", str(10**13)], 1, "samples are more than one call takes"),
        (["--format", "float"], 2, "--format float is no file format; use one of png, jpeg, webp"),
        (["--format", "gif"], 2, "--format gif is no file format"),
        (["--url", "nowhere"], 2, "give HOST:PORT"),
        (["--token-file", "nothing"], 2, "nothing: No such file"),
        (["--ca", "nothing"], 2, "nothing cannot be read"),
        (["--grid", "grid.jpeg"], 2, "--grid grid.jpeg is no PNG file"),
    ],
)
def test_generate_refuses(
    run_command: RunCommand,
    arithmetic_server: ArithmeticServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTRY_URL", arithmetic_server.url)
    found, _, err = run_command("generate", "digits", *options)
    assert found == code
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_a_grid_says_what_is_not_in_it(
    run_command: RunCommand, arithmetic_server: ArithmeticServer, tmp_path: Path
) -> None:
    arithmetic_server.double.transport.infos["scene"] = info_of("scene")
    options = ["--seeds", "7", "--url", arithmetic_server.url]
    code, out, _ = run_command("generate", "scene", *options, "--grid", tmp_path / "grid.png")
    assert code == 0
    assert "1 sample of scene version 1, seed 7\n" in out
    assert "not in it: embedding, shade, alpha, parts; --out FOLDER writes every output" in out
    out = run_command("generate", "scene", *options, "--out", tmp_path / "all").out
    assert "5 files in" in out
    assert "not in it" not in out


def test_a_grid_of_a_model_without_pictures_is_refused_before_anything_is_drawn(
    run_command: RunCommand, arithmetic_server: ArithmeticServer, tmp_path: Path
) -> None:
    arithmetic_server.double.transport.infos["judge"] = info_of("judge")
    Image.new("RGB", (2, 3)).save(tmp_path / "asked.png")
    options = ["--image", tmp_path / "asked.png", "--url", arithmetic_server.url]
    code, _, err = run_command("generate", "judge", *options, "--grid", tmp_path / "grid.png")
    assert code == 1
    assert "this model gives no picture; it gives embedding (vector)" in err
    assert "infer" not in arithmetic_server.double.calls
    assert run_command("generate", "judge", *options, "--out", tmp_path / "out").code == 0


@pytest.mark.parametrize("option", ["--out", "--grid"])
def test_a_file_where_a_folder_must_be_is_found_before_anything_is_drawn(
    run_command: RunCommand, arithmetic_server: ArithmeticServer, tmp_path: Path, option: str
) -> None:
    (tmp_path / "file").touch()
    where = tmp_path / "file" / "images.png"
    code, _, err = run_command("generate", "plain", option, where, "--url", arithmetic_server.url)
    assert code == 2
    assert f"{tmp_path / 'file'} is there and is no folder" in err
    assert arithmetic_server.double.calls == []
    code, _, _ = run_command(
        "stream", "plain", "--n", "1", "--out", where.parent, "--url", arithmetic_server.url
    )
    assert (code, arithmetic_server.double.calls) == (2, [])


def test_a_terminal_sees_that_images_are_being_drawn(
    run_command: RunCommand, arithmetic_server: ArithmeticServer, tmp_path: Path
) -> None:
    options = ("generate", "plain", "--n", "2000", "--grid", tmp_path / "a.png")
    assert "drawing 2,000 samples of plain" in on_terminal(*options, "--url", arithmetic_server.url)
    assert "drawing" not in on_terminal(*options, "--json", "--url", arithmetic_server.url)
    assert run_command(*options, "--url", arithmetic_server.url).err == ""

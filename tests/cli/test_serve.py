from pathlib import Path
from typing import Any

import pytest
from doubles import RunCommand, on_terminal
from specs import classes, image, make_spec, psi, z
from stored.drafts import make

from latentry.cli.serve import example_command
from latentry.serving.entries.publishing import publish

PHOTO = {**image(8, 8), "name": "photo"}
MASK = {"name": "hole", "kind": "mask", "height": 8, "width": 8}
ROUGH = {"name": "rough", "kind": "number", "minimum": 0, "maximum": 1}
AGE = {"name": "age", "kind": "integer", "minimum": 3, "maximum": 9}
FEATURES = {"name": "features", "kind": "vector", "size": 3}


def test_a_batch_beyond_what_was_proved_is_not_served(
    run_command: RunCommand, repository: Path
) -> None:
    options = ["--models", "wide", "--max-batch-size", "17", "--port", "0", "--metrics-port", "0"]
    done = run_command("serve", "--repository", str(repository), *options)
    assert done.code == 1
    assert "17 is more than the export of wide proved (16)" in done.err


def test_serve_says_that_it_starts_to_a_terminal_only(
    run_command: RunCommand, tmp_path: Path
) -> None:
    options = ("serve", "--repository", tmp_path / "nowhere")
    assert "starting Triton" in on_terminal(*options).partition("error: ")[0]
    assert "starting" not in run_command(*options).err


def test_a_size_that_is_none_is_wrong_usage(run_command: RunCommand, tmp_path: Path) -> None:
    done = run_command("serve", "--repository", tmp_path, "--most-memory", "much")
    assert done.code == 2
    assert "'much' is no size" in done.err


@pytest.mark.parametrize(
    ("inputs", "outputs", "command"),
    [
        ([z(4)], [image(2, 2)], "--seeds 0-15 --grid model.png"),
        (
            [z(4), classes("a", "b"), psi()],
            [image(2, 2)],
            "--seeds 0-15 --class 0 --grid model.png",
        ),
        (
            [z(4), ROUGH, AGE],
            [image(2, 2)],
            "--seeds 0-15 --set rough=1.0 --set age=3 --grid model.png",
        ),
        (
            [PHOTO, MASK],
            [image(2, 2)],
            "--set photo=PICTURE.png --set hole=PICTURE.png --grid model.png",
        ),
        ([PHOTO], [FEATURES], "--set photo=PICTURE.png --out model"),
    ],
)
def test_the_command_to_try_gives_what_the_model_needs(
    tmp_path: Path, inputs: list[Any], outputs: list[Any], command: str
) -> None:
    entry, _ = publish(tmp_path / "models", "model", make(spec=make_spec(inputs, outputs)))
    assert example_command(entry) == f"latentry generate model {command}"

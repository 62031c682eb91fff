"""The options that give a model its inputs, in the commands that draw."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arithmetic_server import ArithmeticServer
from doubles import Done, InfoOf, RunCommand
from PIL import Image
from specs import classes, image, make_spec

from latentry.cli.common.samples import SampleOptions
from latentry.contract.errors import BadRequest

PIXELS = np.arange(54, dtype=np.uint8).reshape(3, 3, 2, 3)


@pytest.fixture(name="arithmetic_server")
def server_of_more_models(
    arithmetic_server: ArithmeticServer, info: InfoOf, monkeypatch: pytest.MonkeyPatch
) -> Any:
    for name in ("scene", "upscaler", "judge"):
        arithmetic_server.double.transport.infos[name] = info(name)
    monkeypatch.setenv("LATENTRY_URL", arithmetic_server.url)
    return arithmetic_server


@pytest.fixture
def here(
    arithmetic_server: ArithmeticServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Return the working folder, in which there are three pictures and arrays."""
    monkeypatch.chdir(tmp_path)
    for index, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    np.save(tmp_path / "z.npy", np.ones(4, np.float32))
    np.save(tmp_path / "several.npy", np.ones((2, 4), np.float32))
    np.save(tmp_path / "objects.npy", np.array([{}], np.object_), allow_pickle=True)
    return tmp_path


def drawn(done: Done) -> Any:
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_set_gives_any_input(run_command: RunCommand, here: Path) -> None:
    said = drawn(
        run_command("generate", "digits", "--seeds", "5", "--set", "class_label=two", "--json")
    )
    assert said["inputs"] == {"class_label": [2]}
    said = drawn(
        run_command("generate", "mapped", "--seeds", "5", "--set", "truncation_psi=0.7", "--json")
    )
    assert said["inputs"] == {"truncation_psi": [0.7]}
    said = drawn(run_command("generate", "mapped", "--n", "5", "--psi", "0.5,1", "--json"))
    assert said["inputs"] == {"truncation_psi": [0.5, 1.0, 0.5, 1.0, 0.5]}


@pytest.mark.parametrize("option", [["--class", "two,zero"], ["--set", "class_label=2,0"]])
def test_several_values_are_gone_through_in_turn(
    run_command: RunCommand, here: Path, option: list[str]
) -> None:
    said = drawn(
        run_command("generate", "digits", "--seeds", "5-9", *option, "--out", "out", "--json")
    )
    assert said["inputs"] == {"class_label": [2, 0, 2, 0, 2]}
    assert said["files"][1] == "out/seed0000000006-class0.png"


def test_latents_are_files(run_command: RunCommand, here: Path) -> None:
    said = drawn(
        run_command("generate", "plain", "--set", "z=several.npy", "--out", "out", "--json")
    )
    assert (said["seeds"], len(said["files"])) == (None, 2)
    said = drawn(run_command("generate", "plain", "--set", "z=z.npy", "--out", "out", "--json"))
    assert said["files"] == ["out/sample0000000.png"]
    # One latent for all: there are as many samples as classes.
    options = ("--set", "z=z.npy", "--class", "0-2", "--json")
    assert drawn(run_command("generate", "digits", *options))["inputs"]["class_label"] == [0, 1, 2]


def test_a_picture_in_needs_no_seeds(run_command: RunCommand, here: Path) -> None:
    said = drawn(run_command("generate", "upscaler", "--image", "0.png", "--out", "out", "--json"))
    assert said["seeds"] is None
    assert said["files"] == ["out/sample0000000.png"]
    assert said["inputs"]["strength"] == [0.5]
    assert said["inputs"]["image"][0].startswith("sha256:")
    shown = run_command("generate", "upscaler", "--image", "0.png").out
    assert shown == "1 sample of upscaler version 1\ngrid: upscaler.png\n"


def test_several_pictures_are_several_samples(run_command: RunCommand, here: Path) -> None:
    images = [word for index in range(3) for word in ("--image", f"{index}.png")]
    for options in (images, ["--set", "image=0.png,1.png,2.png"]):
        said = drawn(run_command("generate", "upscaler", *options, "--out", "out", "--json"))
        assert len(said["files"]) == 3
        assert len(set(said["inputs"]["image"])) == 3
    options = ["--image", "0.png", "--set", "strength=0,0.25,0.5,1", "--set", "v=0,1"]
    said = drawn(run_command("generate", "upscaler", *options, "--json"))
    assert said["inputs"]["strength"] == [0.0, 0.25, 0.5, 1.0]
    assert said["inputs"]["v"] == [0.0, 1.0, 0.0, 1.0]
    assert len(set(said["inputs"]["image"])) == 1


def test_pictures_and_inputs_of_a_stream(run_command: RunCommand, here: Path) -> None:
    options = ["--image", "0.png", "--set", "strength=0,0.25,1", "--chunk-size", "2", "--json"]
    said = drawn(run_command("stream", "upscaler", *options, "--out", "out"))
    assert said["delivered"] == 3
    assert len(list((here / "out").iterdir())) == 3


def test_a_model_without_pictures_writes_into_a_folder(run_command: RunCommand, here: Path) -> None:
    done = run_command("generate", "judge", "--image", "0.png", "--image", "1.png")
    assert (done.code, "2 files in judge" in done.out) == (0, True)
    names = [f"sample{index:07d}.embedding.npy" for index in range(2)]
    assert sorted(path.name for path in (here / "judge").iterdir()) == names


def test_every_output_has_a_file(run_command: RunCommand, here: Path) -> None:
    said = drawn(run_command("generate", "scene", "--seeds", "7", "--out", "out", "--json"))
    endings = ["embedding.npy", "png", "shade.png", "alpha.png", "parts.png"]
    assert said["files"] == [f"out/seed0000000007.{ending}" for ending in endings]


@pytest.mark.parametrize(
    ("model", "options", "code", "words"),
    [
        ("upscaler", [], 1, "error: --image: image is required by this model; it takes pictures"),
        (
            "upscaler",
            ["--set", "v=0"],
            1,
            "error: --image: image is required by this model; it takes pictures of 3",
        ),
        (
            "upscaler",
            ["--image", "no.png"],
            1,
            "image (no.png) cannot be read as PNG, JPEG, WebP or",
        ),
        ("upscaler", ["--image", "z.npy"], 1, "image (z.npy) cannot be read as PNG, JPEG, WebP or"),
        ("upscaler", ["--image", "0.png", "--seeds", "1"], 1, "this model takes no seeds; it tak"),
        ("upscaler", ["--image", "0.png", "--n", "2"], 1, "this model takes no n; it takes image"),
        ("upscaler", ["--set", "image=0.png", "--image", "1.png"], 2, "--image are the same"),
        ("upscaler", ["--image", "0.png", "--set", "strength=x"], 2, "strength holds 'x'; it tak"),
        ("upscaler", ["--image", "0.png", "--set", "strength=2"], 1, "strength in row 0 is 2.0"),
        ("plain", ["--set", "z=objects.npy"], 2, "z: objects.npy is no NPY file of numbers"),
        ("plain", ["--set", "z=0.png"], 2, "z: 0.png is no NPY file of numbers"),
        ("plain", ["--set", "z=z.npy", "--seeds", "1"], 1, "nothing is left for seeds to draw"),
        ("mapped", ["--psi", "0.5", "--set", "truncation_psi=1"], 2, "--psi are the same; give"),
        ("judge", ["--image", "0.png", "--grid", "a.png"], 1, "this model gives no picture; it "),
    ],
)
def test_what_is_refused(
    run_command: RunCommand, here: Path, model: str, options: list[str], code: int, words: str
) -> None:
    before = set(here.iterdir())
    done = run_command("generate", model, *options)
    assert (done.code, words in done.err) == (code, True), done.err
    assert set(here.iterdir()) == before


@pytest.mark.parametrize(
    "options", [["--seeds", "9-3"], ["--seeds", "1", "--n", "1"], ["--set", "x"]]
)
def test_what_the_options_alone_say_is_said_before_a_server_is_asked(
    run_command: RunCommand, arithmetic_server: ArithmeticServer, options: list[str]
) -> None:
    for command in (["generate", "plain"], ["stream", "plain", "--out", "out"]):
        assert run_command(*command, *options).code == 2
    assert arithmetic_server.double.calls == []


def test_no_number_of_samples_makes_a_list_without_end(run_command: RunCommand, here: Path) -> None:
    options = ["--set", "z=z.npy", "--class", "0,1", "--n", str(10**13)]
    done = run_command("generate", "digits", *options)
    assert done.code == 1
    assert "n and z were given" in done.err
    images = ["--image", "0.png", "--image", "1.png", "--n", str(10**13)]
    assert "takes no n" in run_command("generate", "upscaler", *images).err


def test_what_is_missing_is_told_with_the_option_that_gives_it() -> None:
    size = {"height": 4, "width": 4}
    spec = make_spec(
        [
            {"name": "photo", "kind": "picture", **size, "channels": 3},
            {"name": "style", "kind": "picture", **size, "channels": 3},
            {"name": "hole", "kind": "mask", **size},
            classes("cat", "dog"),
        ],
        [image(4, 4)],
    )
    given: list[str] = []
    for name, option in {
        "photo=a.png": "--image: photo is required",
        "style=b.png": "--set style=...: style is required",
        "hole=c.png": "--set hole=...: hole is required by this model; it takes masks of 4 x 4",
        "class_label=cat": "--class: class_label is required",
    }.items():
        with pytest.raises(BadRequest, match=f"^{re.escape(option)}"):
            SampleOptions(settings=given).arguments(spec)
        given.append(name)
    assert SampleOptions(settings=given).arguments(spec)["class_label"] == 0


def test_pictures_are_scaled_where_that_is_asked(run_command: RunCommand, here: Path) -> None:
    Image.fromarray(PIXELS[0]).resize((20, 30)).save(here / "big.png")
    refused = run_command("generate", "upscaler", "--image", "big.png")
    assert "image is a picture of 30 x 20; it takes pictures of 3 x 2 x 3" in refused.err
    assert "--resize" in refused.err
    both = ("--image", "big.png", "--image", "0.png", "--resize")
    said = drawn(run_command("generate", "upscaler", *both, "--json"))
    by_hand = np.asarray(Image.open(here / "big.png").resize((2, 3), Image.Resampling.BICUBIC))
    Image.fromarray(by_hand).save(here / "small.png")
    ours = ("--image", "small.png", "--image", "0.png")
    assert drawn(run_command("generate", "upscaler", *ours, "--json"))["inputs"] == said["inputs"]
    done = run_command("stream", "upscaler", *both, "--out", "streamed")
    assert done.code == 0, done.err

"""Pictures of a user's own, for calibration and for the gate."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from specs import image, make_spec, z

from latentry.contract.errors import BadRequest, ExportRefused
from latentry.contract.wire import Arrays
from latentry.export import build
from latentry.export.calibration import feeds_of
from latentry.export.example_pictures import read_examples
from latentry.export.gates.bounds import BOUNDS
from latentry.export.gates.gate import GateFinding
from latentry.export.gates.samples import PairedSamples

SIZE = {"height": 8, "width": 12}
PHOTO = {"name": "photo", "kind": "picture", "channels": 3, **SIZE}
HOLE = {"name": "hole", "kind": "mask", **SIZE}
ONE = make_spec([PHOTO], [image(8, 12)])
TWO = make_spec([PHOTO, HOLE], [image(8, 12)])


def pictures(folder: Path, levels: Sequence[int], suffix: str = "png") -> Path:
    """Write pictures of 24 x 16, each of one level, in the order of their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, level in enumerate(levels):
        Image.new("RGB", (24, 16), (level,) * 3).save(folder / f"{index:02d}.{suffix}")
    return folder


def levels_of(rows: NDArray[np.uint8]) -> list[int]:
    return [int(row.flat[0]) for row in rows]


class Copying:
    """Gives what goes in."""

    engine_class = "copying"

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        photo = inputs[next(name for name in inputs if name.startswith("photo"))]
        sample = photo.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        drawn = {"image": photo, "image.sample": sample, "watch": sample.sum(axis=(1, 2, 3))}
        return {name: drawn[name] for name in outputs}


def test_every_other_picture_calibrates_and_the_others_judge(tmp_path: Path) -> None:
    examples = read_examples(ONE, pictures(tmp_path / "photos", [10, 20, 30, 40, 50]))
    assert examples.calibrating["photo"].shape == (3, 8, 12, 3)
    assert levels_of(examples.calibrating["photo"]) == [10, 30, 50]
    assert levels_of(examples.judging["photo"]) == [20, 40]


def test_several_inputs_have_folders_of_their_names(tmp_path: Path) -> None:
    pictures(tmp_path / "photo", [1, 2, 3])
    pictures(tmp_path / "hole", [0, 255, 0, 255])
    examples = read_examples(TWO, tmp_path)
    assert levels_of(examples.judging["photo"]) == [2]
    assert levels_of(examples.calibrating["hole"]) == [0, 0]


def test_networks_are_fed_and_judged_with_them(tmp_path: Path) -> None:
    examples = read_examples(ONE, pictures(tmp_path / "photos", range(0, 60, 10)))
    engines = {"generator": Copying()}
    (fed,) = feeds_of(ONE, engines, examples.calibrating)["generator"](7).values()
    assert levels_of(fed) == [0, 20, 40, 0, 20, 40, 0]
    samples = PairedSamples(ONE, engines, engines, 2, examples.judging)
    assert samples.most == 3
    drawn = [level for pair in samples.draw(0, 3) for level in levels_of(pair.found["image"])]
    assert drawn == [10, 30, 50]


@pytest.mark.parametrize(("count", "words"), [(0, "too few pictures"), (1, "too few pictures")])
def test_too_few_are_refused(tmp_path: Path, count: int, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        read_examples(ONE, pictures(tmp_path / "photos", range(count)))


def test_what_is_no_folder_or_no_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="absent cannot be read: No such file"):
        read_examples(ONE, tmp_path / "absent")
    folder = pictures(tmp_path / "photos", [1, 2])
    (folder / "00.png").write_bytes(b"no picture")
    with pytest.raises(BadRequest, match=r"00.png: photo .*"):
        read_examples(ONE, folder)
    with pytest.raises(BadRequest, match="takes no pictures, so it needs no examples"):
        read_examples(make_spec([z(4)], [image(8, 8)]), folder)


SIDES = {"height": {"minimum": 8, "maximum": 40}, "width": {"minimum": 8, "maximum": 40}}
FREE = make_spec(
    [{"name": "photo", "kind": "picture", "channels": 3, **SIDES}],
    [{"name": "image", "kind": "picture", "channels": 3, **SIDES}],
)


class Shrinking(Copying):
    """Draws something else where pictures are small."""

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        drawn = super().run(inputs, outputs)
        return drawn if drawn["image"].shape[1] > 8 else {**drawn, "image": 255 - drawn["image"]}


def test_pictures_of_free_size_are_judged_at_both_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parity = SimpleNamespace(batch_sizes=(1, 4))
    entry: Any = SimpleNamespace(name="free", spec=FREE, build=SimpleNamespace(parity=parity))

    def judge(engine: Copying) -> GateFinding:
        engines = {"reference": {"generator": Copying()}, "build": {"generator": engine}}
        return build._through_gate(entry, "toy-int8", engines, BOUNDS["int8"], {}, lambda _: None)

    assert judge(Copying()).faults == ()
    with pytest.raises(ExportRefused, match="over 8 samples, toy-int8 .* worst_psnr_db is"):
        judge(Shrinking())
    assert (tmp_path / "latentry-gate-free-toy-int8.html").exists()

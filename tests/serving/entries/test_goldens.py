import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from specs import classes, image, make_spec, psi, stages_of_stylegan, w, z

from latentry.contract.errors import EntryError
from latentry.contract.spec import GeneratorSpec
from latentry.serving.entries.examples import example_request
from latentry.serving.entries.goldens import (
    GOLDEN_FILE,
    Goldens,
    GoldenVerdict,
    compare_with_goldens,
    golden_bytes,
    golden_count,
    goldens_to_meet,
    read_goldens,
    save_worst_pair,
)
from latentry.serving.entries.manifests import Gate
from latentry.serving.entries.repository import Entry, newest_entries

SPEC = make_spec([z(4)], [image(32, 32, 1)])
MASK = {"name": "alpha", "kind": "mask", "height": 32, "width": 32}
LABELS = {"name": "parts", "kind": "label_map", "height": 40, "width": 50, "labels": 9}
FEATURES = {"name": "features", "kind": "vector", "size": 5}
DEPTH = {"name": "depth", "kind": "tensor", "shape": [1, 4, 4]}
MANY = make_spec([z(4)], [image(32, 32, 1), MASK, LABELS, FEATURES, DEPTH])

Outputs = dict[str, NDArray[Any]]


def drawn(spec: GeneratorSpec, count: int = 8) -> Outputs:
    """Return outputs that no difference by one leaves their range."""
    random = np.random.default_rng(0)
    return {
        item.name: random.integers(1, 8, (count, *item.raw.row_shape)).astype(item.raw.dtype)
        for item in spec.outputs
    }


def copied(outputs: Mapping[str, NDArray[Any]]) -> Outputs:
    return {name: array.copy() for name, array in outputs.items()}


def compare(found: Outputs, goldens: Outputs, *, same_class: bool) -> GoldenVerdict:
    spec = SPEC if goldens.keys() == {"image"} else MANY
    return compare_with_goldens(spec, found, goldens, same_class=same_class)


@pytest.fixture
def goldens() -> Outputs:
    return {"image": np.random.default_rng(0).integers(1, 254, (8, 32, 32, 1), np.uint8)}


def entry_of(repository: Path, name: str) -> Entry:
    (entry,) = newest_entries(repository, (name,))
    return entry


def test_goldens_survive_their_file(repository: Path, goldens: Outputs, tmp_path: Path) -> None:
    entry = replace(entry_of(repository, "digits"), folder=tmp_path)
    inputs = example_request(entry.spec, 8)
    entry.build_folder.mkdir(parents=True)
    (entry.build_folder / GOLDEN_FILE).write_bytes(golden_bytes(Goldens(inputs, goldens)))
    found = read_goldens(entry)
    assert len(found) == 8
    for there, given in ((found.inputs, inputs), (found.outputs, goldens)):
        assert there.keys() == given.keys()
        for name, array in given.items():
            np.testing.assert_array_equal(there[name], array)
    (entry.build_folder / GOLDEN_FILE).write_bytes(b"no archive")
    with pytest.raises(EntryError, match=r"goldens\.npz holds no goldens"):
        read_goldens(entry)


def test_an_entry_brings_the_inputs_of_its_goldens(repository: Path) -> None:
    goldens = read_goldens(entry_of(repository, "mapped"))
    assert goldens.inputs["seed"][:, 0].tolist() == list(range(8))
    assert set(goldens.inputs["class_label"][:, 0].tolist()) == {0, 1, 2, 3}
    assert set(goldens.inputs["truncation_psi"][:, 0].tolist()) == {1.0, -0.5, 2.0, -2.0}
    assert {name: array.tolist() for name, array in goldens.request(3).items()} == {
        name: array[3:4].tolist() for name, array in goldens.inputs.items()
    }


def test_equal_outputs_pass_exactly() -> None:
    for spec in (SPEC, MANY):
        outputs = drawn(spec)
        verdict = compare(copied(outputs), outputs, same_class=True)
        assert verdict.passed
        assert verdict.exact


@pytest.mark.parametrize(
    ("elements", "levels", "passes_on_another_class"),
    [(1, 1, True), (8, 1, True), (9, 1, False), (1, 2, False)],
)
def test_one_level_in_a_thousandth_passes_on_another_class_only(
    goldens: Outputs, elements: int, levels: int, passes_on_another_class: bool
) -> None:
    found = copied(goldens)
    found["image"][5].reshape(-1)[:elements] += levels
    assert not compare(found, goldens, same_class=True).passed
    verdict = compare(found, goldens, same_class=False)
    assert verdict.passed is passes_on_another_class
    assert not verdict.exact
    assert (verdict.output, verdict.worst, verdict.largest) == ("image", 5, levels)


def test_one_element_of_small_goldens_may_differ_on_another_class() -> None:
    spec = make_spec([z(4)], [image(8, 8, 1)])
    goldens = {"image": np.full((8, 8, 8, 1), 100, np.uint8)}
    for elements, passes in ((1, True), (2, False)):
        found = copied(goldens)
        found["image"][2].reshape(-1)[:elements] += 1
        assert compare_with_goldens(spec, found, goldens, same_class=False).passed is passes
        assert not compare_with_goldens(spec, found, goldens, same_class=True).passed


@pytest.mark.parametrize(
    ("name", "change", "passes_on_another_class"),
    [
        ("alpha", 1, True),
        ("alpha", 2, False),
        ("parts", 1, True),
        ("parts", 5, True),  # another label is another label, however far its number
        ("features", 1e-4, True),
        ("features", 1e-2, False),
        ("features", float("nan"), False),
        ("depth", 1e-4, True),
        ("depth", float("inf"), False),
    ],
)
def test_each_output_is_judged_as_its_kind_says(
    name: str, change: float, passes_on_another_class: bool
) -> None:
    goldens = drawn(MANY)
    found = copied(goldens)
    flat = found[name][6].reshape(-1)
    flat[:1] = flat[:1] + np.array([change]).astype(flat.dtype)
    assert not compare(found, goldens, same_class=True).passed
    verdict = compare(found, goldens, same_class=False)
    assert verdict.passed is passes_on_another_class
    assert not verdict.exact
    if np.isfinite(change):
        assert str(verdict).startswith(f"{name} of golden 6 differs most, by up to ")


def test_a_difference_without_a_size_is_one_all_the_same() -> None:
    goldens = drawn(MANY)
    goldens["depth"][:] = 0
    found = copied(goldens)
    found["depth"][0, 0, 0, 0] = -0.0
    assert not compare(found, goldens, same_class=True).passed
    verdict = compare(found, goldens, same_class=False)
    assert (verdict.passed, verdict.exact, verdict.output) == (True, False, "depth")


def test_what_is_wrong_is_told_before_what_only_differs_more() -> None:
    goldens = drawn(MANY)
    found = copied(goldens)
    found["features"] += np.float32(1e-5)  # every element, by rounding
    found["image"][1, 0, 0, 0] += 9
    verdict = compare(found, goldens, same_class=False)
    assert (verdict.passed, verdict.output, verdict.worst) == (False, "image", 1)


def test_other_shapes_never_pass_and_can_be_looked_at(goldens: Outputs, tmp_path: Path) -> None:
    found = {"image": goldens["image"][:, :16]}
    verdict = compare(found, goldens, same_class=False)
    assert not verdict.passed
    assert save_worst_pair(found, goldens, verdict, tmp_path / "pair.png")
    assert (tmp_path / "pair.png").read_bytes().startswith(b"\x89PNG")
    assert not compare({}, goldens, same_class=False).passed


@pytest.mark.parametrize(
    ("name", "is_seen"), [("alpha", True), ("parts", True), ("features", False), ("depth", False)]
)
def test_what_has_pixels_can_be_looked_at(name: str, is_seen: bool, tmp_path: Path) -> None:
    goldens = drawn(MANY)
    found = copied(goldens)
    found[name] += np.array(9).astype(found[name].dtype)
    verdict = compare(found, goldens, same_class=False)
    assert verdict.output == name
    assert save_worst_pair(found, goldens, verdict, tmp_path / "pair.png") is is_seen
    assert (tmp_path / "pair.png").exists() is is_seen


def test_goldens_of_large_samples_are_fewer() -> None:
    large = {"height": 4096, "width": 4096, "channels": 4}
    photo = {"name": "photo", "kind": "picture", **large}
    assert golden_count(SPEC) == golden_count(MANY) == 8
    assert golden_count(make_spec([photo], [image(4096, 4096, 4)])) == 8
    more = [{"name": name, "kind": "picture", **large} for name in ("one", "two")]
    assert golden_count(make_spec([photo], [image(4096, 4096, 4), *more])) == 4
    w_avg = [0.0] * 20
    mapped = make_spec(
        [z(12), classes("a", "b"), w(3, 20), psi()], [image(24, 24)], stages_of_stylegan(w_avg)
    )
    assert golden_count(mapped) == 8


def test_fewer_bits_of_another_class_meet_what_their_gate_asked(
    repository: Path, tmp_path: Path
) -> None:
    shutil.copytree(repository / "wide", tmp_path / "wide")
    entry = entry_of(tmp_path, "wide")
    gate = Gate(samples=9, found={"worst_psnr_db": 31.0}, bounds={"worst_psnr_db": 30.0})
    build = entry.build.model_copy(update={"precision": "int8", "gate": gate})
    gated = replace(entry, build=build)
    shutil.copytree(entry.build_folder, gated.build_folder)
    own = build.goldens.engine_class
    assert goldens_to_meet(gated, own)[1] is None
    goldens, least_psnr_db = goldens_to_meet(gated, f"{own}_vnni")
    assert least_psnr_db == 30

    boundless = replace(
        gated, build=build.model_copy(update={"gate": gate.model_copy(update={"bounds": {}})})
    )
    with pytest.raises(EntryError, match="its gate has no bound worst_psnr_db; build again"):
        goldens_to_meet(boundless, f"{own}_vnni")

    def verdict(step: int) -> GoldenVerdict:
        image = goldens.outputs["image"]
        found = {"image": np.where(image > 127, image - step, image + step).astype(np.uint8)}
        return compare_with_goldens(
            entry.spec, found, goldens.outputs, same_class=False, least_psnr_db=least_psnr_db
        )

    assert verdict(8).passed  # 20 log10(255 / 8) is 30.07 dB
    assert not verdict(9).passed

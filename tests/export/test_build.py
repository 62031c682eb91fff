"""Builds by engines that draw something else, or somehow else, than ONNX Runtime does."""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from latentry.clients import Client
from latentry.contract.errors import BadRequest, ExportRefused, NotFound
from latentry.contract.wire import Arrays
from latentry.export.build import build_model
from latentry.export.proofs import build_proof
from latentry.serving.entries.builds import list_builds, set_default_build
from latentry.serving.entries.goldens import read_goldens
from latentry.serving.entries.manifests import FP32, Build
from latentry.serving.entries.repository import newest_entries, read_entry
from latentry.serving.entries.verification import verify_entry
from latentry.serving.runtime.engines import Engine, EngineMissing, registry
from latentry.serving.runtime.generator import load_generator
from latentry.serving.runtime.local import LocalTransport

Change = Callable[[str, NDArray[Any]], NDArray[Any]]


class Changed:
    """ONNX Runtime with something done to its outputs; rows alone where the build says so."""

    precisions = ("fp32", "odd")

    def __init__(self, change: Change, *, missing: bool = False) -> None:
        self.change, self.missing = change, missing

    def expect(self, precision: str) -> str:
        if self.missing:
            raise EngineMissing("changed cannot run here")
        return f"changed-{precision}"

    def make(self, network: bytes, precision: str) -> bytes:
        return network

    def load(self, artefact: bytes, build: Build, *, threads: int) -> Engine:
        usual = registry._OURS["onnxruntime"].load(artefact, build, threads=threads)
        return Running(usual, self.change, single=build.rows == "single")


class Running:
    engine_class = "changed-fp32"

    def __init__(self, usual: Engine, change: Change, *, single: bool) -> None:
        self.usual, self.change, self.single = usual, change, single

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        drawn = self.usual.run(inputs, outputs)
        parts = []
        for rows in range(len(drawn[outputs[0]])) if self.single else [slice(None)]:
            part = {name: array[rows : rows + 1] if self.single else array  # type: ignore[operator]
                    for name, array in drawn.items()}  # fmt: skip
            parts.append({name: self.change(name, array) for name, array in part.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}


def same(name: str, array: NDArray[Any]) -> NDArray[Any]:
    return array


def off_by(amount: float) -> Change:
    return lambda name, array: array + np.float32(amount) if array.dtype == np.float32 else array


def by_the_batch(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Round otherwise in larger batches."""
    return array + np.float32(1e-6 * len(array)) if name == "image.sample" else array


def by_the_row(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Add to each row by its place: not even rows alone help where the engine counts them."""
    if name != "image.sample":
        return array
    steps = np.arange(len(array), dtype=np.float32)[:, None, None, None]
    return np.asarray(array + 1e-2 * steps)


def not_finite(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if name == "image.sample":
        array = array.copy()
        array[0, 0, 0, 0] = np.nan
    return array


@pytest.fixture
def own(repository: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model_repository"
    shutil.copytree(repository / "wide", folder / "wide")
    return folder


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what installs the engine ``changed``; its speed is measured where that is tested."""

    def install(change: Change, *, measured: bool = False, **how: Any) -> None:
        if not measured:
            monkeypatch.setattr(build_proof, "relative_speed", lambda *_: 1.0)
        monkeypatch.setitem(registry._OURS, "changed", Changed(change, **how))

    return install


def test_a_build_is_added_with_goldens_of_its_own(own: Path, engine: Callable[..., None]) -> None:
    engine(off_by(2e-6), measured=True)
    steps: list[str] = []
    entry = build_model(own, "wide", "changed", "fp32", on_step=steps.append)
    assert steps == [
        *("making changed-fp32", "proving it against onnxruntime-fp32", "drawing the goldens"),
        "publishing",
    ]
    verify_entry(entry)
    assert (entry.build.name, entry.build.rows) == ("changed-fp32", "batch")
    assert 1e-6 < max(entry.build.parity.differences.values()) < 3e-6
    assert entry.build.goldens.engine_class == "changed-fp32"
    assert 0.2 < entry.build.speed < 5
    ours, theirs = list_builds(entry)[0]
    assert read_goldens(ours).inputs.keys() == read_goldens(theirs).inputs.keys()
    generator = load_generator(entry, partial(registry.load_network, threads=1))
    goldens = read_goldens(entry)
    (answer,) = generator.answer([goldens.inputs])
    assert isinstance(answer, dict)
    np.testing.assert_array_equal(answer["image"], goldens.outputs["image"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (off_by(1e-3), r"by changed-fp32 and .* by the FP32 build: 0.001\d* apart, the tolerance"),
        (not_finite, "is nan in changed-fp32; not finite"),
        (by_the_row, "in a batch of 3 and .* alone: .* apart, and no difference is allowed"),
    ],
)
def test_what_draws_something_else_is_refused_and_leaves_nothing(
    own: Path, engine: Callable[..., None], change: Change, words: str
) -> None:
    engine(change)
    before = sorted(own.rglob("*"))
    if change is by_the_row:  # by its place in a batch that is never split into rows

        def load(artefact: bytes, build: Build, *, threads: int) -> Engine:
            usual = registry._OURS["onnxruntime"].load(artefact, build, threads=threads)
            return Running(usual, change, single=False)

        registry._OURS["changed"].load = load  # type: ignore[method-assign]
    with pytest.raises(ExportRefused, match=words):
        build_model(own, "wide", "changed", "fp32")
    assert sorted(own.rglob("*")) == before


def test_where_rows_differ_by_the_batch_each_is_computed_alone(
    own: Path, engine: Callable[..., None]
) -> None:
    engine(by_the_batch)
    entry = build_model(own, "wide", "changed", "fp32")
    assert entry.build.rows == "single"
    with Client(transport=LocalTransport(own, build="changed-fp32")) as client:
        together = client.generate("wide", seeds=range(16), format="float")
        alone = client.generate("wide", seeds=5, format="float")
    np.testing.assert_array_equal(
        together.tensors["image.sample"][5], alone.tensors["image.sample"][0]
    )


@pytest.mark.parametrize(
    ("speed", "may_be_default", "expected"),
    [
        (1.19, True, FP32),
        (1.2, True, "changed-fp32"),
        (9.0, False, FP32),
    ],
)
def test_a_faster_build_becomes_the_default(
    own: Path,
    engine: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    speed: float,
    may_be_default: bool,
    expected: str,
) -> None:
    engine(same)
    monkeypatch.setattr(build_proof, "relative_speed", lambda *_: speed)
    entry = build_model(own, "wide", "changed", "fp32", may_be_default=may_be_default)
    assert entry.build.speed == speed
    (newest,) = newest_entries(own)
    assert newest.build.name == expected
    config = (own / "wide" / "config.pbtxt").read_text()
    assert newest.build.digest in config
    with Client(transport=LocalTransport(own)) as client:
        assert client.info("wide").build == expected


def test_what_cannot_be_built_is_told_before_anything_is_made(
    own: Path, engine: Callable[..., None]
) -> None:
    engine(same, missing=True)
    with pytest.raises(EngineMissing, match="changed cannot run here"):
        build_model(own, "wide", "changed", "fp32")
    engine(same)
    with pytest.raises(BadRequest, match="changed does not run int8; it runs fp32, odd"):
        build_model(own, "wide", "changed", "int8")
    with pytest.raises(
        NotFound, match="engine 'nothing' is not installed here; there: onnxruntime"
    ):
        build_model(own, "wide", "nothing", "fp32")
    with pytest.raises(
        EngineMissing, match="is of the engine class changed-fp32 once it is loaded"
    ):
        build_model(own, "wide", "changed", "odd")
    assert [one.build.name for one in list_builds(read_entry(own / "wide" / "1"))[0]] == [FP32]


def test_where_it_cannot_run_a_default_gives_way_and_what_was_asked_for_does_not(
    own: Path, engine: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    engine(same)
    set_default_build(
        own, build_model(own, "wide", "changed", "fp32", may_be_default=False), "changed-fp32"
    )
    engine(same, missing=True)
    with Client(transport=LocalTransport(own)) as client:
        assert client.generate("wide", seeds=1).build == FP32
    assert "wide is run by onnxruntime-fp32 instead of its default changed-fp32" in caplog.text
    with pytest.raises(EngineMissing, match="changed cannot run here"):
        LocalTransport(own, build="changed-fp32")


def test_what_goes_on_after_another_default_is_pinned(
    own: Path, engine: Callable[..., None]
) -> None:
    engine(off_by(5e-5))
    entry = build_model(own, "wide", "changed", "fp32", may_be_default=False)
    set_default_build(own, entry, "changed-fp32")
    with (
        Client(transport=LocalTransport(own)) as new,
        Client(transport=LocalTransport(own, build=FP32)) as old,
    ):
        before, now = old.info("wide"), new.info("wide")
    assert before.model_digest == now.model_digest
    assert before.identity != now.identity

"""Builds by engines that draw something else, or somehow else, than ONNX Runtime does."""

import errno
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from stored.changed_entries import draft_of

from latentry.cli.main import main
from latentry.clients import Client
from latentry.contract.errors import BadRequest, EntryError, ExportRefused, NotFound, OutOfSpace
from latentry.contract.wire import Arrays
from latentry.export.build import build_model
from latentry.export.proofs import build_proof
from latentry.serving.entries import builds
from latentry.serving.entries.builds import list_builds, set_default_build
from latentry.serving.entries.goldens import read_goldens
from latentry.serving.entries.manifests import FP32, Build
from latentry.serving.entries.publishing import publish, remove_entry
from latentry.serving.entries.repository import Entry, newest_entries, read_entry
from latentry.serving.entries.verification import verify_entry
from latentry.serving.runtime.engines import Engine, EngineMissing, Feeds, registry
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

    def make(self, network: bytes, precision: str, feeds: Feeds) -> bytes:
        return network

    def load(self, artefact: bytes, build: Build, *, threads: int) -> Engine:
        usual = registry._OURS["onnxruntime"].load(artefact, build, threads=threads)
        change = by_one_thread if self.change is by_one_thread and threads == 1 else self.change
        change = same if self.change is by_one_thread and threads != 1 else change
        return Running(usual, change, single=build.rows == "single")


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
        if not self.single:
            return parts[0]
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


def by_one_thread(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Round otherwise where there is one thread only."""
    return array + np.float32(1e-6) if name == "image.sample" else array


def inverted(name: str, array: NDArray[Any]) -> NDArray[Any]:
    return 255 - array if name == "image" else array


def blind(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """See no NaN."""
    return array * 0 if name == "watch" else array


def large_batches(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Draw nothing in batches above what is proved."""
    assert len(array) <= 16
    return array


def of_another_type(name: str, array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.int64) if name == "image" else array


def nothing(name: str, array: NDArray[Any]) -> NDArray[Any]:
    return [] if name == "image" else array  # type: ignore[return-value]


def failing(name: str, array: NDArray[Any]) -> NDArray[Any]:
    raise RuntimeError("the device is gone")


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
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Changed]]:
    """Return what installs the engine ``changed``; its speed is measured where that is tested."""

    def install(
        change: Change, *, measured: bool = False, speed: float = 1.0, **how: Any
    ) -> Changed:
        provider = Changed(change, **how)
        point = SimpleNamespace(name="changed", load=lambda: lambda: provider)
        monkeypatch.setattr(registry, "entry_points", lambda **_: [point])
        if not measured:
            monkeypatch.setattr(build_proof, "relative_speed", lambda *_: speed)
        forget()
        return provider

    def forget() -> None:
        registry._load_provider.cache_clear()
        registry.expect_class.cache_clear()

    yield install
    forget()


def test_a_build_is_added_with_goldens_of_its_own(
    own: Path, engine: Callable[..., Changed]
) -> None:
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
        (
            off_by(1e-3),
            r"in the FP32 build at batch 1: 0.001\d* apart, the tolerance is 0.0001",
        ),
        (not_finite, "is nan in changed-fp32; not finite"),
        (inverted, r"image\[.* in changed-fp32 and .* levels apart, 1 is allowed"),
        (blind, "watch.* so a NaN could go unseen"),
        (
            of_another_type,
            "changed-fp32 gives image of generator as int64; it must be an array of",
        ),
        (nothing, "changed-fp32 gives image of generator as .*; it must be an array of uint8"),
        (failing, "changed-fp32 does not run generator on a batch of 1: the device is gone"),
        (by_one_thread, "with one engine thread and .* no difference is allowed"),
        (by_the_row, "in a batch of 3 and .* alone: .* apart, and no difference is allowed"),
    ],
)
def test_what_draws_something_else_is_refused_and_leaves_nothing(
    own: Path, engine: Callable[..., Changed], change: Change, words: str
) -> None:
    provider = engine(change)
    before = sorted(own.rglob("*"))
    if change is by_the_row:  # by its place in a batch that is never split into rows

        def load(artefact: bytes, build: Build, *, threads: int) -> Engine:
            usual = registry._OURS["onnxruntime"].load(artefact, build, threads=threads)
            return Running(usual, change, single=False)

        provider.load = load  # type: ignore[method-assign]
    with pytest.raises(ExportRefused, match=words):
        build_model(own, "wide", "changed", "fp32")
    assert sorted(own.rglob("*")) == before


def test_where_rows_differ_by_the_batch_each_is_computed_alone(
    own: Path, engine: Callable[..., Changed]
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
    engine: Callable[..., Changed],
    speed: float,
    may_be_default: bool,
    expected: str,
) -> None:
    engine(same, speed=speed)
    entry = build_model(own, "wide", "changed", "fp32", may_be_default=may_be_default)
    assert entry.build.speed == speed
    (newest,) = newest_entries(own)
    assert newest.build.name == expected
    config = (own / "wide" / "config.pbtxt").read_text()
    assert newest.build.digest in config
    with Client(transport=LocalTransport(own)) as client:
        assert client.info("wide").build == expected


def test_what_cannot_be_built_is_told_before_anything_is_made(
    own: Path, engine: Callable[..., Changed]
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
    own: Path, engine: Callable[..., Changed], caplog: pytest.LogCaptureFixture
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


def test_goldens_are_drawn_in_no_larger_batch_than_was_proved(
    own: Path, engine: Callable[..., Changed]
) -> None:
    engine(large_batches)
    build_model(own, "wide", "changed", "fp32")


@pytest.mark.parametrize(
    ("name", "precision", "words"),
    [
        ("my-engine", "fp32", "engine 'my-engine' names no build; use 1 to 32 of a-z, 0-9 and _"),
        ("changed", "int8-mixed", "precision 'int8-mixed' names no build"),
        ("../changed", "fp32", "engine '../changed' names no build"),
    ],
)
def test_a_name_that_no_build_may_have_is_told_first(
    own: Path, name: str, precision: str, words: str
) -> None:
    with pytest.raises(BadRequest, match=words):
        build_model(own, "wide", name, precision)


def test_a_version_that_was_replaced_meanwhile_gets_no_build(
    own: Path, engine: Callable[..., Changed]
) -> None:
    def replace_it(step: str) -> None:
        if step == "publishing":
            (entry,) = newest_entries(own)
            draft = draft_of(entry, lambda network: network + b"\x32\x01 ")
            remove_entry(own, "wide")
            publish(own, "wide", draft)

    engine(same, speed=2.0)
    with pytest.raises(BadRequest, match="was removed or replaced meanwhile; build again"):
        build_model(own, "wide", "changed", "fp32", on_step=replace_it)
    (entry,) = newest_entries(own)
    assert [one.build.name for one in list_builds(entry)[0]] == [FP32]
    verify_entry(entry)


def test_a_disk_that_has_no_room_for_the_default_leaves_no_build(
    own: Path, engine: Callable[..., Changed], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes, **_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    engine(same, speed=2.0)
    before = sorted(own.rglob("*"))
    monkeypatch.setattr(builds, "write_atomic", full)
    with pytest.raises(OutOfSpace, match="default_build.*nothing was changed; free some and run"):
        build_model(own, "wide", "changed", "fp32")
    assert sorted(own.rglob("*")) == before
    monkeypatch.undo()
    engine(same, speed=2.0)
    build_model(own, "wide", "changed", "fp32")
    assert newest_entries(own)[0].build.name == "changed-fp32"


@pytest.mark.parametrize("harm", ["a flipped bit", "no build.json"])
def test_a_damaged_default_harms_no_other_build(
    own: Path, engine: Callable[..., Changed], harm: str
) -> None:
    engine(same, speed=2.0)
    path = build_model(own, "wide", "changed", "fp32").build_folder / "build.json"
    if harm == "a flipped bit":
        path.write_bytes(path.read_bytes().replace(b"changed", b"chanfed", 1))
    else:
        path.unlink()
    repository = ["--repository", str(own)]
    assert main(["models", *repository]) == 1
    with pytest.raises(EntryError, match="changed-fp32"):
        newest_entries(own)
    with Client(transport=LocalTransport(own, build=FP32)) as client:
        assert client.generate("wide", seeds=1).build == FP32
    assert main(["models", "default", "wide", FP32, *repository]) == 0
    assert newest_entries(own)[0].build.name == FP32
    assert main(["models", "remove", "wide", "--build", "changed-fp32", *repository]) == 0
    assert main(["models", *repository]) == 0
    build_model(own, "wide", "changed", "fp32")


@pytest.mark.parametrize("name", ["", ".", "..", "../builds", "gone-fp32"])
def test_what_is_no_build_is_neither_removed_nor_the_default(
    own: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    before = sorted(own.rglob("*"))
    for command in (["remove", "wide", "--build", name], ["default", "wide", name]):
        assert main(["models", *command, "--repository", str(own)]) == 1
        assert "has no build" in capsys.readouterr().err
    with pytest.raises(NotFound, match="has no build"):
        read_entry(own / "wide" / "1", name)
    assert sorted(own.rglob("*")) == before


def test_a_job_finds_its_build_in_whichever_version_has_it(
    own: Path, engine: Callable[..., Changed]
) -> None:
    engine(off_by(5e-5))
    first = build_model(own, "wide", "changed", "fp32", may_be_default=False)
    publish(own, "wide", draft_of(first_build(first), lambda network: network + b"\x32\x01 "))
    again, is_new = publish(own, "wide", draft_of(first_build(first), lambda network: network))
    assert (again.version, is_new, again.digest) == (3, True, first.digest)
    how = {"model_digest": first.digest, "build": first.build.digest}
    with Client(transport=LocalTransport(own, ("wide",), **how)) as client:  # type: ignore[arg-type]
        info = client.info("wide")
    assert (info.version, info.build) == ("1", "changed-fp32")
    how["build"] = "0" * 64
    with pytest.raises(NotFound, match="version 3 has no build with the digest 00000000"):
        LocalTransport(own, ("wide",), **how)  # type: ignore[arg-type]


def first_build(entry: Entry) -> Entry:
    return read_entry(entry.folder, FP32)


def test_an_export_that_proves_more_is_a_new_version(own: Path) -> None:
    (entry,) = newest_entries(own)
    draft = draft_of(entry, lambda network: network)
    assert publish(own, "wide", draft)[1] is False
    for change in (
        {"rows": "single"},
        {"parity": draft.build.parity.model_copy(update={"batch_sizes": (1, 3, 7, 64)})},
    ):
        more = replace(draft, build=draft.build.model_copy(update=change))
        published, is_new = publish(own, "wide", more)
        assert (is_new, published.digest) == (True, entry.digest)


@pytest.mark.parametrize(
    ("where", "what", "words"),
    [
        (
            "make",
            RuntimeError("no builder"),
            "the engine cannot be built: RuntimeError: no buil",
        ),
        ("make", None, "the engine made a NoneType; it must be bytes"),
        (
            "load",
            RuntimeError("no driver"),
            "changed-fp32 cannot be loaded: RuntimeError: no dri",
        ),
        ("expect", RuntimeError("999"), "engine 'changed' fails: RuntimeError: 999"),
        ("expect", 7, "engine 'changed' calls its class 7, which is no text"),
    ],
)
def test_an_engine_that_fails_is_one_line(
    own: Path, engine: Callable[..., Changed], where: str, what: object, words: str
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        if isinstance(what, Exception):
            raise what
        return what

    setattr(engine(same), where, fail)
    before = sorted(own.rglob("*"))
    with pytest.raises((EngineMissing, ExportRefused), match=words):
        build_model(own, "wide", "changed", "fp32")
    assert sorted(own.rglob("*")) == before


def test_a_package_that_cannot_be_imported_is_an_engine_that_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise ImportError("libcudart.so.12: cannot open shared object file")

    class Broken:
        name, load = "broken", staticmethod(fail)

    monkeypatch.setattr(registry, "entry_points", lambda **_: [Broken])
    with pytest.raises(EngineMissing, match="'broken' cannot be loaded: ImportError: libcudart"):
        registry.find_provider("broken")
    with pytest.raises(NotFound, match="engine 'other' is not installed here; there: .*, broken"):
        registry.find_provider("other")


def test_what_goes_on_after_another_default_is_pinned(
    own: Path, engine: Callable[..., Changed]
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

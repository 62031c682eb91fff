"""Entries that somebody made to do harm: their manifests' seals are right, what they say is not."""

import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentry.cli.main import main
from latentry.contract.errors import EntryError, LatentryError
from latentry.serving.entries.goldens import GOLDEN_FILE
from latentry.serving.entries.manifests import BUILD_JSON, BUILDS, FP32, MODEL_JSON, RECORD_JSON
from latentry.serving.entries.repository import list_entries, newest_entries
from latentry.serving.entries.verification import verify_entry
from latentry.serving.runtime.generator import load_generator
from latentry.serving.runtime.local import LocalTransport

SEAL = b',\n  "sha256": "'
EVIL = "\x1b]0;owned\x07\x9b31m\u202e"


@pytest.fixture
def own(repository: Path, tmp_path: Path) -> Path:
    """Return a repository of one entry, which may be damaged."""
    shutil.copytree(repository / "digits", tmp_path / "models" / "digits")
    return tmp_path / "models"


def paths(own: Path) -> dict[str, Path]:
    """Return where the three JSON files of the entry lie, by what they are about."""
    folder = own / "digits" / "1"
    return {
        "model": folder / MODEL_JSON,
        "record": folder / RECORD_JSON,
        "build": folder / BUILDS / FP32 / BUILD_JSON,
    }


def place(own: Path, name: str) -> Path:
    """Return where a file of the entry lies."""
    folder = own / "digits" / "1"
    inside = name in ("generator.onnx", GOLDEN_FILE, BUILD_JSON)
    return (folder / BUILDS / FP32 if inside else folder) / name


def seal(path: Path, facts: Any) -> None:
    """Write a file of any content whose seal is right."""
    text = facts if isinstance(facts, str) else json.dumps(facts, indent=2)
    head = text.removesuffix("\n}").encode()
    path.write_bytes(head + SEAL + hashlib.sha256(head).hexdigest().encode() + b'"\n}\n')


def reseal(own: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what the three JSON files say, so that they fit together and their seals are right."""
    facts = {about: json.loads(path.read_bytes()) for about, path in paths(own).items()}
    change(facts)
    text = json.dumps(facts["model"], indent=2).encode()
    paths(own)["model"].write_bytes(text)
    for about in ("record", "build"):
        facts[about].pop("sha256", None)
        facts[about]["model"] = hashlib.sha256(text).hexdigest()
        seal(paths(own)[about], facts[about])


def put(own: Path, name: str, data: bytes) -> None:
    """Put another file into the build, with a record that is right about it."""
    place(own, name).write_bytes(data)
    record = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    reseal(own, lambda facts: facts["build"]["files"].update({name: record}))


def refusal(own: Path) -> str:
    """Return why the entry is refused, by all who read it; each before anything is drawn."""

    def read_alone() -> None:
        for entry in newest_entries(own):
            verify_entry(entry)

    texts = set()
    for read in (read_alone, lambda: LocalTransport(own)):
        with pytest.raises(LatentryError) as caught:
            read()
        texts.add(str(caught.value))
    (text,) = texts
    assert len(text) < 4000
    return text


# --- goldens ------------------------------------------------------------------------------------


def npz(**members: bytes | None) -> bytes:
    """Return goldens in which members are of another kind; None leaves one out."""
    everything = {
        "inputs.seed": npy_of(np.arange(8)[:, None]),
        "inputs.class_label": npy_of(np.arange(8)[:, None]),
        "outputs.image": npy_of(np.zeros((8, 32, 32, 1), np.uint8)),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**everything, **members}.items():
            if data is not None:
                archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def npy_of(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def header(*shape: int, dtype: str = "|u1") -> str:
    return repr({"descr": dtype, "fortran_order": False, "shape": shape})


def images(data: Any) -> bytes:
    return npz(**{"outputs.image": data if isinstance(data, bytes) else npy_of(data)})


def inputs(**arrays: Any) -> bytes:
    return npz(**{f"inputs.{name}": npy_of(array) for name, array in arrays.items()})


GOLDENS = {
    "empty": images(np.zeros((0, 32, 32, 1), np.uint8)),
    "too few": images(np.zeros((7, 32, 32, 1), np.uint8)),
    "another shape": images(np.zeros((8, 32, 32, 3), np.uint8)),
    "another dtype": images(np.zeros((8, 32, 32, 1), np.float32)),
    "objects": images(npy(header(8, 32, 32, 1, dtype="|O"), b"cos\nsystem\n(S'true'\ntR.")),
    "no zip": b"no zip at all",
    "no bytes": b"",
    "no output": npz(**{"outputs.image": None, "outputs.pictures": b""}),
    "no input": npz(**{"inputs.class_label": None}),
    "too few inputs": inputs(class_label=np.zeros((7, 1), np.int64)),
    "inputs of another shape": inputs(class_label=np.zeros((8, 2), np.int64)),
    "inputs of another dtype": inputs(seed=np.zeros((8, 1), np.float64)),
    "objects for inputs": npz(
        **{"inputs.seed": npy(header(8, 1, dtype="|O"), b"cos\nsystem\n(S'true'\ntR.")}
    ),
    "no npy": images(b"PK"),
    "less than it says": images(npy(header(8, 32, 32, 1), b"12")),
    "more than it says": images(npy(header(8, 32, 32, 1), bytes(8 * 32 * 32 + 1))),
    "an absurd shape": images(npy(header(2**40, 2**40, 2**40, 2**40))),
    "a negative shape": images(npy(header(-1, 32, 32, 1))),
    "brackets": images(npy("(" * 5000)),
    "minus signs": images(npy("-" * 9000 + "1")),
    "no header": images(b"\x93NUMPY\x01\x00\xff\xff"),
}


def test_goldens_as_they_should_be_are_taken(own: Path) -> None:
    put(own, GOLDEN_FILE, npz())
    verify_entry(newest_entries(own)[0])


@pytest.mark.parametrize("name", GOLDENS)
def test_goldens_of_another_kind_are_refused_before_anything_starts(own: Path, name: str) -> None:
    put(own, GOLDEN_FILE, GOLDENS[name])
    assert "goldens.npz holds no goldens (" in refusal(own)
    assert main(["models", "--repository", str(own)]) == 1


@pytest.mark.parametrize("text", [header(8, 32, 32, 1), header(4 * 2**30)])
@pytest.mark.parametrize("member", ["outputs.image", "inputs.seed"])
def test_goldens_that_open_to_gigabytes_are_not_opened(own: Path, member: str, text: str) -> None:
    buffer = io.BytesIO(npz(**{member: None}))
    with (
        zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open(f"{member}.npy", "w", force_zip64=True) as opened,
    ):
        opened.write(npy(text))
        block = bytes(2**24)
        for _ in range(16):
            opened.write(block)
    put(own, GOLDEN_FILE, buffer.getvalue())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "goldens.npz holds no goldens (" in refusal(own)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("seed", [*range(7), -1], "seed in row 7 is -1; a seed is an integer from 0 to"),
        ("class_label", [*range(7), 10], "class_label in row 7 is 10; it takes an integer from 0"),
    ],
)
def test_goldens_of_inputs_that_the_generator_refuses_are_refused(
    own: Path, name: str, values: list[int], said: str
) -> None:
    put(own, GOLDEN_FILE, inputs(**{name: np.array(values)[:, None]}))
    text = refusal(own)
    assert "goldens.npz asks for what the spec refuses: " in text
    assert said in text
    assert "export again" in text


LARGE = {"name": "a", "kind": "tensor", "shape": [1024, 1024, 64]}


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_a_spec_of_terabytes_makes_nobody_take_them(own: Path, side: str) -> None:
    def change(facts: dict[str, Any]) -> None:
        spec, names = facts["model"]["spec"], [f"a{n}" for n in range(60)]
        if side == "outputs":
            spec["outputs"] += [{**LARGE, "name": name} for name in names]
        else:
            shape = {"kind": "latent", "shape": [4096, 4096], "distribution": "none"}
            spec["inputs"] += [{**shape, "name": name} for name in names]
        facts["build"]["goldens"]["count"] = 64

    reseal(own, change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "goldens.npz should hold " in refusal(own)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


# --- JSON files -------------------------------------------------------------------------------

FILE = {"sha256": "0" * 64, "size": 1}
CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "no goldens": ("build", lambda m: m["goldens"].update(count=0)),
    "many goldens": ("build", lambda m: m["goldens"].update(count=65)),
    "nobody's goldens": ("build", lambda m: m["goldens"].pop("engine_class")),
    "no parity": ("build", lambda m: m.update(parity={})),
    "parity of another kind": ("build", lambda m: m.update(parity=[1])),
    "no differences": ("build", lambda m: m["parity"].update(differences={})),
    "differences of another kind": ("build", lambda m: m["parity"].update(differences=[1])),
    "NaN for a difference": (
        "build",
        lambda m: m["parity"].update(differences={"image.sample": float("nan")}),
    ),
    "text for a difference": (
        "build",
        lambda m: m["parity"].update(differences={"image.sample": "x"}),
    ),
    "NaN for the speed": ("build", lambda m: m.update(speed=float("nan"))),
    "no tolerance": ("build", lambda m: m["parity"].pop("tolerance")),
    "no batch sizes": ("build", lambda m: m["parity"].update(batch_sizes=[])),
    "batch sizes of texts": ("build", lambda m: m["parity"].update(batch_sizes=["many"])),
    "a huge batch": ("build", lambda m: m["parity"].update(batch_sizes=[10**30])),
    "an engine with a way up": ("build", lambda m: m.update(engine="../../x")),
    "a precision of two words": ("build", lambda m: m.update(precision="fp32-int8")),
    "a network twice": ("build", lambda m: m["files"].update({"generator.onnx": FILE})),
    "the build itself": ("build", lambda m: m["files"].update({BUILD_JSON: FILE})),
    "an artefact elsewhere": ("build", lambda m: m["artefacts"].update({"/etc/passwd": FILE})),
    "many findings": ("build", lambda m: m.update(goldens={str(n): n for n in range(20_000)})),
    "an absolute path": ("record", lambda m: m["files"].update({"/etc/passwd": FILE})),
    "a way up": ("record", lambda m: m["files"].update({"../../secret": FILE})),
    "a way down": ("record", lambda m: m["files"].update({"folder/file": FILE})),
    "the folder": ("record", lambda m: m["files"].update({".": FILE})),
    "no name": ("record", lambda m: m["files"].update({"": FILE})),
    "a NUL": ("record", lambda m: m["files"].update({"a\0b": FILE})),
    "the record itself": ("record", lambda m: m["files"].update({RECORD_JSON: FILE})),
    "the builds": ("record", lambda m: m["files"].update({BUILDS: FILE})),
    "deep": ("record", lambda m: m.update(tools={"x": json.loads("[" * 400 + "]" * 400)})),
    "a long key": ("record", lambda m: m.update({"x" * 1_000_000: 1})),
    "no network": ("model", lambda m: m["networks"].clear()),
    "another network": ("model", lambda m: m["networks"].update({"/etc/passwd": FILE})),
    "a list for a table": ("model", lambda m: m.update(spec=[])),
    "a seed contract to come": ("model", lambda m: m.update(seed_contract=2)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_of_another_kind_is_one_line(
    own: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    about, change = CHANGES[name]
    reseal(own, lambda facts: change(facts[about]))
    text = refusal(own)
    assert text.startswith(f"{paths(own)[about]} is not understood: ")
    assert "\n" not in text
    # The hash of no file outside is told.
    assert hashlib.sha256(Path("/etc/passwd").read_bytes()).hexdigest() not in text
    assert main(["models", "--repository", str(own)]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_a_build_of_another_network_or_name_is_refused(own: Path) -> None:
    reseal(own, lambda facts: facts["build"]["artefacts"]["generator.onnx"].update(size=1))
    assert f"{BUILD_JSON} names other networks than {own}/digits/1/{MODEL_JSON}" in refusal(own)
    reseal(own, lambda facts: facts["build"].update(engine="other"))
    assert f"{BUILD_JSON} is of the build other-fp32; remove its folder" in refusal(own)


@pytest.mark.parametrize("text", ["other-int8", "../../x", "", "x" * 300])
def test_a_default_that_is_no_build_is_refused(own: Path, text: str) -> None:
    (own / "digits" / "1" / "default_build").write_text(text)
    said = "cannot be read" if len(text) > 200 else "there: onnxruntime-fp32; remove it"
    assert said in refusal(own)


@pytest.mark.parametrize("about", ["model", "record", "build"])
def test_a_file_that_is_too_deep_or_too_large_is_refused(own: Path, about: str) -> None:
    path = paths(own)[about]
    seal(path, "[" * 100_000)
    assert "is not understood" in refusal(own)
    with path.open("r+b") as file:
        file.truncate(2**40)
    assert f"{path.name} cannot be read (it is larger than " in refusal(own)


def test_texts_of_a_manifest_are_escaped_wherever_they_are_printed(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")

    def change(facts: dict[str, Any]) -> None:
        for about in ("record", "build"):
            facts[about].update(host=EVIL, created=EVIL + "[red]x[/]", tools={EVIL: EVIL})
        facts["record"].update(architecture=EVIL)
        classes = facts["model"]["spec"]["inputs"][1]["classes"]
        classes[:2] = [EVIL, "[bold]two[/]\nlines"]

    reseal(own, change)
    assert main(["models", "--repository", str(own)]) == 0
    shown = capsys.readouterr().out
    assert r"0=\x1b]0;owned\x07\x9b31m\u202e" in shown
    assert "1=[bold]two[/] lines" in shown  # shown as it is, not obeyed
    assert main(["models", "--repository", str(own), "--json"]) == 0
    listed = capsys.readouterr().out
    assert json.loads(listed)["entries"][0]["created"] == EVIL + "[red]x[/]"
    (own / "digits" / "1" / f"x{EVIL}").write_bytes(b"")
    assert main(["models", "--repository", str(own)]) == 1
    damaged = capsys.readouterr().out
    reseal(own, lambda facts: facts["record"].update({EVIL: 1}))
    assert main(["serve", "--repository", str(own)]) == 1
    refused = capsys.readouterr().err
    for text in (shown, listed, damaged, refused):
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(text)


# --- files that are none ------------------------------------------------------------------------


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(2**40)


@pytest.mark.parametrize("make", [fifo, endless, loop, folder])
@pytest.mark.parametrize(
    "name",
    [MODEL_JSON, RECORD_JSON, BUILD_JSON, "generator.onnx", GOLDEN_FILE, "perf_input.json"],
)
def test_what_is_no_regular_file_is_refused_and_nothing_waits(
    own: Path, name: str, make: Callable[[Path], None]
) -> None:
    entry = newest_entries(own)[0]
    make(place(own, name))
    if name == MODEL_JSON and make in (loop,):  # as if there were none
        assert list_entries(own)[0] == []
        return
    assert f"{place(own, name)} cannot be read" in refusal(own)
    if name == "generator.onnx":
        with pytest.raises(EntryError, match="cannot be read"):
            load_generator(entry, lambda *_: pytest.fail("loaded"))


@pytest.mark.parametrize("name", ["generator.onnx", GOLDEN_FILE, "perf_input.json"])
def test_a_file_of_another_size_is_not_read(own: Path, name: str) -> None:
    entry = newest_entries(own)[0]
    huge(place(own, name))
    assert f"{place(own, name)} was changed: it has 1,099,511,627,776 bytes" in refusal(own)
    if name == "generator.onnx":
        with pytest.raises(EntryError, match="larger than"):
            load_generator(entry, lambda *_: pytest.fail("loaded"))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        (".DS_Store", "delete it"),
        ("Thumbs.db", "delete it"),
        (".model.json.swp", "delete it"),
        ("generator.onnx~", "delete it"),
        (".nfs000000000a1b2c3d00000001", "some process has it open; it goes when that ends"),
    ],
)
def test_litter_is_named_with_what_to_do_and_no_new_export_is_advised(
    own: Path, name: str, advice: str
) -> None:
    (own / "digits" / "1" / name).write_bytes(b"litter")
    expected = f"{own / 'digits' / '1' / name} does not belong to the entry; {advice}"
    assert refusal(own) == expected
    (own / "digits" / "1" / name).unlink()
    verify_entry(newest_entries(own)[0])


def test_of_much_litter_some_is_named(own: Path) -> None:
    for number in range(50):
        (own / "digits" / "1" / f"{number:02d}~").write_bytes(b"litter")
    (own / "digits" / "1" / "model.py").unlink()
    lines = refusal(own).splitlines()
    assert lines[0].endswith("model.py is missing")
    assert len(lines) == 22
    assert lines[20:] == ["and 31 more", "export digits again, or `latentry models remove` it"]


# --- other files that commands are given ---------------------------------------------------------


@pytest.mark.parametrize("kind", ["fifo", "/dev/zero", "deep", "list", "numbers"])
def test_a_report_of_another_kind_is_one_line(
    own: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(kind) if kind.startswith("/") else tmp_path / "report.json"
    digest = newest_entries(own)[0].build.digest
    if kind == "fifo":
        os.mkfifo(path)
    elif not kind.startswith("/"):
        values = {"deep": None, "list": [1], "numbers": 7}
        slo = {"slo": {"recommended": values[kind]}, "model": "digits", "build_digest": digest}
        path.write_text("[" * 100_000 if kind == "deep" else json.dumps(slo))
    command = ["models", "tune", "digits", "--from", str(path), "--repository", str(own)]
    assert main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path} ")


def test_a_network_reads_no_file_but_itself(tmp_path: Path) -> None:
    """Not even in the current folder, where ONNX Runtime looks for those of a network in memory."""
    program = """
import sys, onnx
from onnx import TensorProto, helper
from latentry.serving.runtime.engines.onnxruntime_cpu import OnnxRuntimeEngine
weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
weights.data_location = TensorProto.EXTERNAL
weights.external_data.add(key="location", value=sys.argv[1])
ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy"]
node = helper.make_node("Add", ["x", "w"], ["y"])
graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weights])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
try:
    OnnxRuntimeEngine(model.SerializeToString())
except Exception as error:
    sys.exit("xternal data path" not in str(error))
sys.exit(2)
"""
    pytest.importorskip("onnx", reason="writing networks needs the extra [export]")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "weights").write_bytes(bytes(16))
    (tmp_path / "secret").write_bytes(bytes(16))
    os.mkfifo(tmp_path / "here" / "fifo")
    for location in ("weights", "fifo", "../secret", str(tmp_path / "secret")):
        done = subprocess.run(
            [sys.executable, "-c", program, location],
            cwd=tmp_path / "here", check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, location

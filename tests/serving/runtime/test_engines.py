import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from latentry.contract.kinds.latent import LatentInput
from latentry.contract.seeds import LatentDrawer
from latentry.contract.wire import Arrays
from latentry.serving.entries.manifests import RowMode
from latentry.serving.entries.repository import newest_entries
from latentry.serving.runtime.engines.engine_class import engine_class
from latentry.serving.runtime.engines.onnxruntime_cpu import OnnxRuntimeEngine
from latentry.serving.runtime.engines.openvino_cpu import OpenVinoEngine

OUTPUTS = ["image", "image.sample", "watch"]


@pytest.fixture(scope="module")
def network(repository: Path) -> Path:
    (entry,) = newest_entries(repository, ("textures",))
    return entry.build_folder / "generator.onnx"


@pytest.mark.parametrize("threads", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 16])
def test_threads_change_no_bit(network: Path, threads: int, rows: int) -> None:
    z = LatentDrawer(LatentInput(name="z", shape=(64,))).draw(range(rows))
    whole = OnnxRuntimeEngine(network, threads=1).run({"z": z}, OUTPUTS)
    cut = OnnxRuntimeEngine(network.read_bytes(), threads=threads).run({"z": z}, OUTPUTS)
    assert list(cut) == OUTPUTS
    for name in OUTPUTS:
        np.testing.assert_array_equal(cut[name], whole[name])


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_single_rows_are_runs_of_their_own(network: Path, threads: int, rows: int) -> None:
    z = LatentDrawer(LatentInput(name="z", shape=(64,))).draw(range(rows))
    engine = OnnxRuntimeEngine(network, threads=threads, rows="single")
    drawn = engine.run({"z": z}, OUTPUTS)
    assert list(drawn) == OUTPUTS
    for row in range(rows):
        alone = engine.run({"z": z[row : row + 1]}, OUTPUTS)
        for name in OUTPUTS:
            np.testing.assert_array_equal(drawn[name][row], alone[name][0])


def test_openvino_draws_on_after_a_run_that_failed(network: Path) -> None:
    z = LatentDrawer(LatentInput(name="z", shape=(64,))).draw(range(5))
    engine = OpenVinoEngine(network.read_bytes(), "fp32", threads=2)
    before = engine.run({"z": z}, ["image"])["image"]
    with pytest.raises(RuntimeError):
        engine.run({"z": z[:, :7]}, ["image"])
    np.testing.assert_array_equal(engine.run({"z": z}, ["image"])["image"], before)


@pytest.mark.parametrize("rows", ["batch", "single"])
def test_openvino_draws_the_same_whatever_the_threads_and_callers(
    network: Path, rows: RowMode
) -> None:
    z = LatentDrawer(LatentInput(name="z", shape=(64,))).draw(range(9))
    one, many = (
        OpenVinoEngine(network.read_bytes(), "fp32", threads=threads, rows=rows)
        for threads in (1, 3)
    )
    expected = one.run({"z": z}, OUTPUTS)
    with ThreadPoolExecutor(4) as callers:
        for drawn in callers.map(lambda _: many.run({"z": z}, OUTPUTS), range(12)):
            for name in OUTPUTS:
                np.testing.assert_array_equal(drawn[name], expected[name])


def rounding_by_place() -> bytes:
    """Return a network that rounds a row by its place in the batch, as some operators do."""
    graph = onnx.parser.parse_graph(
        """
        by_place (float[batch, 1] z) => (float[batch, 1] sample)
        <int64 axis = {0}>
        {
            ones = Sub (z, z)
            one = Exp (ones)
            place = CumSum (one, axis)
            sample = Mul (z, place)
        }
        """
    )
    opset = onnx.helper.make_opsetid("", 18)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    return bytes(model.SerializeToString())


def test_what_depends_on_the_batch_does_not_in_single_rows() -> None:
    z = np.arange(1, 8, dtype=np.float32)[:, None]
    together = OnnxRuntimeEngine(rounding_by_place(), threads=1)
    assert (together.run({"z": z}, ["sample"])["sample"] != z).any()
    alone = OnnxRuntimeEngine(rounding_by_place(), threads=2, rows="single")
    np.testing.assert_array_equal(alone.run({"z": z}, ["sample"])["sample"], z)


def test_an_error_in_a_single_row_is_the_engines_own() -> None:
    engine = OnnxRuntimeEngine(rounding_by_place(), threads=2, rows="single")
    with pytest.raises(Exception, match="Got invalid dimensions"):
        engine.run({"z": np.zeros((5, 2), np.float32)}, ["sample"])


def test_rows_are_shared_out_among_the_threads(
    network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(3)

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc]  # untyped
        def run(self, names: list[str], feed: Arrays) -> Any:
            together.wait(30)
            return super().run(names, feed)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    z = LatentDrawer(LatentInput(name="z", shape=(64,))).draw(range(7))
    assert len(OnnxRuntimeEngine(network, threads=3).run({"z": z}, ["image"])["image"]) == 7


def test_the_engine_class_names_what_the_bits_depend_on() -> None:
    name, version, precision, level = engine_class().split("-")
    assert (name, precision) == ("onnxruntime", "fp32")
    assert version.count(".") == 2
    assert level


# The kernel ends a process of this at its first socket of the Internet, whichever library asks for
# it: prctl(PR_SET_NO_NEW_PRIVS), then PR_SET_SECCOMP with a filter of the call and its family.
NO_INTERNET = """
import ctypes, platform, socket, struct
SOCKET = {"x86_64": 41, "aarch64": 198}[platform.machine()]
LOAD, IF_EQUAL, RETURN, KILL, ALLOW = 0x20, 0x15, 0x06, 0x80000000, 0x7FFF0000
NUMBER, FAMILY = 0, 16  # where they are in the kernel's record of a call
code = b"".join(
    struct.pack("HBBI", *step)
    for step in (
        (LOAD, 0, 0, NUMBER),
        (IF_EQUAL, 0, 4, SOCKET),
        (LOAD, 0, 0, FAMILY),
        (IF_EQUAL, 1, 0, socket.AF_INET),
        (IF_EQUAL, 0, 1, socket.AF_INET6),
        (RETURN, 0, 0, KILL),
        (RETURN, 0, 0, ALLOW),
    )
)
buffer = ctypes.create_string_buffer(code, len(code))
program = ctypes.create_string_buffer(
    struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
)
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program, 0, 0) == 0, ctypes.get_errno()
"""
DRAW = """
import sys
import numpy as np
from latentry.serving.runtime.engines.onnxruntime_cpu import OnnxRuntimeEngine
engine = OnnxRuntimeEngine(open(sys.argv[1], "rb").read(), threads=2)
engine.run({"z": np.zeros((4, 64), np.float32)}, ["image"])
"""


DRAW_BY_OPENVINO = """
import sys
import numpy as np
from latentry.serving.runtime.engines.openvino_cpu import OpenVinoEngine
from latentry.serving.runtime.engines.quantization import quantized
z = np.random.RandomState(0).randn(4, 64).astype(np.float32)
network = quantized(open(sys.argv[1], "rb").read(), lambda count: {"z": z})
engine = OpenVinoEngine(network, "int8", threads=2)
drawn = engine.run({"z": z}, ["image"])["image"]
assert drawn.shape == (4, 64, 64, 3)
"""


def run_without_internet(code: str, network: Path, home: Path) -> int:
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home)}
    command = [sys.executable, "-c", NO_INTERNET + code, str(network)]
    return subprocess.run(command, env=environment, check=False).returncode


@pytest.mark.parametrize("code", [DRAW, DRAW_BY_OPENVINO])
def test_no_engine_tells_anybody_anything(code: str, network: Path, tmp_path: Path) -> None:
    assert run_without_internet(code, network, tmp_path / "home") == 0
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
def test_who_told_somebody_would_be_caught(family: str, network: Path, tmp_path: Path) -> None:
    code = f"socket.socket(socket.{family}, socket.SOCK_DGRAM)"
    assert run_without_internet(code, network, tmp_path / "home") == -signal.SIGSYS

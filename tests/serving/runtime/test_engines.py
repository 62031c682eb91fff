from pathlib import Path

import numpy as np
import pytest

from latentry.contract.seeds import LatentDrawer
from latentry.serving.entries.engine_class import engine_class
from latentry.serving.entries.repository import newest_entries
from latentry.serving.runtime.engines.onnxruntime_cpu import OnnxRuntimeEngine

OUTPUTS = ["image", "sample", "peak"]


@pytest.fixture(scope="module")
def network(repository: Path) -> Path:
    (entry,) = newest_entries(repository, ("textures",))
    return entry.folder / "generator.onnx"


@pytest.mark.parametrize("threads", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 16])
def test_threads_change_no_bit(network: Path, threads: int, rows: int) -> None:
    z = LatentDrawer(64).draw(range(rows))
    whole = OnnxRuntimeEngine(network, threads=1).run({"z": z}, OUTPUTS)
    cut = OnnxRuntimeEngine(network.read_bytes(), threads=threads).run({"z": z}, OUTPUTS)
    assert list(cut) == OUTPUTS
    for name in OUTPUTS:
        np.testing.assert_array_equal(cut[name], whole[name])


def test_the_engine_class_names_what_the_bits_depend_on() -> None:
    name, version, precision, level = engine_class().split("-")
    assert (name, precision) == ("onnxruntime", "fp32")
    assert version.count(".") == 2
    assert level

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs.judging import HOOKS, Digits, Write
from numpy.typing import NDArray


@pytest.fixture(scope="module")
def digits() -> Digits:
    """Return scikit-learn's real digits: uint8 [N, 8, 8, 1], and their labels."""
    datasets = pytest.importorskip("sklearn.datasets", reason="needs the extra [train]")
    data = datasets.load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)[..., None]
    return images, data.target.astype(np.int64)


@pytest.fixture(scope="module")
def weights(digits: Digits) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a logistic regression on two thirds of them: [64, 10] and [10]."""
    from sklearn.linear_model import LogisticRegression

    images, labels = digits
    model = LogisticRegression(max_iter=2000, C=0.5)
    model.fit(images[:1200].reshape(1200, -1) / 255, labels[:1200])
    return model.coef_.T.astype(np.float32), model.intercept_.astype(np.float32)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("networks")


@pytest.fixture(scope="module")
def write(networks: Path, weights: tuple[NDArray[np.float32], NDArray[np.float32]]) -> Write:
    """Return what writes an ONNX classifier, with an input and outputs of any kind."""
    pytest.importorskip("onnx", reason="writing networks needs the extra [export]")
    from onnx import TensorProto, helper, numpy_helper

    def write(
        name: str,
        shape: Sequence[Any] = ("N", 1, 8, 8),
        outputs: Sequence[str] = ("logits",),
        inputs: Sequence[str] = ("image",),
    ) -> Path:
        nodes = []
        x = inputs[0]
        if len(shape) == 4 and 3 in shape:
            axis = shape.index(3)
            nodes.append(helper.make_node("ReduceMean", [x, "axis"], ["grey"], keepdims=1))
            x = "grey"
        nodes += [
            helper.make_node("Flatten", [x], ["flat"]),
            helper.make_node("Gemm", ["flat", "w", "b"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
            helper.make_node("ArgMax", ["logits"], ["labels"], axis=1, keepdims=0),
            helper.make_node("ArgMax", ["logits"], ["column"], axis=1, keepdims=1),
            helper.make_node("ReduceMax", ["probabilities", "last"], ["one"], keepdims=1),
        ]
        last = np.array([1], np.int64)
        arrays: dict[str, NDArray[Any]] = {"w": weights[0], "b": weights[1], "last": last}
        if x == "grey":
            arrays["axis"] = np.array([axis], np.int64)
        kinds = dict.fromkeys(("labels", "column"), TensorProto.INT64)
        shapes = {"labels": [shape[0]], "column": [shape[0], 1], "one": [shape[0], 1]}
        graph = helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info(i, TensorProto.FLOAT, shape) for i in inputs],
            [
                helper.make_tensor_value_info(
                    o, kinds.get(o, TensorProto.FLOAT), shapes.get(o, [shape[0], 10])
                )
                for o in outputs
            ],
            [numpy_helper.from_array(array, key) for key, array in arrays.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
        model.ir_version = 9
        path = networks / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return write


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a module of hooks into the folder that is made the current one."""
    name = f"hooks_{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"
    (tmp_path / f"{name}.py").write_text(HOOKS)
    (tmp_path / "broken_hooks.py").write_text("def (")
    (tmp_path / "raising_hooks.py").write_text("import math\nmath.sqrt(-1)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return name

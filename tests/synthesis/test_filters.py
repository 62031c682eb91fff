import hashlib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from latentry.contract.errors import BadRequest, NotFound
from latentry.synthesis.filters.filters import FilterOptions, file_hashes
from latentry.synthesis.filters.judging import Candidates, Filter
from latentry.synthesis.filters.network import NetworkOptions, load_network
from latentry.synthesis.sinks.sample import pixel_sha256

onnx = pytest.importorskip("onnx", reason="writing networks needs the extra [export]")
sklearn_datasets = pytest.importorskip("sklearn.datasets", reason="needs the extra [train]")

OPTIONS: TypeAdapter[Any] = TypeAdapter(FilterOptions)


def load(kind: str, **options: Any) -> Filter:
    made: Filter = OPTIONS.validate_python({"kind": kind, **options}).load()
    return made


def batch_of(images: np.ndarray, labels: Sequence[int] | None = None) -> Candidates:
    return Candidates(
        images=images,
        seeds=np.arange(len(images), dtype=np.int64),
        controls={} if labels is None else {"class_label": np.array(labels, np.int64)},
        sha256=[pixel_sha256(image) for image in images],
        seen=set(),
    )


def part_of(batch: Candidates, part: slice) -> Candidates:
    controls = {role: values[part] for role, values in batch.controls.items()}
    return Candidates(
        batch.images[part], batch.seeds[part], controls, batch.sha256[part], batch.seen
    )


# --- constant, duplicates -----------------------------------------------------------------------


def test_constant_images_are_rejected() -> None:
    images = np.zeros((5, 4, 3, 3), np.uint8)
    images[1] = [10, 200, 30]  # one colour all over
    images[2, 0, 0, 1] = 2
    images[3, 0, 0, 0], images[3, 1, 1, 0] = 255, 253
    images[4, ..., 2] = 255
    images[4, 3, 2, 2] = 0
    batch = batch_of(images)
    assert load("constant").judge(batch) == ["constant", "constant", None, None, "constant"][:4] + [
        None
    ]
    within_two = ["constant", "constant", "constant", None, None]
    assert load("constant", tolerance=2).judge(batch) == within_two
    assert load("constant", tolerance=254).judge(batch)[3:] == [None, None]


def test_duplicates_are_those_after_the_first_in_any_batch() -> None:
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    judge = load("duplicates")
    first, second = batch_of(images[[0, 1, 0]]), batch_of(images[[2, 1]])
    assert judge.judge(first) == [None, None, "duplicate"]
    assert judge.judge(replace(second, seen=first.seen)) == [None, "duplicate"]
    assert judge.judge(batch_of(images)) == [None] * 4  # each shard begins anew


# --- a real classifier --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's real digits: uint8 [N, 8, 8, 1], and their labels."""
    data = sklearn_datasets.load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)[..., None]
    return images, data.target.astype(np.int64)


@pytest.fixture(scope="module")
def weights(digits: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return a logistic regression on two thirds of them: [64, 10] and [10]."""
    from sklearn.linear_model import LogisticRegression

    images, labels = digits
    model = LogisticRegression(max_iter=2000, C=0.5)
    model.fit(images[:1200].reshape(1200, -1) / 255, labels[:1200])
    return model.coef_.T.astype(np.float32), model.intercept_.astype(np.float32)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("networks")


Write = Callable[..., Path]


@pytest.fixture(scope="module")
def write(networks: Path, weights: tuple[np.ndarray, np.ndarray]) -> Write:
    """Return what writes an ONNX classifier, with an input and outputs of any kind."""
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
            helper.make_node("ReduceMax", ["probabilities"], ["one"], keepdims=1),
        ]
        arrays = {"w": weights[0], "b": weights[1]}
        if x == "grey":
            arrays["axis"] = np.array([axis], np.int64)
        nodes[-1] = helper.make_node("ReduceMax", ["probabilities", "last"], ["one"], keepdims=1)
        arrays["last"] = np.array([1], np.int64)
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


def agreement(verdicts: Sequence[str | None]) -> float:
    return sum(verdict is None for verdict in verdicts) / len(verdicts)


def test_real_digits_are_read_and_wrong_labels_found(
    digits: tuple[np.ndarray, np.ndarray], write: Write
) -> None:
    images, labels = digits[0][1200:], digits[1][1200:]
    judge = load("classifier", file=write("plain"), scale="zero_to_one")
    verdicts = judge.judge(batch_of(images, labels))
    assert agreement(verdicts) > 0.9
    wrong = judge.judge(batch_of(images, (labels + 1) % 10))
    assert agreement(wrong) < 0.03
    assert {verdict for verdict in wrong if verdict} == {f"classified as {n}" for n in range(10)}


def enlarged(images: np.ndarray, size: int) -> np.ndarray:
    return np.stack(
        [np.asarray(Image.fromarray(image[..., 0]).resize((size, size))) for image in images]
    )[..., None]


@pytest.mark.parametrize(
    ("name", "shape", "outputs", "options"),
    [
        ("probabilities", ("N", 1, 8, 8), ("probabilities",), {}),
        ("labels", ("N", 1, 8, 8), ("labels", "probabilities"), {}),  # as scikit-learn's are
        ("column", ("N", 1, 8, 8), ("column",), {}),
        ("chosen", ("N", 1, 8, 8), ("labels", "logits"), {"output": "logits"}),
        ("channels-last", ("N", 8, 8, 1), ("logits",), {}),
        ("grey-as-rgb", ("N", 3, 8, 8), ("logits",), {}),
        ("rgb-last", ("N", 8, 8, 3), ("logits",), {}),
        ("free", ("N", "C", "H", "W"), ("logits",), {}),
        ("three-means", ("N", 3, 8, 8), ("logits",), {"mean": [0, 0, 0], "std": [1, 1, 1]}),
    ],
)
def test_a_classifier_of_any_make_gives_the_same_verdicts(
    digits: tuple[np.ndarray, np.ndarray],
    write: Write,
    name: str,
    shape: Sequence[Any],
    outputs: Sequence[str],
    options: dict[str, Any],
) -> None:
    batch = batch_of(digits[0][1200:1300], digits[1][1200:1300])
    expected = load("classifier", file=write("plain"), scale="zero_to_one").judge(batch)
    file = write(name, shape, outputs)
    assert load("classifier", file=file, scale="zero_to_one", **options).judge(batch) == expected


def test_images_of_another_size_or_colour_are_fitted_to_the_network(
    digits: tuple[np.ndarray, np.ndarray], write: Write
) -> None:
    images, labels = enlarged(digits[0][1200:1400], 28), digits[1][1200:1400]
    judge = load("classifier", file=write("plain"), scale="zero_to_one")
    assert agreement(judge.judge(batch_of(images, labels))) > 0.85
    rgb = np.repeat(digits[0][1200:1400], 3, axis=3)
    grey = judge.judge(batch_of(digits[0][1200:1400], labels))
    assert judge.judge(batch_of(rgb, labels)) == grey


def test_height_and_width_are_not_mixed_up(write: Write) -> None:
    images = np.random.RandomState(5).randint(0, 256, (3, 20, 30, 1)).astype(np.uint8)
    small = [Image.fromarray(i[..., 0]).resize((16, 4), Image.Resampling.BILINEAR) for i in images]
    for name, shape in (("low", ("N", 1, 4, 16)), ("low-last", ("N", 4, 16, 1))):
        network = load_network(NetworkOptions.model_validate({"file": write(name, shape)}))
        expected = network.run(np.stack([np.asarray(picture) for picture in small])[..., None])
        np.testing.assert_array_equal(network.run(images), expected)


@pytest.mark.parametrize(
    ("scale", "mean", "std"),
    [
        ("zero_to_255", [0.0], [255.0]),
        ("minus_one_to_one", [-1.0], [2.0]),
        ("zero_to_one", [0.5], [0.25]),
    ],
)
def test_scales_means_and_deviations_are_those_that_are_named(
    digits: tuple[np.ndarray, np.ndarray], write: Write, scale: str, mean: list[float], std: Any
) -> None:
    images = digits[0][:5]
    ratio = {"zero_to_255": 1.0, "minus_one_to_one": 2 / 255, "zero_to_one": 1 / 255}[scale]
    offset = -1 if scale == "minus_one_to_one" else 0
    expected = ((images * ratio + offset) - mean[0]) / std[0]
    options = {"file": write("plain"), "scale": scale, "mean": mean, "std": std}
    network = load_network(NetworkOptions.model_validate(options))
    plain = load_network(
        NetworkOptions.model_validate({"file": write("plain"), "scale": "zero_to_255"})
    )
    # A linear network tells its input: what is left without an image is its bias.
    zero = plain.run(np.zeros_like(images))
    slope = plain.run(images) - zero
    if expected.min() == 0:
        np.testing.assert_allclose(network.run(images) - zero, slope / 255, atol=1e-4)
    else:
        start = network.run(np.zeros_like(images))
        np.testing.assert_allclose(network.run(images) - start, slope * ratio / std[0], atol=1e-4)


@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_an_unsure_classifier_is_no_vote(
    digits: tuple[np.ndarray, np.ndarray], write: Write, output: str
) -> None:
    images, labels = digits[0][1200:1500], digits[1][1200:1500]
    file = write(f"both-{output}", outputs=(output,))
    network = load_network(NetworkOptions.model_validate({"file": file, "scale": "zero_to_one"}))
    values = network.run(images).astype(np.float64)
    if output == "logits":
        values = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
    judge = load("classifier", file=file, scale="zero_to_one", min_probability=0.9)
    verdicts = judge.judge(batch_of(images, labels))
    for verdict, label, row in zip(verdicts, labels, values, strict=True):
        if row.argmax() != label:
            assert verdict == f"classified as {row.argmax()}"
        else:
            assert verdict == (None if row.max() >= 0.9 else "classified with low probability")
    assert {None, "classified with low probability"} <= set(verdicts)


def test_outputs_may_have_other_labels(digits: tuple[np.ndarray, np.ndarray], write: Write) -> None:
    images, labels = digits[0][1200:1300], digits[1][1200:1300]
    plain = load("classifier", file=write("plain"), scale="zero_to_one")
    shifted = load("classifier", file=write("plain"), scale="zero_to_one", labels=[*range(10, 20)])
    expected = plain.judge(batch_of(images, labels))
    found = shifted.judge(batch_of(images, labels + 10))
    assert [verdict is None for verdict in found] == [verdict is None for verdict in expected]
    few = load("classifier", file=write("plain"), labels=[1, 2])
    with pytest.raises(BadRequest, match="has 10 outputs, the job names 2 labels"):
        few.judge(batch_of(images, labels))


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.integers(0, 100), max_size=6), st.sampled_from(["plain", "probabilities"]))
def test_verdicts_do_not_depend_on_how_a_batch_is_cut(
    digits: tuple[np.ndarray, np.ndarray], write: Write, cuts: list[int], name: str
) -> None:
    images = digits[0][1200:1300].copy()
    images[50:60] = images[:10]
    images[70] = 7
    batch = batch_of(images, digits[1][1200:1300])
    file = write(name, outputs=("logits" if name == "plain" else name,))
    kinds: list[dict[str, Any]] = [
        {"kind": "constant"},
        {"kind": "duplicates"},
        {"kind": "classifier", "file": file, "scale": "zero_to_one", "min_probability": 0.8},
    ]
    for options in kinds:
        whole, cut = load(**options), load(**options)
        parts = [slice(*pair) for pair in pairwise([0, *sorted(cuts), 100])]
        found = [
            v for part in parts if part.start < part.stop for v in cut.judge(part_of(batch, part))
        ]
        batch.seen.clear()
        assert found == whole.judge(batch)
        batch.seen.clear()


def test_one_row_decides_nothing_for_another(
    digits: tuple[np.ndarray, np.ndarray], write: Write
) -> None:
    """A batch with a row of logits that look like probabilities is judged as row by row."""
    from latentry.synthesis.filters.classifier import _probabilities

    rows = np.array([[0.25, 0.75], [3.0, -1.0], [0.5, 0.5], [0.499, 0.5005]])
    together = _probabilities(rows)
    np.testing.assert_array_equal(together, np.concatenate([_probabilities(r[None]) for r in rows]))
    assert together[0].tolist() == [0.25, 0.75]


def test_features_are_the_same_to_the_bit_however_they_are_cut(networks: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.RandomState(1)
    arrays = {
        "k": random.randn(16, 3, 3, 3).astype(np.float32),
        "w": random.randn(16 * 36, 24).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "features",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 24])],
        [numpy_helper.from_array(array, key) for key, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    (networks / "features.onnx").write_bytes(model.SerializeToString())
    options = NetworkOptions.model_validate({"file": networks / "features.onnx"})
    network = load_network(options)
    images = random.randint(0, 256, (75, 8, 8, 3)).astype(np.uint8)
    whole = network.run(images)
    assert whole.shape == (75, 24)
    for size in (1, 7, 32, 33):
        parts = [network.run(images[start : start + size]) for start in range(0, 75, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(load_network(options).run(images), whole)


@pytest.mark.parametrize(
    ("name", "make", "options", "words"),
    [
        (
            "two",
            {"inputs": ("image", "mask")},
            {},
            "it must take one batch of images, [N, C, H, W]",
        ),
        ("flat", {"shape": ("N", 64)}, {}, "it must take one batch of images, [N, C, H, W]"),
        ("frozen", {"shape": (1, 1, 8, 8)}, {}, "takes batches of 1 only; it must be free"),
        (
            "wide",
            {"shape": ("N", "C", "H", "W")},
            {"large": True},
            "takes no float32 [32, 1, 16, 16]: ",
        ),
        ("plain", {}, {"output": "scores"}, "has no output scores; it has ['logits']"),
        ("one", {"outputs": ("one",)}, {}, "a classifier gives a finite number for each class"),
        ("three", {}, {"mean": [0, 0, 0]}, "takes 1 channels; mean and std give 3 and 1 numbers"),
        (
            "sure",
            {"outputs": ("labels",)},
            {"min_probability": 0.5},
            "answers labels alone; for min_probability name its output of probabilities",
        ),
    ],
)
def test_a_network_that_is_none_of_ours_is_refused(
    digits: tuple[np.ndarray, np.ndarray],
    write: Write,
    name: str,
    make: dict[str, Any],
    options: dict[str, Any],
    words: str,
) -> None:
    file = write(name, **make)

    images = enlarged(digits[0][:3], 16) if options.pop("large", False) else digits[0][:3]

    def judge() -> None:
        load("classifier", file=file, **options).judge(batch_of(images, digits[1][:3]))

    with pytest.raises(BadRequest, match=re.escape(words)) as refusal:
        judge()
    assert f"{name}.onnx" in str(refusal.value)


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_text("not a network")
    with pytest.raises(BadRequest, match=r"ONNX Runtime cannot load .*net\.onnx: "):
        load("classifier", file=tmp_path / "net.onnx")
    with pytest.raises(ValidationError, match=r"gone\.onnx is no file; give the path of an ONNX"):
        load("classifier", file=tmp_path / "gone.onnx")


def test_a_classifier_needs_classes(digits: tuple[np.ndarray, np.ndarray], write: Write) -> None:
    judge = load("classifier", file=write("plain"))
    with pytest.raises(BadRequest, match="the filter classifier needs samples of a class"):
        judge.judge(batch_of(digits[0][:2]))


# --- functions of the user's --------------------------------------------------------------------

HOOKS = """
import numpy as np

def dark(images, seeds, controls):
    assert images.dtype == np.uint8 and seeds.dtype == np.int64
    return [None if image.mean() > 30 else f"too dark: {seed}"
            for image, seed in zip(images, seeds)]

def by_class(images, seeds, controls):
    return np.array([None if label else "a zero" for label in controls["class_label"]], object)

def one_answer(images, seeds, controls):
    return [None]

def booleans(images, seeds, controls):
    return [True] * len(images)

def nothing(images, seeds, controls):
    pass

def raising(images, seeds, controls):
    return 1 / 0

def leaving(images, seeds, controls):
    raise SystemExit(3)

def scribbling(images, seeds, controls):
    images[:] = 0
    controls["class_label"] = None
    return [None] * len(images)

class Judge:
    def __call__(self, images, seeds, controls):
        return [None] * len(images)

judge = Judge()
"""


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


IMAGES = np.full((3, 2, 2, 1), 200, np.uint8)
IMAGES[1] = 3


def test_a_function_judges(hooks: str) -> None:
    batch = batch_of(IMAGES, [0, 1, 2])
    assert load("python", function=f"{hooks}:dark").judge(batch) == [None, "too dark: 1", None]
    assert load("python", function=f"{hooks}:by_class").judge(batch) == ["a zero", None, None]


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        ("one_answer", BadRequest, "answered 1 items for 3 images; it returns one for each image"),
        ("booleans", BadRequest, "answered a bool; it returns one for each image, None or the"),
        ("nothing", BadRequest, "failed: TypeError: 'NoneType' object is not iterable"),
        ("raising", BadRequest, "failed: ZeroDivisionError: division by zero ("),
        ("leaving", BadRequest, "failed: SystemExit: 3 ("),
        ("missing", NotFound, "is not there (module"),
        ("judge", BadRequest, "is no Python function"),
    ],
)
def test_a_function_that_misbehaves_is_named(
    hooks: str, function: str, error: type[Exception], words: str
) -> None:
    def judge() -> None:
        load("python", function=f"{hooks}:{function}").judge(batch_of(IMAGES, [0, 1, 2]))

    with pytest.raises(error, match=re.escape(words)) as refusal:
        judge()
    assert f"filter {hooks}:{function}" in str(refusal.value)
    if function == "raising":
        assert f"{hooks}.py:{HOOKS[: HOOKS.index('1 / 0')].count(chr(10)) + 1})" in str(
            refusal.value
        )


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        ("no_such_module:f", NotFound, "is not there (No module named 'no_such_module'); modules"),
        ("broken_hooks:f", BadRequest, "cannot be imported: SyntaxError: invalid syntax"),
        ("raising_hooks:f", BadRequest, "cannot be imported: ValueError: math domain error"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named(
    hooks: str, function: str, error: type[Exception], words: str
) -> None:
    options = OPTIONS.validate_python({"kind": "python", "function": function})
    with pytest.raises(error, match=re.escape(words)):
        file_hashes([options])


# --- what goes into job.json --------------------------------------------------------------------


def test_the_files_on_which_verdicts_depend_are_hashed(hooks: str, write: Write) -> None:
    classifier = OPTIONS.validate_python({"kind": "classifier", "file": write("plain")})
    function = OPTIONS.validate_python({"kind": "python", "function": f"{hooks}:dark"})
    constant = OPTIONS.validate_python({"kind": "constant"})
    hashes = file_hashes([classifier, function, constant, classifier])
    assert hashes == {
        "plain.onnx": hashlib.sha256(write("plain").read_bytes()).hexdigest(),
        f"{hooks}.py": hashlib.sha256(HOOKS.encode()).hexdigest(),
    }


def test_two_files_of_one_name_are_refused(tmp_path: Path, write: Write) -> None:
    (tmp_path / "plain.onnx").write_bytes(b"another")
    options = [
        OPTIONS.validate_python({"kind": "classifier", "file": file})
        for file in (write("plain"), tmp_path / "plain.onnx")
    ]
    with pytest.raises(BadRequest, match="told apart by their names, rename one: .*plain.onnx"):
        file_hashes(options)


def test_where_a_file_lies_is_not_part_of_a_job(write: Write) -> None:
    options = OPTIONS.validate_python({"kind": "classifier", "file": write("plain")})
    assert '"file":"plain.onnx"' in options.model_dump_json()

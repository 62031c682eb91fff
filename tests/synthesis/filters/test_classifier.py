from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from jobs.judging import Digits, Write, candidates_of, enlarged, load

from latentry.contract.errors import BadRequest
from latentry.synthesis.filters.classifier import _probabilities
from latentry.synthesis.filters.network import NetworkOptions, load_network


def agreement(verdicts: Sequence[str | None]) -> float:
    return sum(verdict is None for verdict in verdicts) / len(verdicts)


def test_real_digits_are_read_and_wrong_labels_found(digits: Digits, write: Write) -> None:
    images, labels = digits[0][1200:], digits[1][1200:]
    judge = load("classifier", file=write("plain"), scale="zero_to_one")
    verdicts = judge.judge(candidates_of(images, labels))
    assert agreement(verdicts) > 0.9
    wrong = judge.judge(candidates_of(images, (labels + 1) % 10))
    assert agreement(wrong) < 0.03
    assert {verdict for verdict in wrong if verdict} == {f"classified as {n}" for n in range(10)}


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
    digits: Digits,
    write: Write,
    name: str,
    shape: Sequence[Any],
    outputs: Sequence[str],
    options: dict[str, Any],
) -> None:
    batch = candidates_of(digits[0][1200:1300], digits[1][1200:1300])
    expected = load("classifier", file=write("plain"), scale="zero_to_one").judge(batch)
    file = write(name, shape, outputs)
    assert load("classifier", file=file, scale="zero_to_one", **options).judge(batch) == expected


def test_images_of_another_size_or_colour_are_fitted_to_the_network(
    digits: Digits, write: Write
) -> None:
    images, labels = enlarged(digits[0][1200:1400], 28), digits[1][1200:1400]
    judge = load("classifier", file=write("plain"), scale="zero_to_one")
    assert agreement(judge.judge(candidates_of(images, labels))) > 0.85
    rgb = np.repeat(digits[0][1200:1400], 3, axis=3)
    grey = judge.judge(candidates_of(digits[0][1200:1400], labels))
    assert judge.judge(candidates_of(rgb, labels)) == grey


@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_an_unsure_classifier_is_no_vote(digits: Digits, write: Write, output: str) -> None:
    images, labels = digits[0][1200:1500], digits[1][1200:1500]
    file = write(f"both-{output}", outputs=(output,))
    network = load_network(NetworkOptions.model_validate({"file": file, "scale": "zero_to_one"}))
    values = network.run(images).astype(np.float64)
    if output == "logits":
        values = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
    judge = load("classifier", file=file, scale="zero_to_one", min_probability=0.9)
    verdicts = judge.judge(candidates_of(images, labels))
    for verdict, label, row in zip(verdicts, labels, values, strict=True):
        if row.argmax() != label:
            assert verdict == f"classified as {row.argmax()}"
        else:
            assert verdict == (None if row.max() >= 0.9 else "classified with low probability")
    assert {None, "classified with low probability"} <= set(verdicts)


def test_outputs_may_have_other_labels(digits: Digits, write: Write) -> None:
    images, labels = digits[0][1200:1300], digits[1][1200:1300]
    plain = load("classifier", file=write("plain"), scale="zero_to_one")
    shifted = load("classifier", file=write("plain"), scale="zero_to_one", labels=[*range(10, 20)])
    expected = plain.judge(candidates_of(images, labels))
    found = shifted.judge(candidates_of(images, labels + 10))
    assert [verdict is None for verdict in found] == [verdict is None for verdict in expected]
    few = load("classifier", file=write("plain"), labels=[1, 2])
    with pytest.raises(BadRequest, match="has 10 outputs, the job names 2 labels"):
        few.judge(candidates_of(images, labels))


def test_one_row_decides_nothing_for_another(digits: Digits, write: Write) -> None:
    """A batch with a row of logits that look like probabilities is judged as row by row."""

    rows = np.array([[0.25, 0.75], [3.0, -1.0], [0.5, 0.5], [0.499, 0.5005]])
    together = _probabilities(rows)
    np.testing.assert_array_equal(together, np.concatenate([_probabilities(r[None]) for r in rows]))
    assert together[0].tolist() == [0.25, 0.75]
    # Logits, though they sum to one; and such that no power of e holds them.
    assert (_probabilities(np.array([[2.0, -1.0]])) > 0).all()
    assert _probabilities(np.array([[1000.0, 0.0]])).tolist() == [[1.0, 0.0]]


def test_a_classifier_needs_classes(digits: Digits, write: Write) -> None:
    judge = load("classifier", file=write("plain"))
    with pytest.raises(BadRequest, match="the filter classifier needs samples of a class"):
        judge.judge(candidates_of(digits[0][:2]))


def test_as_sure_as_is_asked_for_is_enough(digits: Digits, write: Write) -> None:
    images, labels = digits[0][1200:1210], digits[1][1200:1210]
    options = {"file": write("exact", outputs=("probabilities",)), "scale": "zero_to_one"}
    network = load_network(NetworkOptions.model_validate(options))
    least = float(network.run(images[:1]).max())
    reasons = [
        load("classifier", **options, min_probability=sure).judge(candidates_of(images, labels))[0]
        for sure in (least, np.nextafter(least, 1))
    ]
    assert reasons == [None, "classified with low probability"]

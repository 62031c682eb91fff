import re

import numpy as np
import pytest
from jobs.judging import HOOKS, OPTIONS, candidates_of, load

from latentry.contract.errors import BadRequest, NotFound
from latentry.synthesis.filters.filters import file_hashes

IMAGES = np.full((3, 2, 2, 1), 200, np.uint8)
IMAGES[1] = 3


def test_a_function_judges(hooks: str) -> None:
    batch = candidates_of(IMAGES, [0, 1, 2])
    assert load("python", function=f"{hooks}:dark").judge(batch) == [None, "too dark: 1", None]
    assert load("python", function=f"{hooks}:by_class").judge(batch) == ["a zero", None, None]


def test_reasons_fit_into_a_record_and_what_is_printed_is_out_of_the_way(
    hooks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reasons = load("python", function=f"{hooks}:wordy").judge(candidates_of(IMAGES))
    assert reasons == ["x" * 1000, "half of ?", None]
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "in the way\n")


def test_what_a_function_does_to_its_arguments_stays_there(hooks: str) -> None:
    candidates = candidates_of(IMAGES.copy(), [0, 1, 2])
    assert load("python", function=f"{hooks}:scribbling").judge(candidates) == [None] * 3
    assert candidates.inputs["class_label"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        ("one_answer", BadRequest, "answered 1 items for 3 images; it returns one for each image"),
        ("booleans", BadRequest, "answered a bool; it returns one for each image, None or the"),
        ("nothing", BadRequest, "failed: TypeError: 'NoneType' object is not iterable"),
        ("raising", BadRequest, "failed: ZeroDivisionError: division by zero ("),
        ("leaving", BadRequest, "failed: SystemExit: 3 ("),
        ("missing", NotFound, "has no 'missing'; what can be called there: dark, by_class"),
        ("judge", BadRequest, "is no Python function"),
    ],
)
def test_a_function_that_misbehaves_is_named(
    hooks: str, function: str, error: type[Exception], words: str
) -> None:
    def judge() -> None:
        load("python", function=f"{hooks}:{function}").judge(candidates_of(IMAGES, [0, 1, 2]))

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
        ("no_such_module:f", NotFound, "there is no Python module 'no_such_module' in "),
        (
            "broken_hooks:f",
            BadRequest,
            "importing broken_hooks failed: SyntaxError: ",
        ),
        ("raising_hooks:f", BadRequest, "importing raising_hooks failed: ValueError: "),
    ],
)
def test_a_module_that_cannot_be_imported_is_named(
    hooks: str, function: str, error: type[Exception], words: str
) -> None:
    options = OPTIONS.validate_python({"kind": "python", "function": function})
    with pytest.raises(error, match=re.escape(words)):
        file_hashes([options])

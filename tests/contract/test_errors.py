import os

import pytest

from latentry.contract import errors
from latentry.contract.errors import (
    BadRequest,
    Busy,
    Draining,
    InvalidOutput,
    LatentryError,
    NotFound,
    OutOfSpace,
    ServerFault,
    ServerGone,
    TimedOut,
    is_wire_text,
    listed,
    wire_text,
)

TEMPORARY = {Busy, TimedOut, Draining, ServerGone, OutOfSpace}


def test_a_command_says_by_its_exit_code_whether_the_same_may_do_later() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type)}
    for kind in {kind for kind in kinds if issubclass(kind, LatentryError)}:
        assert kind.exit_code == (os.EX_TEMPFAIL if kind in TEMPORARY else 1), kind


def test_errors_keep_what_was_found_besides_the_words() -> None:
    assert ServerGone("gone", resume_at=24).resume_at == 24
    assert ServerGone("gone").resume_at is None
    assert InvalidOutput("NaN", seeds=[3, 4]).seeds == (3, 4)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadRequest("x"), "INVALID_ARGUMENT"),
        (NotFound("x"), "NOT_FOUND"),
        (Draining("x"), "UNAVAILABLE"),
        (ServerFault("x"), "INTERNAL"),
        (InvalidOutput("x"), "INTERNAL"),
    ],
)
def test_an_error_travels_with_its_code(error: LatentryError, code: str) -> None:
    text = wire_text(error)
    assert text == f"[{code}] x"
    assert is_wire_text(text)
    assert is_wire_text(f"Model a.b - Error when running inference: {text}")


@pytest.mark.parametrize("text", ["", "Server exiting", "[request id: 7] Exceeds maximum queue"])
def test_tritons_own_words_are_not_taken_for_ours(text: str) -> None:
    assert not is_wire_text(text)


@pytest.mark.parametrize("character", ["a", "é", "図", "🐈", "\ud800"])
@pytest.mark.parametrize("before", ["", "x", "xx", "xxx"])
def test_a_long_text_is_cut_between_characters(character: str, before: str) -> None:
    text = wire_text(BadRequest(before + character * 3000))
    assert 1996 < len(text.encode()) <= 2000
    shown = "?" if character == "\ud800" else character
    assert set(text.removeprefix(f"[INVALID_ARGUMENT] {before}")) == {shown}


def test_a_list_in_a_message_ends_where_nobody_reads_on() -> None:
    assert listed([]) == ""
    assert listed([3, 4]) == "3, 4"
    assert listed(range(20), " ").split() == [str(number) for number in range(20)]
    assert listed((f"line {number}" for number in range(50_000)), "\n", most=2) == (
        "line 0\nline 1\nand 49,998 more"
    )

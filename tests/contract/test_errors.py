import pytest

from latentry.contract.errors import (
    BadRequest,
    Draining,
    LatentryError,
    NotFound,
    ServerFault,
    is_wire_text,
    listed,
    wire_text,
)


def test_a_list_in_a_message_ends_where_nobody_reads_on() -> None:
    assert listed([]) == ""
    assert listed([3, 4]) == "3, 4"
    assert listed(range(20), " ").split() == [str(number) for number in range(20)]
    assert listed((f"line {number}" for number in range(50_000)), "\n", most=2) == (
        "line 0\nline 1\nand 49,998 more"
    )


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BadRequest("no"), "[INVALID_ARGUMENT] no"),
        (NotFound("no"), "[NOT_FOUND] no"),
        (Draining("no"), "[UNAVAILABLE] no"),
        (ServerFault("no"), "[INTERNAL] no"),
    ],
)
def test_an_error_carries_its_code_in_its_text(error: LatentryError, text: str) -> None:
    assert wire_text(error) == text
    assert is_wire_text(f"in ensemble 'x': {text}")
    assert not is_wire_text(str(error))


def test_an_error_is_cut_for_the_wire_between_two_characters() -> None:
    data = wire_text(BadRequest("\u20ac" * 2000)).encode()
    assert 1990 < len(data) <= 2000

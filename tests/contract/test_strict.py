from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from latentry.contract.strict import Strict, explain


class Circle(Strict):
    kind: Literal["circle"]
    radius: float


class Square(Strict):
    kind: Literal["square"]
    side: float = Field(gt=0)


class Drawing(Strict):
    shapes: tuple[Annotated[Circle | Square, Field(discriminator="kind")], ...]


def error_of(*shapes: dict[str, object], **more: object) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Drawing.model_validate({"shapes": shapes, **more})
    return caught.value


def test_what_is_wrong_is_said_in_one_line() -> None:
    error = error_of({"kind": "square", "side": -1}, {"kind": "cube"}, colour="red")
    assert explain(error) == (
        "shapes.0.square.side: Input should be greater than 0; "
        "shapes.1: kind 'cube' is unknown; use one of circle, square; "
        "colour: there is no such key"
    )


def test_the_eleventh_finding_is_counted_only() -> None:
    error = error_of(*[{"kind": "square", "side": -1}] * 13)
    text = explain(error, lambda item: str(item["loc"][1]))
    assert text == "0; 1; 2; 3; 4; 5; 6; 7; 8; 9; and 3 more"
    assert explain(error_of(*[{"kind": "square", "side": -1}] * 10)).count(";") == 9


def test_no_value_makes_a_message_long_or_breaks_its_line() -> None:
    text = explain(error_of({"kind": "a\nb" * 5000}))
    assert len(text) <= 2000
    assert "\n" not in text


def test_nothing_is_changed_afterwards() -> None:
    circle = Circle(kind="circle", radius=1)
    with pytest.raises(ValidationError):
        circle.radius = 2  # type: ignore[misc]

"""A format that an output cannot travel in."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from varied_generators import STEERED

from latentry.clients import Client
from latentry.contract.errors import BadRequest
from latentry.serving.entries.examples import example_request
from latentry.serving.entries.repository import read_entry
from latentry.serving.runtime.engines.registry import load_network
from latentry.serving.runtime.generator import load_generator
from latentry.serving.runtime.local import LocalTransport

WORDS = "jpeg knows no transparency, which image has; use png or webp"


def test_jpeg_of_rgba_is_refused_and_its_neighbours_are_not(varied: Path) -> None:
    entry = read_entry(varied / "steered" / "1")
    generator = load_generator(entry, partial(load_network, threads=0))
    request = example_request(STEERED, 2)
    jpeg = {**request, "format": np.full((2, 1), b"jpeg", np.object_)}
    refusal, answer = generator.answer([jpeg, request])
    assert isinstance(refusal, BadRequest)
    assert str(refusal) == WORDS
    assert isinstance(answer, dict)
    assert answer["image"].shape == (2, 16, 12, 4)


def test_a_client_refuses_it_before_anything_is_sent(varied: Path) -> None:
    with Client(transport=LocalTransport(varied, ("steered",), threads=1)) as client:
        with pytest.raises(BadRequest, match=WORDS):
            client.generate("steered", seeds=0, class_label=0, colour=0, format="jpeg")
        with pytest.raises(BadRequest, match=WORDS):
            next(client.stream("steered", seeds=0, class_label=0, colour=0, format="jpeg"))
        assert client.generate("steered", seeds=0, class_label=0, colour=0, format="webp").encoded

"""Profiles of generators that take and give more than z and a picture, on real servers."""

import json
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from running_server import RunningServer
from varied_generators import EMBEDDED, STEERED, spec_of_restyled

from latentry.clients import Client
from latentry.contract.kinds.formats import Format
from latentry.profiling.cross_check import cross_check
from latentry.profiling.extras import (
    answered_formats,
    measure_client,
    measure_formats,
    measure_streams,
)
from latentry.profiling.inputs import sample_bytes, valid_inputs
from latentry.profiling.load.target import ExampleInputs
from latentry.profiling.perf_analyzer.measurement import ProfiledModel
from latentry.profiling.perf_analyzer.program import find_perf_analyzer
from latentry.profiling.sweep import measure_point

pytestmark = pytest.mark.slow  # minutes of perf_analyzer

MODELS = ("steered", "embedded", "restyled", "megabyte")
RESTYLED = spec_of_restyled(256, 256, 3)


@pytest.fixture
def profiled(varied_server: RunningServer, varied: Path, model: str) -> ProfiledModel:
    """Return a model and a perf_analyzer."""
    tool = find_perf_analyzer()
    if tool is None:
        pytest.skip("no perf_analyzer on this machine")
    input_file = varied / model / "1" / "perf_input.json"
    return ProfiledModel(tool, varied_server.url, model, input_file)


def test_pictures_are_in_the_file_for_perf_analyzer_as_they_are(varied: Path) -> None:
    rows = json.loads((varied / "restyled" / "1" / "perf_input.json").read_bytes())["data"]
    pictures = [np.frombuffer(b64decode(row["photo"]["b64"]), np.uint8) for row in rows]
    (expected,) = (item.examples(len(rows)) for item in RESTYLED.inputs)
    assert [row.tobytes() for row in pictures] == [row.tobytes() for row in expected]
    assert len({picture.tobytes() for picture in pictures}) == len(rows) > 8


@pytest.mark.server
def test_inputs_of_what_is_only_served_are_the_entrys(
    varied_server: RunningServer, varied: Path, tmp_path: Path
) -> None:
    for model in MODELS:
        with valid_inputs(tmp_path, model, varied_server.url) as (path, entry):
            assert entry is None
            assert path.read_bytes() == (varied / model / "1" / "perf_input.json").read_bytes()


@pytest.mark.server
@pytest.mark.parametrize("model", MODELS)
def test_perf_analyzer_measures_every_kind_of_input(profiled: ProfiledModel, model: str) -> None:
    for kind, value in (("concurrency", 2), ("batch", 4), ("request_rate", 8)):
        point = measure_point(profiled, kind, value, 0.6, 2)  # type: ignore[arg-type]
        assert not point.failure
        assert point.throughput.value is not None
        assert point.throughput.value > 0


@pytest.mark.server
@pytest.mark.parametrize("model", ["restyled"])
def test_both_generators_measure_the_same_for_pictures(profiled: ProfiledModel) -> None:
    check = cross_check(profiled, 20, windows=3, window_s=0.5)
    assert 0.2 < check.ratio < 5  # short windows, and perhaps a busy machine: of the same kind


@pytest.mark.server
@pytest.mark.parametrize("model", MODELS)
def test_streams_formats_and_the_clients_share(varied_server: RunningServer, model: str) -> None:
    with Client(varied_server.url) as client:
        streams = measure_streams(client, model, 0.5)
        overhead = measure_client(client, varied_server.url, model, repeats=5)
        spec = client.info(model).spec
    assert not streams.errors
    assert streams.samples == {"megabyte": 64}.get(model, 128)
    assert streams.images_per_s.value is not None
    assert overhead.client_ms.value is not None
    formats = measure_formats(varied_server.url, model, rounds=1, window_s=0.2)
    assert [item.image_format for item in formats] == answered_formats(spec)
    assert [item.errors for item in formats] == [{}] * len(formats)


def test_what_a_sample_takes_is_its_inputs_and_its_outputs() -> None:
    assert sample_bytes(RESTYLED) == 2 * 256 * 256 * 3 + 8
    assert sample_bytes(EMBEDDED) == 8 + 4 * 16  # a seed, and the features
    # The seed, two classes, an integer and a float; RGBA, the mask and five features.
    assert sample_bytes(STEERED) == 4 * 8 + 4 + 5 * 16 * 12 + 5 * 4


def test_formats_are_those_in_which_answers_differ() -> None:
    assert answered_formats(EMBEDDED) == [Format.RAW]
    assert answered_formats(RESTYLED) == ["raw", "png", "jpeg", "webp"]
    assert answered_formats(STEERED) == ["raw", "png", "webp"]  # RGBA


def test_requests_without_seeds_differ_by_their_inputs() -> None:
    examples = ExampleInputs(RESTYLED)
    assert examples.row_bytes == 256 * 256 * 3
    for batch in (1, 3, 4, 8):
        requests = [
            examples.arguments(range(turn * batch, (turn + 1) * batch)) for turn in range(8)
        ]
        assert all(list(request) == ["photo"] for request in requests)
        assert len({request["photo"].tobytes() for request in requests}) == 8


def test_classes_go_round_and_defaults_are_left_out() -> None:
    examples = ExampleInputs(STEERED)
    arguments = examples.arguments(range(10, 17))
    assert list(arguments["seeds"]) == [*range(10, 17)]
    assert arguments["class_label"].ravel().tolist() == [1, 2, 0, 1, 2, 0, 1]
    assert arguments["colour"].ravel().tolist() == [2, 3, 0, 1, 2, 3, 0]
    assert list(arguments) == ["class_label", "colour", "seeds"]

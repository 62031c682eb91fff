import grpc
import pytest

from latentry.clients import (
    BadRequest,
    Busy,
    Draining,
    InvalidOutput,
    LatentryError,
    NotFound,
    ServerFault,
    ServerGone,
    TimedOut,
)
from latentry.clients.transports.rpc_errors import error_from_status

Code = grpc.StatusCode
BY_CODE = {
    Code.INVALID_ARGUMENT: BadRequest,
    Code.NOT_FOUND: NotFound,
    Code.DEADLINE_EXCEEDED: TimedOut,
    Code.CANCELLED: Draining,
    Code.RESOURCE_EXHAUSTED: Busy,
    Code.UNAVAILABLE: ServerGone,
}
TEXTS = [
    (Code.NOT_FOUND, "Request for unknown model: 'x' is not found", NotFound),
    (Code.UNAVAILABLE, "Request for unknown model: 'x' is not found", NotFound),
    (Code.NOT_FOUND, "Request for unknown model: 'x' has no available versions", Draining),
    (Code.UNAVAILABLE, "Request for unknown model: 'x' has no available versions", Draining),
    (Code.UNAVAILABLE, "[request id: 7] Exceeds maximum queue size", Busy),
    (Code.UNAVAILABLE, "in ensemble 'e', Exceeds maximum queue size", Busy),
    (Code.UNAVAILABLE, "Request timeout expired", TimedOut),
    (Code.UNAVAILABLE, "Server exiting", Draining),
    (Code.UNAVAILABLE, "Server is stopping, scheduler for model has stopped", Draining),
    (Code.INTERNAL, "Stub process 'digits_0_0' is not healthy.", ServerGone),
    (
        Code.INTERNAL,
        "Failed to process: Stub process is unhealthy and it will be restarted.",
        ServerGone,
    ),
    (Code.UNAVAILABLE, "This protocol is restricted, expecting header 'k'", ServerFault),
    (Code.RESOURCE_EXHAUSTED, "Received message larger than max (5 vs. 4)", ServerFault),
    (Code.INTERNAL, "boom", ServerFault),
]


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_status_has_an_error(code: grpc.StatusCode) -> None:
    error = error_from_status(code, "words", "host:1")
    assert type(error) is BY_CODE.get(code, ServerFault)
    assert "words" in str(error)


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_a_status_without_words_still_says_something(code: grpc.StatusCode) -> None:
    for details in (None, "", "[StatusCode.UNAVAILABLE] "):
        assert code.name in str(error_from_status(code, details, "host:1"))


@pytest.mark.parametrize(("code", "text", "expected"), TEXTS)
def test_tritons_words_decide_where_its_codes_mislead(
    code: grpc.StatusCode, text: str, expected: type[LatentryError]
) -> None:
    assert type(error_from_status(code, text, "host:1")) is expected


def test_what_a_refusal_quotes_does_not_decide() -> None:
    error = error_from_status(Code.INVALID_ARGUMENT, "format 'Server exiting' is unknown", "h:1")
    assert type(error) is BadRequest


@pytest.mark.parametrize(
    "text",
    [
        "[StatusCode.INVALID_ARGUMENT] [request id: <id_unknown>] seed in row 0 is -1",
        "[request id: 3] [INVALID_ARGUMENT] seed in row 0 is -1",
        "Model digits - Error when running inference: [INVALID_ARGUMENT] seed in row 0 is -1",
    ],
)
def test_noise_is_stripped(text: str) -> None:
    assert str(error_from_status(Code.INVALID_ARGUMENT, text, "h:1")) == "seed in row 0 is -1"


@pytest.mark.parametrize("code", [None, *grpc.StatusCode])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[INVALID_ARGUMENT] format 'Server exiting' is unknown", BadRequest),
        ("[INVALID_ARGUMENT] 'NaN or infinity in the output' is no format", BadRequest),
        ("[NOT_FOUND] model 'Exceeds maximum queue size' is not being served", NotFound),
        ("[INTERNAL] ValueError('server not ready')", ServerFault),
        ("[INTERNAL] NaN or infinity in the output for seeds [5]", InvalidOutput),
        ("[UNAVAILABLE] the server is shutting down and takes no new requests", Draining),
        ("Model a.b - Error when running inference: [UNAVAILABLE] shutting down", Draining),
    ],
)
def test_a_models_own_code_decides_whatever_the_status(
    code: grpc.StatusCode, text: str, expected: type[LatentryError]
) -> None:
    error = error_from_status(code, text, "host:1")
    assert type(error) is expected
    assert f"[{text.partition('[')[2].partition(']')[0]}]" not in str(error)


def test_a_bracket_that_is_no_code_is_part_of_the_text() -> None:
    text = "[1, 2] is no seed"
    assert str(error_from_status(Code.INVALID_ARGUMENT, text, "h:1")) == text


def test_an_error_without_a_code_and_a_text_says_where_it_came() -> None:
    assert "in a stream" in str(error_from_status(None, "", "host:1"))


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("NaN or infinity in the output for seeds [3, 4294967295]", (3, 2**32 - 1)),
        ("[request id: 1] NaN or infinity in the output for seeds [0]", (0,)),
        ("NaN or infinity in the output for the z in rows [1]", ()),
    ],
)
@pytest.mark.parametrize("code", [Code.INTERNAL, Code.UNKNOWN])
def test_invalid_outputs_name_their_seeds(
    code: grpc.StatusCode, text: str, seeds: tuple[int, ...]
) -> None:
    error = error_from_status(code, text, "host:1")
    assert isinstance(error, InvalidOutput)
    assert error.seeds == seeds


def test_messages_say_what_to_do() -> None:
    gone = str(error_from_status(Code.UNAVAILABLE, "Connection refused", "host:1"))
    assert "host:1 (Connection refused)" in gone
    assert "start a server there with `latentry serve`" in gone
    assert "retry_for_s=30" in gone


def test_every_error_is_one_of_the_tree() -> None:
    assert all(issubclass(expected, LatentryError) for _, _, expected in TEXTS)

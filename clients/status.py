"""From gRPC's status codes and Triton's texts to Latentry's errors; the one place that does it.

Triton's codes alone mislead: a full queue, a server that starts and a refused token are all
UNAVAILABLE, a server that stops is NOT_FOUND, a dead model is INTERNAL.
"""

import re

import grpc

from latentry.serving.errors import (
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

_NOISE = re.compile(r"^(\s*(\[StatusCode[^\]]*\]|\[request id: [^\]]*\]))*\s*")
_INVALID_OUTPUT = re.compile(
    r"NaN or infinity in the output(?: for seeds \[(?P<seeds>[0-9, ]*)\])?"
)

# Most specific first; matched whatever the code, except where a server quotes what it was sent.
_TEXTS: tuple[tuple[str, type[LatentryError]], ...] = (
    (r"has no available versions|server (is )?(exiting|stopping|not ready)", Draining),
    (r"unknown model.* is not found", NotFound),
    (r"exceeds maximum queue", Busy),
    (r"request timeout expired", TimedOut),
    (r"stub process.*(is not healthy|unhealthy)", ServerGone),
    (r"protocol is restricted|larger than max", ServerFault),
)
_CODES: dict[grpc.StatusCode, type[LatentryError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: BadRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
    grpc.StatusCode.CANCELLED: Draining,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Busy,
    grpc.StatusCode.UNAVAILABLE: ServerGone,
}
# The server's own words say it all in the first two; the others say what to do.
_ADVICE: dict[type[LatentryError], str] = {
    BadRequest: "{text}",
    NotFound: "{text}",
    Busy: "{url} is busy ({text}); ask for less at a time, or wait for a place (retry_for_s=30, "
    "--retry-for-s 30)",
    Draining: "{url} is shutting down or starting ({text}); retry_for_s=30 (--retry-for-s 30) "
    "waits for its return",
    TimedOut: "{url} gave up on the request ({text}); ask for fewer samples, or later",
    ServerGone: "no answer from {url} ({text}); start a server there with `latentry serve`, give "
    "another address, or wait for its return (retry_for_s=30, --retry-for-s 30)",
    ServerFault: "{url} answered with a fault: {code}: {text}",
}


def error_from_status(code: grpc.StatusCode, details: str | None, url: str) -> LatentryError:
    """Return the error for a status that the server at ``url`` answered with."""
    text = _NOISE.sub("", details or "") or code.name
    quotes = code is grpc.StatusCode.INVALID_ARGUMENT
    if not quotes and (match := _INVALID_OUTPUT.search(text)):
        seeds = [int(seed) for seed in re.findall(r"[0-9]+", match["seeds"] or "")]
        return InvalidOutput(f"{text}; such images are never delivered", seeds=seeds)
    error_type = _CODES.get(code, ServerFault)
    if not quotes:
        error_type = next((e for p, e in _TEXTS if re.search(p, text, re.I | re.S)), error_type)
    return error_type(_ADVICE[error_type].format(url=url, text=text, code=code.name))


def error_from_rpc(error: grpc.RpcError, url: str) -> LatentryError:
    """Return the error for a call to ``url`` that gRPC says has failed."""
    return error_from_status(error.code(), error.details(), url)

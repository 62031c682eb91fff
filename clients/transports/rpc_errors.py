"""From gRPC's status codes and Triton's texts to Latentry's errors; the one place that does it.

Triton's codes alone mislead: a full queue, a server that starts and a refused token are all
UNAVAILABLE, a server that stops is NOT_FOUND, a dead model is INTERNAL.
"""

import re
from typing import Any

from latentry.clients.transports.connection_errors import error_from_connection, proxy_note
from latentry.contract.errors import (
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
from latentry.contract.wire import STREAM_SUFFIX

# What Triton puts in front of a model's words, one chunk of a stream being a request in a request.
_NOISE = re.compile(
    r"(\s*(\[StatusCode[^\]]*\]|\[request id: [^\]]*\]"
    r"|Model \S+ - Error when running inference:))*\s*"
)
_INVALID_OUTPUT = re.compile(
    r"NaN or infinity in the output(?: for seeds \[(?P<seeds>[0-9, ]*)\])?"
)

_NO_STREAM = re.compile(rf"unknown model: '(?P<model>\S+){re.escape(STREAM_SUFFIX)}' is not found")

# Errors of our own models begin with their code in brackets, which holds whatever Triton says.
_OWN_CODES: dict[str, type[LatentryError]] = {
    "INVALID_ARGUMENT": BadRequest,
    "NOT_FOUND": NotFound,
    "INTERNAL": ServerFault,
    "UNAVAILABLE": Draining,
}
_OWN_CODE = re.compile(rf"\[({'|'.join(_OWN_CODES)})\]\s*")

# Triton's refusals, as they begin: inside a stream no code comes with them.
_REFUSALS = re.compile(
    r"failed to get model version"
    r"|(inference )?input '.*' (data-type is|already exists|batch size does not match)"
    r"|input byte size mismatch|all input dimensions should be specified"
    r"|expected (number of )?[0-9]*\s*inputs|inference request batch-size must be"
    r"|unexpected (shape for input|inference (input|output)|number of string elements)"
    r"|incomplete string|unable to find (data for input tensor|shared memory region)"
    r"|contents field must not be specified|invalid value type for|parameter keys starting with"
    r"|ModelInfer RPC doesn't support models with decoupled",
    re.IGNORECASE | re.DOTALL,
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
_CODES: dict[str, type[LatentryError]] = {
    "INVALID_ARGUMENT": BadRequest,
    "NOT_FOUND": NotFound,
    "DEADLINE_EXCEEDED": TimedOut,
    "CANCELLED": Draining,
    "RESOURCE_EXHAUSTED": Busy,
    "UNAVAILABLE": ServerGone,
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
    "another address (url=, --url or LATENTRY_URL), or wait for its return (retry_for_s=30, "
    "--retry-for-s 30)",
    ServerFault: "{url} answered with a fault: {code}: {text}",
}


def error_from_status(code: Any, details: str | None, url: str) -> LatentryError:
    """Return the error for a status that the server at ``url`` answered with.

    Args:
        code: A ``grpc.StatusCode``; None for an error inside a stream, which is a text alone.
        details: The text.
        url: The server.
    """
    name = code.name if code else "an error in a stream"
    text = _NOISE.sub("", details or "", count=1)
    if own := _OWN_CODE.match(text):
        name, text = own[1], text[own.end() :]
    text = text or name
    if not own and (failed := error_from_connection(name, text, url)):
        return failed
    error_type = _OWN_CODES[name] if own else _type_from_triton(name, text)
    if error_type is not BadRequest and (match := _INVALID_OUTPUT.match(text)):
        seeds = [int(seed) for seed in re.findall(r"[0-9]+", match["seeds"] or "")]
        return InvalidOutput(f"{text}; such images are never delivered", seeds=seeds)
    if error_type is NotFound and (match := _NO_STREAM.search(text)):
        text = (
            f"{match['model']} is not streamed by {url}; serve it with --streams all, or generate"
        )
    note = proxy_note(url) if error_type is ServerGone else ""
    return error_type(_ADVICE[error_type].format(url=url, text=text, code=name) + note)


def error_from_rpc(error: Any, url: str) -> LatentryError:
    """Return the error for a call to ``url`` that gRPC says has failed, a ``grpc.RpcError``."""
    return error_from_status(error.code(), error.details(), url)


def _type_from_triton(name: str, text: str) -> type[LatentryError]:
    if name == "INVALID_ARGUMENT" or _REFUSALS.match(text):
        return BadRequest
    by_text = (error for pattern, error in _TEXTS if re.search(pattern, text, re.I | re.S))
    return next(by_text, _CODES.get(name, ServerFault))

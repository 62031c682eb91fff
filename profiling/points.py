"""One setting of a sweep, measured."""

from typing import Literal

from latentry.contract.strict import Strict
from latentry.profiling.estimates import Estimate

Kind = Literal["concurrency", "request_rate", "batch"]


class Point(Strict):
    """One setting of a sweep.

    Attributes:
        kind: What is swept: ``concurrency`` (callers that wait for their answer), ``request_rate``
            (Poisson arrivals) or ``batch`` (one caller).
        value: Callers, requests a second, or images of a request.
        batch: Images of each request.
        seconds: Length of the measurement.
        requests: How many were answered in it.
        throughput: Requests a second.
        mean_ms: Mean latency.
        latency_ms: By percentile, such as ``"99"``.
        server_ms: Triton's own means of a request: ``queue``, ``compute_input``,
            ``compute_infer``, ``compute_output``, and the rest of the way, ``network``.
        delayed_share: Of requests that perf_analyzer could not send when they were due; their
            waiting is in no latency.
        server_cores: What the server's processes used of the processor; None where it is remote.
        server_mib: Their memory, shared pages counted once (PSS).
        load_cores: What perf_analyzer used.
        failure: What it said where a request failed; then there are no figures.
    """

    kind: Kind
    value: float
    batch: int = 1
    seconds: float = 0.0
    requests: int = 0
    throughput: Estimate = Estimate()
    mean_ms: Estimate = Estimate()
    latency_ms: dict[str, Estimate] = {}
    server_ms: dict[str, float] = {}
    delayed_share: float = 0.0
    server_cores: float | None = None
    server_mib: float | None = None
    load_cores: float = 0.0
    failure: str = ""

"""Reports, made up."""

from collections.abc import Sequence

from latentry.profiling.cross_check import check_agreement
from latentry.profiling.estimates import Estimate, mean_estimate
from latentry.profiling.knee import Knee
from latentry.profiling.points import Kind, Point
from latentry.profiling.report.contents import Profile
from latentry.profiling.slo.answer import SloAnswer
from latentry.profiling.slo.final import Final
from latentry.profiling.slo.held_rate import Holding
from latentry.profiling.slo.objective import Objective
from latentry.profiling.slo.probes import Probe
from latentry.profiling.slo.state import Candidate

DEFAULT = {"max_batch_size": 32, "max_queue_delay_microseconds": 0, "instances": 2, "threads": 0}
BEST = {**DEFAULT, "instances": 3}


def example_point(kind: Kind, value: float, windows: Sequence[float], failure: str = "") -> Point:
    """Return a point of a sweep with these throughputs of its windows."""
    latency = mean_estimate([1000 / window for window in windows])
    return Point(
        kind=kind,
        value=value,
        batch=int(value) if kind == "batch" else 1,
        seconds=3,
        requests=3000,
        throughput=mean_estimate(windows),
        mean_ms=latency,
        latency_ms={
            "50": latency,
            "90": latency,
            "95": latency,
            "99": Estimate(why="p99 needs 1000 samples, there are 7"),
        },
        server_ms={"queue": 0.1, "compute_infer": 0.5, "network": 0.2},
        server_cores=1.5,
        server_mib=100.0,
        failure=failure,
    )


def example_holding(rate: float) -> Holding:
    """Return what a configuration holds, with three probes."""
    probes = tuple(
        Probe(
            rate=rate * share,
            requests=1000,
            errors={},
            latency_ms=Estimate(value=40 * share, low=35 * share, high=45 * share),
            load_cores=0.1,
        )
        for share in (0.5, 1.0, 1.5)
    )
    return Holding(rate=rate, low=rate / 2, high=1.5 * rate, saturation=2 * rate, probes=probes)


def example_profile(scale: float = 1.0, slo: SloAnswer | None = None) -> Profile:
    """Return one with figures of every kind, the throughput ``scale`` times as large."""
    windows = [1000.0, 1001.0, 1002.0, 1003.0, 1004.0, 1005.0]
    swept: dict[Kind, tuple[int, ...]] = {
        "concurrency": (1, 2, 4),
        "request_rate": (5, 9),
        "batch": (1, 2),
    }
    points = [
        example_point(kind, value, [scale * value * window for window in windows])
        for kind, values in swept.items()
        for value in values
    ]
    return Profile(
        created="2026-01-01T00:00:00+00:00",
        versions={"latentry": "1"},
        machine={"cores": 2},
        model="digits",
        version="1",
        model_digest="d" * 64,
        build="onnxruntime-fp32",
        build_digest="b" * 64,
        engine_class="cpu",
        configuration=DEFAULT,
        points=tuple(points),
        knee=Knee(concurrency=2, throughput=2000, mean_ms=0.5, height=0.4),
        cross_check=check_agreement(100, [1.0] * 7, [1.01] * 7),
        slo=slo,
    )


def example_slo() -> SloAnswer:
    """Return the answer of a search that recommends something."""
    return SloAnswer(
        objective=Objective(percent=99, limit_ms=50),
        running=example_holding(90),
        running_serving=DEFAULT,
        candidates=(
            Candidate(serving=DEFAULT, holding=example_holding(100)),
            Candidate(serving=BEST, holding=example_holding(150)),
            Candidate(serving={**DEFAULT, "threads": 1}, failure="no memory\nmore"),
        ),
        final=Final(rate=122, default_ms=(60, 70), best_ms=(30, 40), p_value=0.01, better=True),
        recommended=BEST,
        finished=True,
        spent_s=100,
    )

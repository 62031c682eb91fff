"""What a search for a latency target found, made up."""

from latentry.profiling.estimates import Estimate
from latentry.profiling.slo.held_rate import Holding
from latentry.profiling.slo.objective import Objective
from latentry.profiling.slo.probes import Probe

DEFAULT = {
    "max_batch_size": 32,
    "max_queue_delay_microseconds": 0,
    "max_queue_size": 0,
    "instances": 2,
    "threads": 0,
}
OBJECTIVE = Objective(percent=99, limit_ms=50)


def probe(rate: float, value: float, *, spread: float = 0.0, errors: int = 0) -> Probe:
    """Return a probe whose percentile lies in ``value`` ± ``spread``."""
    return Probe(
        rate=rate,
        requests=1000,
        errors={"no": errors} if errors else {},
        latency_ms=Estimate(value=value, low=value - spread, high=value + spread),
        load_cores=0.1,
    )


def holding(rate: float) -> Holding:
    """Return what a configuration holds, all at one rate."""
    return Holding(rate=rate, low=rate, high=None, saturation=2 * rate, probes=())

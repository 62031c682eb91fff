"""A load generator: requests at a given rate whatever the server does, or so many at a time.

At a rate, a request's latency counts from the moment when it was *due*: a generator that waits for
a slow server before it sends the next request leaves out just the requests that would have had to
wait ("coordinated omission"). Arrivals are by default a Poisson process, as of many callers who
know nothing of each other.
"""

import threading
import time
from queue import Empty, SimpleQueue
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from latentry.contract.errors import BadRequest
from latentry.profiling.load.results import LoadResult, Record
from latentry.profiling.load.target import Target

Arrivals = Literal["poisson", "constant"]

_MOST_OUTSTANDING = 2_048
_AFTER_ERROR_S = 0.01


def run_open(
    target: Target,
    *,
    rate: float,
    duration_s: float,
    warm_up_s: float = 1.0,
    arrivals: Arrivals = "poisson",
    seed: int = 0,
) -> LoadResult:
    """Send requests at ``rate`` a second, whether or not earlier ones have been answered.

    A request that is due while 2,048 wait for their answers is not sent and counts as an error: the
    target is hopelessly behind.

    Args:
        target: What is asked.
        rate: Requests a second.
        duration_s: Length of the window.
        warm_up_s: The same load before it, not counted.
        arrivals: ``poisson`` or ``constant``: how the moments at which requests are due lie.
        seed: Of the Poisson process.
    """
    if not rate > 0:
        raise BadRequest(f"a rate of {rate:g} requests a second; it must be above 0")
    due_s = arrival_times(rate, warm_up_s + duration_s, arrivals, seed)
    record = Record(warm_up_s, duration_s)
    clock = time.perf_counter
    start = clock() + 0.01
    record.begin(start)
    for due in (start + due_s).tolist():
        # Sleeping is precise to a tenth of a millisecond; a loop that looks at the clock instead
        # would take one of the server's cores.
        if (ahead := due - clock()) > 0:
            time.sleep(ahead)
        if record.sent - len(record.ended) >= _MOST_OUTSTANDING:
            record.refuse(due, f"not sent: {_MOST_OUTSTANDING} requests were outstanding")
        else:
            record.late.append(clock() - due)
            target.send(record.expect(due))
    if (ahead := start + warm_up_s + duration_s - clock()) > 0:
        time.sleep(ahead)
    return record.result(rate)


def run_closed(
    target: Target, *, outstanding: int, duration_s: float, warm_up_s: float = 1.0
) -> LoadResult:
    """Keep ``outstanding`` requests under way: what the target can do at most.

    Args:
        target: What is asked.
        outstanding: Requests under way at any time, from 1.
        duration_s: Length of the window.
        warm_up_s: The same load before it, not counted.
    """
    if outstanding < 1:
        raise BadRequest(f"{outstanding} outstanding requests; it must be at least 1")
    places: SimpleQueue[Exception | None] = SimpleQueue()  # with the error of the one before
    for _ in range(outstanding):
        places.put(None)
    record = Record(warm_up_s, duration_s, by_end=True)
    clock = time.perf_counter
    start = clock()
    record.begin(start)
    end = start + warm_up_s + duration_s
    this_thread = threading.get_ident()

    def send_next(error: Exception | None) -> None:
        # The thread that brought the answer sends the next request at once; waking this one first
        # would cost a third of the throughput. A target that fails at once goes the slow way.
        if error is None and threading.get_ident() != this_thread:
            if clock() < end:
                target.send(record.expect(clock(), on_end=send_next))
        else:
            places.put(error)

    while (left := end - clock()) > 0:
        try:
            if places.get(timeout=left) is not None:
                # A lost connection fails at once: 400,000 errors a second would be of no use.
                time.sleep(min(_AFTER_ERROR_S, left))
        except Empty:
            break
        target.send(record.expect(clock(), on_end=send_next))
    return record.result(None)


def arrival_times(
    rate: float, seconds: float, arrivals: Arrivals, seed: int
) -> NDArray[np.float64]:
    """Return when requests are due, in seconds from the start."""
    if arrivals == "constant":
        return np.arange(0, seconds, 1 / rate)
    # Given their number, the arrivals of a Poisson process are uniform; the number is drawn too.
    random = np.random.default_rng(seed)
    return np.sort(random.uniform(0, seconds, random.poisson(rate * seconds)))

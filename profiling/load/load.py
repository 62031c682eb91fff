"""A load generator: requests at a given rate whatever the server does, or so many at a time.

At a rate, a request's latency counts from the moment when it was *due*: a generator that waits for
a slow server before it sends the next request leaves out just the requests that would have had to
wait ("coordinated omission"). Arrivals are by default a Poisson process, as of many callers who
know nothing of each other.

What is asked is a :class:`Target`; :class:`TritonTarget` asks one served model for images.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from latentry.contract.errors import BadRequest, ServerFault
from latentry.contract.transport import ModelInfo

Arrivals = Literal["poisson", "constant"]

_DRAIN_S = 15.0
_MOST_OUTSTANDING = 2_048
_AFTER_ERROR_S = 0.01
_PAYLOADS = 64
_EXPECTED_BYTES = 64 * 2**20


class Target(Protocol):
    """What a load is put on."""

    def send(self, done: Callable[[Exception | None], None]) -> None:
        """Start one request and return; call ``done`` once, from any thread, with its error."""
        ...


@dataclass(frozen=True)
class LoadResult:
    """What one window of load gave. Requests of the warm-up are in no figure.

    Attributes:
        rate: Requests a second that were due; None where a number was kept outstanding.
        seconds: Length of the window.
        sent: Requests that were due (or, with a number kept outstanding, ended) in the window.
        completed: Those of them that were answered well.
        errors: Texts of the errors of the others, with their numbers.
        throughput: Good answers a second that came in within the window.
        latencies_s: Of each good answer, float64 [completed], from when the request was due (or,
            with a number kept outstanding, sent).
        late_s: How late requests were sent, the 99th percentile: the generator's own delay, which
            is part of the latencies.
        cpu_cores: What this process used of the processor, in cores.
    """

    rate: float | None
    seconds: float
    sent: int
    completed: int
    errors: Counter[str]
    throughput: float
    latencies_s: NDArray[np.float64]
    late_s: float
    cpu_cores: float

    def percentiles_ms(self, percents: Sequence[float] = (50, 90, 95, 99)) -> dict[float, float]:
        """Return percentiles of the latency in milliseconds; NaN where nothing was answered."""
        if not self.completed:
            return dict.fromkeys(percents, float("nan"))
        values = np.percentile(self.latencies_s, percents) * 1e3
        return {percent: float(value) for percent, value in zip(percents, values, strict=True)}


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
    due_s = _schedule(rate, warm_up_s + duration_s, arrivals, seed)
    record = _Record(warm_up_s, duration_s)
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
    record = _Record(warm_up_s, duration_s, by_end=True)
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


class TritonTarget:
    """One request of ``batch`` images to a served model; every answer is compared.

    Requests are serialized beforehand and go through several seeds, and all classes in turn. Each
    is asked once at the start and checked by the rules of the client; from then on the same bytes
    must come back, because a seed fixes its image.
    """

    def __init__(
        self,
        url: str | None,
        model: str,
        *,
        batch: int = 1,
        image_format: str = "raw",
        payloads: int = _PAYLOADS,
    ) -> None:
        """Connect, and ask for every payload once.

        Args:
            url: ``HOST:PORT``; None takes the environment's ``LATENTRY_URL`` or 127.0.0.1:8001.
            model: Name of the model.
            batch: Images of one request.
            image_format: As for :meth:`latentry.clients.Client.generate`.
            payloads: Different requests to go through, at most.

        Raises:
            LatentryError: The server does not answer, or not as it should.
        """
        # Here, because they import gRPC.
        from latentry.clients.client import Client
        from latentry.clients.transports.channel import address_from_arguments
        from latentry.profiling.load.unary_calls import UnaryCalls

        with Client(url) as client:
            self.info = client.info(model)
        if not 1 <= batch <= self.info.max_batch_size:
            raise BadRequest(
                f"batches of {batch}; {model} takes 1 to {self.info.max_batch_size} images"
            )
        self._calls = UnaryCalls(address_from_arguments(url).url)
        self._next = 0
        answer_bytes = batch * self.info.spec.image.row_bytes
        count = max(1, min(payloads, _EXPECTED_BYTES // answer_bytes))
        try:
            self._pairs = [self._pair(turn, batch, image_format) for turn in range(count)]
        except BaseException:
            self.close()
            raise

    def send(self, done: Callable[[Exception | None], None]) -> None:
        """Start one request; see :class:`Target`."""
        message, expected = self._pairs[self._next % len(self._pairs)]
        self._next += 1

        def finish(error: Exception | None, answer: bytes) -> None:
            if error is None and answer != expected:
                error = ServerFault("the answer differs from the first one to the same seeds")
            done(error)

        self._calls.start(message, finish)

    def ask(self) -> None:
        """Send the next request and wait for its answer; raises LatentryError."""
        message, _ = self._pairs[self._next % len(self._pairs)]
        self._next += 1
        self._calls.ask(message)

    @property
    def answer_bytes(self) -> float:
        """Mean size of an answer."""
        return sum(len(answer) for _, answer in self._pairs) / len(self._pairs)

    def close(self) -> None:
        """Give up the connection."""
        self._calls.close()

    def __enter__(self) -> "TritonTarget":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pair(self, turn: int, batch: int, image_format: str) -> tuple[bytes, bytes]:
        """Return a serialized request and the answer that it must get."""
        message = _serialized_request(
            self.info, range(turn * batch, (turn + 1) * batch), image_format
        )
        answer = self._calls.ask(message)
        _check_answer(self.info, answer, batch, image_format)
        return message, answer


def _serialized_request(info: ModelInfo, seeds: Sequence[int], image_format: str) -> bytes:
    from latentry.clients.samples import CallerArguments, samples_from_arguments, unary_requests
    from latentry.clients.transports.codec import infer_request

    classes = len(info.spec.classes)
    labels = [seed % classes for seed in seeds] if classes else None
    samples = samples_from_arguments(
        info, CallerArguments(seeds=seeds, class_label=labels, format=image_format)
    )
    (inputs,) = unary_requests(samples)
    serialized: bytes = infer_request(info.name, inputs).SerializeToString()
    return serialized


def _check_answer(info: ModelInfo, answer: bytes, batch: int, image_format: str) -> None:
    from tritonclient.grpc import service_pb2

    from latentry.clients.transports.codec import reply_from_response

    outputs = reply_from_response(service_pb2.ModelInferResponse.FromString(answer)).outputs
    raw = image_format in ("raw", "float")
    name, shape = ("image", info.spec.image.row_shape) if raw else ("encoded", (1,))
    found = outputs[name].shape if name in outputs else None
    if found != (batch, *shape):
        raise ServerFault(f"{info.name} answered {name} of shape {found}, not {(batch, *shape)}")


def _schedule(rate: float, seconds: float, arrivals: Arrivals, seed: int) -> NDArray[np.float64]:
    """Return when requests are due, in seconds from the start."""
    if arrivals == "constant":
        return np.arange(0, seconds, 1 / rate)
    # Given their number, the arrivals of a Poisson process are uniform; the number is drawn too.
    random = np.random.default_rng(seed)
    return np.sort(random.uniform(0, seconds, random.poisson(rate * seconds)))


class _Record:
    """Collects what becomes of requests; ``done`` callbacks come from any thread."""

    def __init__(self, warm_up_s: float, duration_s: float, *, by_end: bool = False) -> None:
        self._warm_up_s = warm_up_s
        self._duration_s = duration_s
        self._by_end = by_end
        self._all_ended = threading.Event()
        self._lock = threading.Lock()
        self._closed = False
        self.sent = 0
        self.late: list[float] = []
        # (due, ended, error), appended by any thread; appending to a list is atomic.
        self.ended: list[tuple[float, float, Exception | None]] = []

    def begin(self, start: float) -> None:
        self._start = start
        self._cpu = time.process_time()

    def expect(
        self, due: float, on_end: Callable[[Exception | None], None] = lambda _: None
    ) -> Callable[[Exception | None], None]:
        """Count a request as sent; return its ``done``."""
        with self._lock:  # the threads that bring answers send, too
            self.sent += 1

        def done(error: Exception | None) -> None:
            self.ended.append((due, time.perf_counter(), error))
            on_end(error)
            if self._closed and len(self.ended) >= self.sent:
                self._all_ended.set()

        return done

    def refuse(self, due: float, why: str) -> None:
        self.sent += 1
        self.ended.append((due, time.perf_counter(), RuntimeError(why)))

    def result(self, rate: float | None) -> LoadResult:
        """Wait for what is still under way and return the figures of the window."""
        cpu_cores = (time.process_time() - self._cpu) / (time.perf_counter() - self._start)
        self._closed = True
        if len(self.ended) < self.sent:
            self._all_ended.wait(_DRAIN_S)
        ended = list(self.ended)
        first = self._start + self._warm_up_s
        last = first + self._duration_s
        counted = [
            (due, end, error)
            for due, end, error in ended
            if first <= (end if self._by_end else due) < last
        ]
        latencies = np.array([end - due for due, end, error in counted if error is None])
        errors = Counter(str(error) for *_, error in counted if error is not None)
        if (missing := self.sent - len(ended)) > 0:
            errors[f"no answer within {_DRAIN_S:g} s of the end"] += missing
        return LoadResult(
            rate=rate,
            seconds=self._duration_s,
            sent=len(counted) + missing,
            completed=len(latencies),
            errors=errors,
            throughput=sum(first <= end < last and error is None for _, end, error in ended)
            / self._duration_s,
            latencies_s=latencies.astype(np.float64),
            late_s=float(np.percentile(self.late, 99)) if self.late else 0.0,
            cpu_cores=cpu_cores,
        )

"""What a report holds: everything that one ``latentry profile`` found."""

from typing import Any, Literal

from latentry.contract.strict import Strict
from latentry.profiling.cross_check import CrossCheck
from latentry.profiling.estimates import LEAST_BEYOND
from latentry.profiling.extras import ClientOverhead, FormatFigures, StreamFigures
from latentry.profiling.knee import Knee
from latentry.profiling.points import Point
from latentry.profiling.slo.answer import SloAnswer

METHOD = (
    "Intervals are 95 %. Throughput: Student's t-interval over the windows. Percentiles: of the "
    "requests of all windows together; the interval covers the one between two order statistics "
    "(Conover 1999, section 3.2) and the t-interval over the windows' own percentiles.",
    f"A percentile is printed where at least {LEAST_BEYOND} requests were slower than it (p99: "
    "1,000 requests).",
    "Concurrency: callers of one image who wait for their answer. Request rate: Poisson arrivals; "
    "perf_analyzer counts from when it sent a request, so what it sent late (delayed) is left out. "
    "The load generator of Latentry counts from when a request was due.",
    "The knee (Kneedle, Satopaa et al. 2011): callers and throughput are brought to 0 .. 1 over "
    "the sweep; it is the point farthest above the diagonal.",
    "Server times are Triton's own means of a request; network is the rest as the caller sees it.",
    "Memory is PSS: pages that processes share are counted once.",
)


class Change(Strict):
    """One figure of two reports.

    Attributes:
        kind: See :class:`latentry.profiling.points.Point`.
        value: Likewise.
        metric: ``throughput``, or a percentile of the latency in ms, such as ``p50``.
        before: The baseline's figure.
        after: This report's.
        p_value: Of the two being equal (permutation test over the windows).
        significant: Whether it counts among all figures compared (5 % false discoveries).
    """

    kind: str
    value: float
    metric: str
    before: float
    after: float
    p_value: float
    significant: bool

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``no significant difference``."""
        if not self.significant:
            return "no significant difference"
        more = self.after > self.before
        return "better" if more == (self.metric == "throughput") else "worse"


class Comparison(Strict):
    """This report against a baseline.

    Attributes:
        created: When the baseline was measured.
        differences: In what the two are not the same: model, engine class, configuration, machine.
        changes: Every figure that both have.
    """

    created: str
    differences: tuple[str, ...]
    changes: tuple[Change, ...]


class Profile(Strict):
    """Everything that one ``latentry profile`` found.

    Attributes:
        created: When, UTC.
        versions: Of Latentry, perf_analyzer and Python.
        machine: Cores, platform and load of the machine that the load came from.
        model: Name of the model.
        version: Its version.
        model_digest: What drew the images.
        build: The build that ran it.
        build_digest: Names that build; ``models tune`` asks for the same.
        engine_class: Where they were drawn.
        configuration: The ``serving`` part as it was served.
        points: The sweeps.
    """

    format: Literal[2] = 2
    created: str
    versions: dict[str, str]
    machine: dict[str, Any]
    model: str
    version: str
    model_digest: str
    build: str
    build_digest: str
    engine_class: str
    configuration: dict[str, int]
    method: tuple[str, ...] = METHOD
    notes: tuple[str, ...] = ()
    points: tuple[Point, ...] = ()
    knee: Knee | None = None
    cross_check: CrossCheck | None = None
    streams: StreamFigures | None = None
    formats: tuple[FormatFigures, ...] = ()
    client: ClientOverhead | None = None
    slo: SloAnswer | None = None
    baseline: Comparison | None = None

"""A latency target, such as ``p99=50ms``."""

import re
from typing import Self

from latentry.contract.errors import BadRequest
from latentry.contract.strict import Strict

_OBJECTIVE = re.compile(r"p(?P<percent>\d{1,2}(\.\d+)?)=(?P<limit>\d+(\.\d+)?)(?P<unit>us|ms|s)")
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


class Objective(Strict):
    """A percentile of the latency and what it may be at most."""

    percent: float
    limit_ms: float

    def __str__(self) -> str:
        return f"p{self.percent:g} <= {self.limit_ms:g} ms"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the objective in a text such as ``p99=50ms``; raises BadRequest."""
        match = _OBJECTIVE.fullmatch(text)
        if not match or not 0 < float(match["percent"]) < 100 or not float(match["limit"]):
            raise BadRequest(f"--slo {text!r} is not understood; write p99=50ms, p95=0.2s, ...")
        limit_ms = float(match["limit"]) * _MS[match["unit"]]
        return cls(percent=float(match["percent"]), limit_ms=limit_ms)

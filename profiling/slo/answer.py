"""What a search for a latency target answers, as it is written into the report."""

from latentry.contract.strict import Strict
from latentry.profiling.slo.final import Final
from latentry.profiling.slo.held_rate import Holding
from latentry.profiling.slo.objective import Objective
from latentry.profiling.slo.search import Search
from latentry.profiling.slo.state import Candidate, Serving


class SloAnswer(Strict):
    """What is written into the report.

    Attributes:
        objective: What was asked.
        running: The answer for the server that was there, left as it was.
        running_serving: Its configuration.
        candidates: Every configuration that was tried, the entry's own first.
        final: The comparison of the best with the default; None where nothing better was found.
        recommended: The ``serving`` part to be written by ``latentry models tune``; None where
            nothing is significantly better than the default.
        finished: Whether every coordinate was gone through within the budget.
        spent_s: Seconds of all runs together.
        no_search: Why only the running server was asked, where that was not what was asked for.
    """

    objective: Objective
    running: Holding
    running_serving: Serving
    candidates: tuple[Candidate, ...] = ()
    final: Final | None = None
    recommended: Serving | None = None
    finished: bool = False
    spent_s: float = 0.0
    no_search: str = ""

    @property
    def oldest(self) -> str:
        """When the oldest of its measurements was made; empty where that is not known."""
        holdings = [self.running, *(item.holding for item in self.candidates), self.final]
        return min((item.measured_at for item in holdings if item and item.measured_at), default="")


def answer(
    search: Search | None, running: Holding, running_serving: Serving, objective: Objective
) -> SloAnswer:
    """Run ``search``, where there is one, and return everything for the report."""
    if search is None:
        return SloAnswer(objective=objective, running=running, running_serving=running_serving)
    best, finished = search.run()
    final = search.compare(best)
    return SloAnswer(
        objective=objective,
        running=running,
        running_serving=running_serving,
        candidates=tuple(search.state.candidates),
        final=final,
        recommended=best.serving if final and final.better else None,
        finished=finished,
        spent_s=search.state.spent_s,
    )

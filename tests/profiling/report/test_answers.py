from profiles.reports import DEFAULT, example_holding, example_profile, example_slo

from latentry.profiling.report.answers import answers
from latentry.profiling.slo.state import Candidate


def test_the_oldest_measurement_of_a_search_is_said() -> None:
    slo = example_slo()
    assert not slo.oldest
    running = slo.running.model_copy(update={"measured_at": "2026-01-02"})
    old = example_holding(100).model_copy(update={"measured_at": "2026-01-01"})
    slo = slo.model_copy(
        update={
            "running": running,
            "candidates": (Candidate(serving=DEFAULT, holding=old), *slo.candidates[1:]),
            "no_search": "Only the running server was asked: why",
        }
    )
    lines = answers(example_profile(slo=slo))
    assert "The oldest of these measurements is of 2026-01-01." in lines
    assert "Only the running server was asked: why" in lines

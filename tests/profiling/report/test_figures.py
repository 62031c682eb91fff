from profiles.reports import example_profile, example_slo

from latentry.profiling.report.contents import Profile
from latentry.profiling.report.figures import pictures, svg


def titles(profile: Profile) -> list[str]:
    return [picture.title for picture in pictures(profile)]


def test_there_is_a_picture_of_whatever_has_figures() -> None:
    whole = example_profile(slo=example_slo())
    assert titles(whole) == [
        *("Throughput and latency", "Latency at a rate", "Where the time goes", "Batches"),
        *("Processor and memory", "What is held", "Candidates"),
    ]
    assert titles(whole.model_copy(update={"points": ()})) == ["What is held", "Candidates"]
    alone = example_slo().model_copy(update={"candidates": ()})
    assert titles(whole.model_copy(update={"points": (), "slo": alone})) == ["What is held"]
    remote = [point.model_copy(update={"server_cores": None}) for point in whole.points[:1]]
    assert titles(example_profile().model_copy(update={"points": remote})) == [
        "Where the time goes"  # one number of callers makes no line
    ]


def test_a_picture_is_the_same_every_time_and_shows_the_knee() -> None:
    first, again = (svg(pictures(example_profile())[0].figure) for _ in range(2))
    assert first == again
    assert first.startswith("<svg")
    assert "<metadata>" not in first
    assert "knee: 2 callers" in first
    without = example_profile().model_copy(update={"knee": None})
    assert "knee" not in svg(pictures(without)[0].figure)

from profiles.reports import BEST, example_profile

from latentry.profiling.report.answers import answers
from latentry.profiling.report.comparison import compare


def test_the_same_twice_is_no_change() -> None:
    found = compare(example_profile(), example_profile())
    assert not found.differences
    assert {change.verdict for change in found.changes} == {"no significant difference"}
    assert not [change for change in found.changes if change.metric == "p99"]


def test_a_slower_run_is_worse_in_everything() -> None:
    found = compare(example_profile(0.8), example_profile())
    assert {change.verdict for change in found.changes} == {"worse"}
    assert {change.metric for change in found.changes} == {"throughput", "p50", "p90", "p95"}
    found = compare(example_profile(1.2), example_profile())
    assert {change.verdict for change in found.changes} == {"better"}


def test_what_is_not_the_same_in_both_is_said() -> None:
    other = example_profile().model_copy(update={"configuration": BEST})
    profile = example_profile().model_copy(update={"baseline": compare(example_profile(), other)})
    assert any("Not the same in both: configuration" in line for line in answers(profile))


def test_another_machine_is_said() -> None:
    other = example_profile().model_copy(update={"machine": {"cores": 4, "load": 1.0}})
    assert compare(example_profile(), other).differences == ("machine cores: 4 -> 2",)

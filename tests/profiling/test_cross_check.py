import pytest

from latentry.profiling.cross_check import check_agreement, cross_check, cross_check_window_s
from latentry.profiling.perf_analyzer.measurement import ProfiledModel


def test_generators_agree_within_five_per_cent_or_where_intervals_overlap() -> None:
    assert check_agreement(100, [1.04] * 7, [1.0] * 7).agrees
    assert not check_agreement(100, [1.2] * 7, [1.0] * 7).agrees
    assert check_agreement(100, [1.2, 1.2, 1.2, 0.9], [1.0, 1.0, 1.1, 1.0]).agrees


def test_a_window_of_the_cross_check_has_requests() -> None:
    assert cross_check_window_s(500) == 1.5
    assert cross_check_window_s(2) == 10


@pytest.mark.server
def test_both_generators_measure_the_same(profiled: ProfiledModel) -> None:
    check = cross_check(profiled, 50, windows=3, window_s=0.5)
    assert 0.2 < check.ratio < 5  # short windows, and perhaps a busy machine: of the same kind
    assert len(check.ours_ms.windows) == 3
    assert check.ours_cores < 0.5

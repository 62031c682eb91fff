from latentry.profiling.slo import final


def test_ranks_share_a_tie() -> None:
    assert final._ranks([1, 5], [5, 9]) == ([0.5, 2.0], [2.0, 3.5])

import pytest
from profiles.simulated_time import Clock, simulate
from profiles.slo import probe


def test_a_failed_request_holds_nothing() -> None:
    assert probe(100, 40).holds(50)
    assert not probe(100, 40, errors=1).holds(50)
    assert probe(100, 40, errors=1).surely_fails(50)


def test_only_a_whole_interval_is_sure() -> None:
    unsure = probe(100, 49, spread=5)
    assert unsure.holds(50)
    assert not unsure.surely_holds(50)
    assert not unsure.surely_fails(50)
    assert not probe(100, 51, spread=5).surely_fails(50)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the time that the load generator lives in."""
    return simulate(monkeypatch)

"""What counts as dead, by a clock that the test turns."""

import os
from dataclasses import replace

import pytest

from latentry.serving.server.vitals import (
    IDLE_S,
    LONGEST_EXECUTE_S,
    LONGEST_LOADING_S,
    SILENT_S,
    Died,
    Vitals,
    WatchClock,
)
from latentry.serving.triton.heartbeats import Beat

BEAT = Beat(
    model="m", process="m_0_0", pid=7, number=1, time_s=0.0, ready=True, begun=0, ended=0,
    started_s=0.0, longest_s=0.1, under_way=0, cpu_s=0.0, draining=False,
)  # fmt: skip
RUNNING = replace(BEAT, begun=1)


class Patient:
    """A process that beats every half second, for a supervisor that looks as often."""

    def __init__(self, beat: Beat = BEAT, processes: int = 1) -> None:
        self.now_s = 100.0
        self.beat = beat
        self.vitals = Vitals(WatchClock(lambda: self.now_s), processes)
        self.vitals.look([beat])

    def live(self, seconds: float, *, beats: bool = True, cpu: float = 1.0) -> None:
        for _ in range(round(seconds * 2)):
            self.now_s += 0.5
            if beats:
                number, cpu_s = self.beat.number + 1, self.beat.cpu_s + cpu / 2
                self.beat = replace(self.beat, number=number, cpu_s=cpu_s)
            self.vitals.look([self.beat])

    def change(self, **fields: object) -> None:
        self.beat = replace(self.beat, **fields)  # type: ignore[arg-type]


def test_whoever_beats_lives_idle_or_at_work() -> None:
    patient = Patient()
    patient.live(1_000, cpu=0.0)
    patient.change(begun=1)
    patient.live(LONGEST_EXECUTE_S - 1)
    patient.change(ended=1)
    patient.live(100, cpu=0.0)


def test_silence_is_death() -> None:
    patient = Patient()
    patient.live(SILENT_S, beats=False)
    with pytest.raises(Died, match=r"process 7 \(m_0_0\) gave no sign of life for 10 s"):
        patient.live(1, beats=False)


def test_a_batch_that_uses_no_processor_is_death() -> None:
    patient = Patient(RUNNING)
    patient.live(IDLE_S, cpu=0.0001)
    with pytest.raises(Died, match="used no processor for 10 s"):
        patient.live(1, cpu=0.0001)


def test_a_starved_batch_lives() -> None:
    Patient(RUNNING).live(60, cpu=0.01)


def test_a_batch_that_does_not_end_is_death() -> None:
    patient = Patient(RUNNING)
    patient.live(LONGEST_EXECUTE_S)
    with pytest.raises(Died, match="a batch of process 7 .* has not ended for 65 s"):
        patient.live(1)


def test_a_model_with_long_batches_gets_longer() -> None:
    patient = Patient(replace(RUNNING, longest_s=60.0))
    patient.live(1_199)
    with pytest.raises(Died, match="has not ended for 1200 s"):
        patient.live(2)


def test_each_batch_counts_for_itself() -> None:
    patient = Patient()
    for turn in range(1, 10):
        patient.change(begun=turn, ended=turn - 1)
        patient.live(LONGEST_EXECUTE_S - 1)


def test_loading_may_take_longer_and_be_silent() -> None:
    patient = Patient(replace(BEAT, ready=False, begun=1))
    patient.live(LONGEST_LOADING_S - 1, beats=False)
    with pytest.raises(Died, match="was not ready after 600 s"):
        patient.live(2, beats=False)


@pytest.mark.parametrize(
    ("cores", "processes", "most_s"), [(4, 8, 1_200), (4, 2, 600), (None, 2, 1_200)]
)
def test_loading_takes_longer_where_processes_share_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int | None, processes: int, most_s: float
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    patient = Patient(replace(BEAT, ready=False), processes)
    patient.live(most_s - 1, beats=False)
    with pytest.raises(Died, match=f"was not ready after {most_s} s"):
        patient.live(2, beats=False)


def test_the_time_in_which_the_supervisor_was_stopped_does_not_count() -> None:
    patient = Patient(RUNNING)
    patient.live(9, beats=False)
    for _ in range(3):
        patient.now_s += 3_600
        patient.vitals.look([patient.beat]) if _ == 0 else patient.live(5)


def test_a_process_that_was_replaced_starts_anew() -> None:
    patient = Patient(RUNNING)
    patient.live(60)
    patient.change(pid=8, number=1)
    patient.live(60)


def test_who_is_at_work_and_who_is_drained() -> None:
    vitals = Vitals(WatchClock())
    stream = replace(BEAT, model="m.stream", process="s", under_way=1)
    vitals.look([RUNNING, stream])
    assert vitals.is_running("m")
    assert not vitals.is_running("m.stream")
    assert (vitals.processes, vitals.ready) == (2, 2)
    assert not vitals.are_drained({"m.stream"})
    vitals.look([replace(stream, number=2, draining=True)])
    assert not vitals.are_drained({"m.stream"})
    vitals.look([replace(stream, number=3, under_way=0)])
    assert not vitals.are_drained({"m.stream"})  # it may take new ones yet
    vitals.look([replace(stream, number=4, under_way=0, draining=True)])
    assert vitals.are_drained({"m.stream"})


def test_all_of_several_streams_have_to_be_drained() -> None:
    vitals = Vitals(WatchClock())
    drained = replace(BEAT, model="m.stream", process="s", draining=True)
    other = replace(drained, model="n.stream", process="t", under_way=1)
    vitals.look([RUNNING, drained, other])
    both = {"m.stream", "n.stream"}
    assert vitals.are_drained({"m.stream"})
    assert not vitals.are_drained(both)
    vitals.look([drained, replace(other, number=2, under_way=0)])
    assert vitals.are_drained(both)
    assert vitals.are_drained(set())  # nothing is streamed

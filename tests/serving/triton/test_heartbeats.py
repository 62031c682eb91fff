import asyncio
import json
import threading
import time
from pathlib import Path

import pytest
from running_server import wait_until

from latentry.serving.triton.heartbeats import (
    DRAIN_MARK,
    HEARTBEATS,
    SIGNS_FOLDER,
    Beat,
    Heart,
    read_beats,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / HEARTBEATS).mkdir()
    monkeypatch.setenv(SIGNS_FOLDER, str(tmp_path))
    return tmp_path


def only(folder: Path) -> Beat:
    while not (beats := read_beats(folder)):
        pass
    (beat,) = beats
    return beat


def test_beats_say_what_the_process_is_doing(folder: Path) -> None:
    heart = Heart("m", "m_0_0", every_s=0.01)
    beat = only(folder)
    assert (beat.ready, beat.begun, beat.started_s, beat.longest_s) == (False, 0, 0.0, 0.0)
    heart.say_ready()
    wait_until(lambda: only(folder).ready)
    with heart.execute(3):
        wait_until(lambda: only(folder).running)
        beat = only(folder)
        assert (beat.model, beat.under_way, beat.begun, beat.ended) == ("m", 3, 1, 0)
        assert beat.started_s <= time.monotonic()
    wait_until(lambda: not only(folder).running)
    beat = only(folder)
    assert (beat.under_way, beat.ended) == (0, 1)
    assert beat.longest_s > 0
    first = beat.number
    wait_until(lambda: only(folder).number > first + 3)


def test_beats_are_for_nobody_else(folder: Path) -> None:
    Heart("m", "m_0_0")
    (path,) = (folder / HEARTBEATS).iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_execute_that_fails_has_ended(folder: Path) -> None:
    heart = Heart("m", "m_0_0", every_s=0.01)
    with pytest.raises(ValueError, match="no"), heart.execute(1):
        raise ValueError("no")
    wait_until(lambda: only(folder).ended == 1)


def test_a_blocked_event_loop_falls_silent(folder: Path) -> None:
    heart = Heart("s", "s_0_0", every_s=0.01)
    release = threading.Event()

    async def main() -> None:
        heart.move_to_loop()
        heart.move_to_loop()  # with every execute
        heart.begin_request(continues=False)
        await asyncio.sleep(0.1)
        release.wait(30)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    wait_until(lambda: only(folder).under_way == 1)

    def silent() -> bool:
        before = only(folder).number
        time.sleep(0.3)
        return only(folder).number == before

    wait_until(silent)
    release.set()
    thread.join()


def test_the_mark_is_seen(folder: Path) -> None:
    heart = Heart("m", "m_0_0", every_s=0.01)
    assert not heart.draining_for_s
    (folder / DRAIN_MARK).touch()
    wait_until(lambda: only(folder).draining)
    assert heart.draining_for_s > 0


def test_a_stream_counts_until_its_next_request(folder: Path) -> None:
    heart = Heart("s", "s_0_0", every_s=0.01)

    async def main() -> None:
        heart.move_to_loop()
        heart.begin_request(continues=False)
        heart.begin_request(continues=True)  # nobody waits for it: it began before the process did
        heart.end_request(to_be_continued=False)
        heart.end_request(to_be_continued=True)
        await asyncio.sleep(0.1)
        assert only(folder).under_way == 1
        heart.begin_request(continues=True)
        heart.end_request(to_be_continued=False)
        await asyncio.sleep(0.1)
        assert only(folder).under_way == 0

    asyncio.run(main())


def test_a_stream_whose_next_request_does_not_come_is_let_go(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentry.serving.triton.heartbeats._NEXT_REQUEST_S", 0.05)
    heart = Heart("s", "s_0_0", every_s=0.01)

    async def main() -> None:
        heart.move_to_loop()
        heart.begin_request(continues=False)
        heart.end_request(to_be_continued=True)
        await asyncio.sleep(0.3)
        assert only(folder).under_way == 0

    asyncio.run(main())


@pytest.mark.parametrize("text", ["", "[]", "{", '{"number": 1, "end": 2}', '{"end": 1}', "null"])
def test_half_a_beat_is_left_out(folder: Path, text: str) -> None:
    (folder / HEARTBEATS / "m_0_0.json").write_text(text)
    (folder / HEARTBEATS / "a-folder.json").mkdir()
    assert read_beats(folder) == []


@pytest.mark.parametrize("suffix", ["", ".stream"])
def test_beats_keep_their_size(folder: Path, suffix: str) -> None:
    long = "a" * 64 + suffix
    heart = Heart(long, f"{long}_0_63", every_s=60)
    data = (folder / HEARTBEATS / f"{long}_0_63.json").read_bytes()
    assert len(data) == 512
    assert json.loads(data)["number"] == 1
    assert heart.draining_for_s == 0


def test_a_bare_triton_has_no_supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SIGNS_FOLDER, raising=False)
    heart = Heart("m", "m_0_0")
    with heart.execute(1):
        heart.say_ready()
    assert list(tmp_path.iterdir()) == []

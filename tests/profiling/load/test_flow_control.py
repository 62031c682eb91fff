import struct
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from latentry.profiling.load.flow_control import (
    END_STREAM,
    HEADER_TABLE_SIZE,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    Outflow,
    frame,
)

FIRST_WINDOW, FIRST_FRAME = 65_535, 16_384  # RFC 9113, sections 6.9.2 and 6.5.2


def frames_in(data: bytes) -> Iterator[tuple[int, bool, bytes]]:
    """Yield (stream, whether it is the last, body) of frames of data."""
    while data:
        size, kind, flags = int.from_bytes(data[:3], "big"), data[3], data[4]
        stream = int.from_bytes(data[5:9], "big")
        assert kind == 0
        yield stream, bool(flags & END_STREAM), data[9 : 9 + size]
        data = data[9 + size :]


def settings_of(**values: int) -> bytes:
    names = {"table": HEADER_TABLE_SIZE, "window": INITIAL_WINDOW_SIZE, "frame": MAX_FRAME_SIZE}
    return b"".join(struct.pack(">HI", names[name], value) for name, value in values.items())


def sizes_of(data: bytes) -> list[tuple[int, int]]:
    return [(stream, len(body)) for stream, _, body in frames_in(data)]


def test_a_small_body_is_one_frame() -> None:
    assert Outflow().add(1, b"abc") == frame(0, END_STREAM, 1, b"abc")


def test_a_large_body_stops_where_the_server_takes_no_more() -> None:
    outflow, body = Outflow(), bytes(100_000)
    assert sizes_of(outflow.add(1, body)) == [(1, FIRST_FRAME)] * 3 + [(1, FIRST_FRAME - 1)]
    assert outflow.widen(1, 1000) == b""  # the connection has no room
    assert sizes_of(outflow.widen(0, 600)) == [(1, 600)]
    assert sizes_of(outflow.widen(0, 10**6)) == [(1, 400)]
    rest = list(frames_in(outflow.widen(1, 10**6)))
    assert sum(len(body) for _, _, body in rest) == 100_000 - FIRST_WINDOW - 1000
    assert [is_last for _, is_last, _ in rest] == [False, False, True]
    assert outflow.widen(1, 10**6) == b""


def test_a_stream_that_must_wait_holds_up_no_other() -> None:
    outflow = Outflow()
    outflow.widen(0, 10**6)
    assert len(sizes_of(outflow.add(1, bytes(70_000)))) == 4
    assert sizes_of(outflow.add(3, bytes(10))) == [(3, 10)]
    assert sizes_of(outflow.widen(1, 10**6)) == [(1, 70_000 - FIRST_WINDOW)]


def test_the_servers_settings_hold_for_open_streams_and_for_new_ones() -> None:
    outflow = Outflow()
    outflow.widen(0, 10**6)
    outflow.add(1, bytes(70_000))
    assert outflow.apply(settings_of(table=0, window=FIRST_WINDOW - 100)) == b""
    assert outflow.widen(1, 100) == b""  # no more than what was taken back
    assert sizes_of(outflow.widen(1, 1)) == [(1, 1)]
    sent = sizes_of(outflow.apply(settings_of(window=100_000, frame=2**20)))
    assert sent == [(1, 70_000 - FIRST_WINDOW - 1)]
    assert sizes_of(outflow.add(3, bytes(90_000))) == [(3, 90_000)]


def test_what_is_dropped_is_not_sent() -> None:
    outflow = Outflow()
    outflow.widen(0, 10**6)
    outflow.add(1, bytes(70_000))
    assert outflow.drop(1)
    assert not outflow.drop(1)
    assert outflow.widen(1, 10**6) == b""


@given(
    sizes=st.lists(st.integers(1, 200_000), min_size=1, max_size=6),
    words=st.lists(st.tuples(st.integers(-1, 6), st.integers(1, 60_000)), max_size=80),
)
def test_every_body_arrives_whole_and_no_window_is_overrun(
    sizes: list[int], words: list[tuple[int, int]]
) -> None:
    outflow = Outflow()
    bodies = {2 * n + 1: bytes([n + 1]) * size for n, size in enumerate(sizes)}
    windows = dict.fromkeys([0, *bodies], FIRST_WINDOW)
    arrived: dict[int, bytes] = dict.fromkeys(bodies, b"")
    ended: list[int] = []
    initial, largest = FIRST_WINDOW, FIRST_FRAME

    def take(data: bytes) -> None:
        for stream, is_last, body in frames_in(data):
            assert 0 < len(body) <= min(windows[0], windows[stream], largest)
            assert stream not in ended
            windows[0] -= len(body)
            windows[stream] -= len(body)
            arrived[stream] += body
            if is_last:
                ended.append(stream)

    for stream, body in bodies.items():
        take(outflow.add(stream, body))
    for place, count in words:
        if place < 0:
            for stream in bodies:
                windows[stream] += count - initial
            initial, largest = count, max(FIRST_FRAME, count)
            take(outflow.apply(settings_of(window=count, frame=largest)))
            continue
        stream = 0 if place == 0 else list(bodies)[(place - 1) % len(bodies)]
        windows[stream] += count
        take(outflow.widen(stream, count))
    for stream in [0, *bodies]:
        windows[stream] += 2 * 10**6
        take(outflow.widen(stream, 2 * 10**6))
    assert arrived == bodies
    assert sorted(ended) == list(bodies)

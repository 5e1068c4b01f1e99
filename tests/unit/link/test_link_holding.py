"""The delay line's queue: never early, always in order, bounded, seeded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.link.holding import FRAME_OVERHEAD_BYTES, Held


def held(seed: int = 1, **values: int | float) -> Held:
    line = Held(seed)
    line.set({"delay_ns": 0, "jitter_ns": 0, "loss": 0.0, "limit_bytes": 1 << 20, **values})
    return line


@given(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=200),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
)
def test_frames_keep_their_order_and_are_never_early(gaps: list[int], delay_ns: int, jitter_ns: int) -> None:
    jitter_ns = min(jitter_ns, delay_ns)
    line = held(delay_ns=delay_ns, jitter_ns=jitter_ns)
    now_ns, arrivals = 0, []
    for number, gap in enumerate(gaps):
        now_ns += gap
        arrivals.append(now_ns)
        assert line.offer(number.to_bytes(4, "big"), now_ns)
    taken = 0
    while line.queue:
        due_ns = line.queue[0][0]
        assert line.take(due_ns - 1) is None
        frame = line.take(due_ns)
        assert frame is not None
        number = int.from_bytes(frame, "big")
        assert number == taken
        assert due_ns >= arrivals[number] + delay_ns - jitter_ns
        assert due_ns <= max(arrivals[: number + 1]) + delay_ns + jitter_ns
        taken += 1
    assert taken == len(gaps)
    assert line.held_bytes == 0


def test_memory_is_bounded_and_overflow_counted() -> None:
    line = held(delay_ns=10**9, limit_bytes=10 * (100 + FRAME_OVERHEAD_BYTES))
    results = [line.offer(bytes(100), 0) for _ in range(12)]
    assert results == [True] * 10 + [False] * 2
    assert line.stats()["dropped_overflow"] == 2
    assert line.take(10**9) is not None
    assert line.offer(bytes(100), 10**9)


def test_the_same_seed_loses_the_same_frames() -> None:
    first, second, other = (held(seed, loss=0.3) for seed in (5, 5, 6))
    fates = [[line.offer(b"x", 0) for _ in range(200)] for line in (first, second, other)]
    assert fates[0] == fates[1] != fates[2]
    assert 30 <= first.dropped_loss <= 90


def test_a_change_leaves_frames_under_way_their_time_and_order() -> None:
    line = held(delay_ns=1000)
    line.offer(b"a", 0)
    line.set({"delay_ns": 10, "jitter_ns": 0, "loss": 0.0, "limit_bytes": 1 << 20})
    line.offer(b"b", 0)
    assert line.take(999) is None
    assert [line.take(1000), line.take(1000)] == [b"a", b"b"]


@pytest.mark.parametrize(
    "wrong",
    [{"delay_ns": -1}, {"delay_ns": 1.5}, {"loss": 1.1}, {"loss": True}, {"jitter_ns": 5}, {"limit_bytes": None}],
)
def test_wrong_parameters_are_refused_and_change_nothing(wrong: dict[str, object]) -> None:
    line = held(delay_ns=3)
    before = line.stats()
    with pytest.raises(ValueError, match=next(iter(wrong))):
        line.set({"delay_ns": 0, "jitter_ns": 0, "loss": 0.0, "limit_bytes": 1, **wrong})
    assert line.stats() == before


def test_loss_and_jitter_need_single_packets() -> None:
    assert not held(delay_ns=5).per_packet
    assert held(delay_ns=5, jitter_ns=1).per_packet
    assert held(loss=0.1).per_packet

"""When a frame that ended the delay line's sleep had come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bench.link.delayline import arrival_ns

TIMES = st.integers(0, 10**6)


@given(TIMES, TIMES, TIMES)
def test_a_frame_never_came_before_the_sleep_nor_after_its_end(asleep_ns: int, slept_ns: int, wake_ns: int) -> None:
    assert asleep_ns <= arrival_ns(asleep_ns, asleep_ns + slept_ns, wake_ns) <= asleep_ns + slept_ns


def test_half_of_what_waking_takes_is_taken_off() -> None:
    assert arrival_ns(0, 1_000_000, 40_000) == 980_000


def test_a_frame_that_found_the_line_awake_came_now() -> None:
    assert arrival_ns(0, 50_000, 40_000) == 50_000

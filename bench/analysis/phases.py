"""The phases and rounds of one migration, its total time and its downtime, from the events of engines and guests. Pure.

==============  =============================================  =======================================================
phase           begins with                                    ends with
==============  =============================================  =======================================================
setup           source engine ``setup_begin``                  ``setup_end``: connected, skeleton made, tracking on
precopy         ``setup_end``                                  guest ``pause_begin``
stop-and-copy   ``pause_begin``                                destination engine ``final_pages_received``
device-state    ``final_pages_received``                       ``device_state_loaded``
storage         source engine ``storage_begin``                destination engine ``storage_acquired``
resume          ``storage_acquired``                           guest ``resumed`` (the destination's)
announce        ``resumed``                                    the last guest ``announce_sent``
postcopy        ``resumed``, in post-copy                      ``postcopy_complete``: the destination has every page
==============  =============================================  =======================================================

Between device-state and storage the source learns that the destination is ready; with ``verify = "pause"`` both sides
hash all memory there. A migration that was cancelled or failed has the phases that it reached; the last one ends when
the guest went on at the source, or when the engine gave up. A phase of which one end was not observed is left out:
nothing is made up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bench.analysis.flows import Window
from bench.errors import ResultError
from bench.result import PhaseResult, RoundResult
from bench.timeline import Event, Timeline

PHASES: Final = ("setup", "precopy", "stop-and-copy", "device-state", "storage", "resume", "announce")
POST_COPY: Final = "postcopy"  # a phase of post-copy only; the announcements go out meanwhile

_SOURCE: Final = "engine.source"
_DESTINATION: Final = "engine.destination"
_ROUND_COUNTS: Final = ("pages", "zero_pages", "bytes_sent", "dirty_pages_after", "start_ns", "end_ns")


class _Moments:
    """When things happened within one migration; None for what was not observed."""

    def __init__(self, timeline: Timeline, window: Window) -> None:
        events = timeline.select(after_ns=window.start_ns, before_ns=window.end_ns)
        self._source = [event for event in events if event.source == _SOURCE]
        self._destination = [event for event in events if event.source == _DESTINATION]
        self._guests = [event for event in events if event.source.startswith("guest.")]
        self.setup_begin = self._first("setup_begin", self._source)
        self.setup_end = self._first("setup_end", self._source)
        self.pause_begin = self._first("pause_begin", self._guests, self._source)
        self.paused = self._first("vcpus_stopped", self._guests)
        if self.paused is None:
            self.paused = self._first("paused", self._source)
        self.final_pages = self._first("final_pages_received", self._destination)
        self.device_state = self._first("device_state_loaded", self._destination)
        self.storage_begin = self._first("storage_begin", self._source)
        self.storage = self._first("storage_acquired", self._destination)
        self.resumed = self._first("resumed", self._guests, self._destination)
        self.postcopy_begin = self._first("postcopy_begin", self._destination)
        self.postcopy_complete = self._first("postcopy_complete", self._destination)
        self.postcopy_end = self._first("postcopy_end", self._source)
        self.confirmed = self._first("handover_confirmed", self._source)
        self.rolled_back = self._first("rolled_back", self._guests)
        if self.rolled_back is None:
            self.rolled_back = self._first("resumed_at_source", self._source)
        self.finished = self._first("finished", self._source)
        announced = [event.t_ns for event in self._guests if event.name == "announce_sent"]
        # Those of the migration before may still be going out when this one begins.
        self.announced = max(
            (t_ns for t_ns in announced if self.resumed is not None and t_ns >= self.resumed), default=None
        )

    @staticmethod
    def _first(name: str, *among: Sequence[Event]) -> int | None:
        """The first of this name in the first group that has one."""
        return next((event.t_ns for group in among for event in group if event.name == name), None)


def migration_phases(timeline: Timeline, window: Window) -> list[PhaseResult]:
    """The phases that the migration in *window* reached, in order."""
    at = _Moments(timeline, window)
    bounds = (
        (at.setup_begin, at.setup_end),
        (at.setup_end, at.pause_begin),
        (at.pause_begin, at.final_pages),
        (at.final_pages, at.device_state),
        (at.storage_begin, at.storage),
        (at.storage, at.resumed),
        (at.resumed, at.announced),
        (at.postcopy_begin, at.postcopy_complete),
    )
    stopped = next((moment for moment in (at.rolled_back, at.finished) if moment is not None), window.end_ns)
    phases: list[PhaseResult] = []
    for number, (name, (start, end)) in enumerate(zip((*PHASES, POST_COPY), bounds, strict=True)):
        if start is None:
            continue
        later = [moment for pair in bounds[number + 1 :] for moment in pair if moment is not None and moment > start]
        if end is None and (later or name == "announce"):
            continue
        phases.append(PhaseResult(name=name, start_ns=start, end_ns=max(start, stopped if end is None else end)))
    return phases


def migration_rounds(timeline: Timeline, window: Window) -> list[RoundResult]:
    """The rounds that ended, in order; one that was cut off by a cancel or a failure has no counts and is left out.

    :raises ResultError: an event ``round_end`` without its numbers.
    """
    return [_round(event) for event in timeline.select("round_end", _SOURCE, window.start_ns, window.end_ns)]


def _round(event: Event) -> RoundResult:
    counts = {name: event.data.get(name) for name in _ROUND_COUNTS}
    if not all(isinstance(count, int) for count in counts.values()):
        raise ResultError(f"round_end without its numbers: {dict(event.data)}")
    return RoundResult.model_validate({**counts, "paused": event.data.get("paused") is True})


def total_ns(timeline: Timeline, window: Window) -> int | None:
    """From the source engine's first step until the source knew that the guest runs at the destination.

    Comparing the memories in the background and ending the source's guest come after that and are not in it. In
    post-copy: until the source knew that every page is there. Of a migration that did not complete: until the engine
    had given up. None when either was not observed.
    """
    at = _Moments(timeline, window)
    confirmed = at.confirmed if at.postcopy_begin is None else at.postcopy_end
    end = confirmed if confirmed is not None else at.finished
    return None if at.setup_begin is None or end is None else end - at.setup_begin


def transfer_ns(timeline: Timeline, window: Window) -> int | None:
    """As :func:`total_ns`, but from the end of the set-up: the time in which memory and state crossed."""
    at = _Moments(timeline, window)
    end = at.confirmed if at.postcopy_begin is None else at.postcopy_end
    return None if at.setup_end is None or end is None else end - at.setup_end


def downtime_ns(timeline: Timeline, window: Window) -> int | None:
    """How long the guest stood still: from its vCPUs' stop at the source to its resume, there or (rolled back) here.

    None when it was never paused, or when it was not seen to go on.
    """
    at = _Moments(timeline, window)
    went_on = at.resumed if at.resumed is not None else at.rolled_back
    return None if at.paused is None or went_on is None else went_on - at.paused


def pause_and_resume_ns(timeline: Timeline, window: Window) -> tuple[int | None, int | None]:
    """The ends of the downtime; None for what was not observed."""
    at = _Moments(timeline, window)
    return at.paused, at.resumed if at.resumed is not None else at.rolled_back

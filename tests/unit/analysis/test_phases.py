from __future__ import annotations

import itertools

import pytest

from bench.analysis.flows import Window
from bench.analysis.phases import (
    PHASES,
    downtime_ns,
    migration_phases,
    migration_rounds,
    pause_and_resume_ns,
    total_ns,
    transfer_ns,
)
from bench.errors import ResultError
from bench.timeline import Event, Timeline

SOURCE, DESTINATION, OLD, NEW = "engine.source", "engine.destination", "guest.h1", "guest.h2"
WINDOW = Window(0, 10_000)

COMPLETED = [
    (100, SOURCE, "setup_begin"),
    (150, DESTINATION, "skeleton_ready"),
    (200, SOURCE, "setup_end"),
    (600, OLD, "pause_begin"),
    (600, SOURCE, "pause_begin"),
    (610, OLD, "vcpus_stopped"),
    (610, SOURCE, "paused"),
    (700, DESTINATION, "final_pages_received"),
    (740, DESTINATION, "device_state_loaded"),
    (750, SOURCE, "storage_begin"),
    (760, SOURCE, "storage_end"),
    (770, DESTINATION, "storage_acquired"),
    (780, NEW, "resumed"),
    (780, DESTINATION, "resumed"),
    (790, NEW, "port_wired"),
    (800, NEW, "announce_sent"),
    (810, SOURCE, "handover_confirmed"),
    (900, NEW, "announce_sent"),
    (950, SOURCE, "source_gone"),
    (960, SOURCE, "finished"),
]


def timeline(moments: list[tuple[int, str, str]], shift_ns: int = 0) -> Timeline:
    return Timeline(Event(t_ns + shift_ns, source, name) for t_ns, source, name in moments)


def spans(events: Timeline, window: Window = WINDOW) -> dict[str, tuple[int, int]]:
    return {phase.name: (phase.start_ns, phase.end_ns) for phase in migration_phases(events, window)}


def test_a_completed_migration_has_all_phases_in_order() -> None:
    found = spans(timeline(COMPLETED))
    assert tuple(found) == PHASES
    assert found == {
        "setup": (100, 200),
        "precopy": (200, 600),
        "stop-and-copy": (600, 700),
        "device-state": (700, 740),
        "storage": (750, 770),
        "resume": (770, 780),
        "announce": (780, 900),
    }
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(found.values()))


def test_post_copy_goes_on_from_the_resume_until_the_last_page() -> None:
    more = [(780, DESTINATION, "postcopy_begin"), (5000, DESTINATION, "postcopy_complete")]
    events = timeline([*COMPLETED, *more, (5100, SOURCE, "postcopy_end")])
    assert spans(events)["postcopy"] == (780, 5000)
    assert total_ns(events, WINDOW) == 5000
    assert transfer_ns(events, WINDOW) == 4900
    assert transfer_ns(timeline(COMPLETED), WINDOW) == 610
    assert downtime_ns(events, WINDOW) == 170


def test_a_guest_lost_in_post_copy_has_a_post_copy_until_the_end() -> None:
    events = timeline([*COMPLETED, (780, DESTINATION, "postcopy_begin"), (4000, SOURCE, "finished")])
    assert spans(events)["postcopy"][0] == 780
    assert total_ns(events, WINDOW) is not None


def test_times_of_a_completed_migration() -> None:
    events = timeline(COMPLETED)
    assert total_ns(events, WINDOW) == 710
    assert downtime_ns(events, WINDOW) == 170
    assert pause_and_resume_ns(events, WINDOW) == (610, 780)


def test_cancelled_in_the_precopy() -> None:
    events = timeline([*COMPLETED[:3], (400, SOURCE, "finished")])
    assert spans(events) == {"setup": (100, 200), "precopy": (200, 400)}
    assert total_ns(events, WINDOW) == 300
    assert downtime_ns(events, WINDOW) is None


def test_failed_in_the_setup() -> None:
    assert spans(timeline([COMPLETED[0], (130, SOURCE, "finished")])) == {"setup": (100, 130)}


@pytest.mark.parametrize("reached", range(4, 12))
def test_rolled_back_after_the_pause_the_last_phase_ends_when_the_guest_went_on(reached: int) -> None:
    events = timeline([*COMPLETED[:reached], (775, OLD, "rolled_back"), (780, SOURCE, "finished")])
    found = spans(events)
    assert tuple(found) == PHASES[: len(found)]
    assert len(found) >= 3
    between = reached == 9  # the device state was there, the handover of the storage had not begun
    assert max(end for _start, end in found.values()) == (740 if between else 775)
    if reached > 5:
        assert downtime_ns(events, WINDOW) == 165


def test_an_engine_that_was_killed_ends_its_phase_at_the_end_of_the_window() -> None:
    assert spans(timeline(COMPLETED[:3]), Window(0, 5000))["precopy"] == (200, 5000)
    assert total_ns(timeline(COMPLETED[:3]), WINDOW) is None


def test_nothing_is_made_up_for_a_witness_that_is_missing() -> None:
    found = spans(timeline([moment for moment in COMPLETED if moment[1] != DESTINATION]))
    assert tuple(found) == ("setup", "precopy", "announce")
    assert downtime_ns(timeline([moment for moment in COMPLETED if moment[1] not in (OLD, NEW)]), WINDOW) == 170


def test_without_announcements_there_is_no_announce_phase() -> None:
    assert "announce" not in spans(timeline([moment for moment in COMPLETED if moment[2] != "announce_sent"]))


def test_no_events_no_phases() -> None:
    assert migration_phases(Timeline(), WINDOW) == []
    assert migration_rounds(Timeline(), WINDOW) == []


def test_every_migration_of_a_repeated_run_has_its_own() -> None:
    events = Timeline([*timeline(COMPLETED), *timeline(COMPLETED, 1000)])
    first, second = spans(events, Window(0, 1050)), spans(events, Window(1050, 3000))
    assert second == {name: (start + 1000, end + 1000) for name, (start, end) in first.items()}


def test_the_last_announcements_of_the_migration_before_do_not_count() -> None:
    events = timeline([(50, OLD, "announce_sent"), *(item for item in COMPLETED if item[2] != "announce_sent")])
    assert "announce" not in spans(events)


def test_rounds() -> None:
    counts = {
        "pages": 10,
        "zero_pages": 2,
        "bytes_sent": 33_000,
        "dirty_pages_after": 3,
        "start_ns": 200,
        "end_ns": 500,
    }
    events = Timeline(
        [
            Event(500, SOURCE, "round_end", {**counts, "round": 1, "paused": False, "bandwidth_bps": None}),
            Event(650, SOURCE, "round_end", {**counts, "round": 2, "start_ns": 600, "end_ns": 650, "paused": True}),
            Event(20_000, SOURCE, "round_end", counts),
        ]
    )
    first, last = migration_rounds(events, WINDOW)
    assert (first.pages, first.zero_pages, first.bytes_sent, first.dirty_pages_after) == (10, 2, 33_000, 3)
    assert (first.start_ns, first.end_ns, first.paused) == (200, 500, False)
    assert last.paused


def test_a_round_without_numbers_is_refused() -> None:
    with pytest.raises(ResultError, match="round_end without its numbers"):
        migration_rounds(Timeline([Event(1, SOURCE, "round_end", {"pages": 1})]), WINDOW)

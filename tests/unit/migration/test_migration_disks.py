"""The source's disks before the pause: a storage that is slow or silent ends the migration in time, and says why."""

import socket

import pytest

from bench.clock import NS_PER_MS, NS_PER_S
from bench.errors import MigrationError
from bench.migration.commands import Cancelled
from bench.migration.policy import Limits
from bench.migration.storage import SourceStorage

MIB = 1 << 20
LIMITS = Limits(300 * NS_PER_MS, max_rounds=3, max_time_ns=60 * NS_PER_S)
GUEST = {"storage": {"disks": [{"name": "vda", "kind": "local"}], "servers": {}, "timeout_ns": 50 * NS_PER_MS}}
SHARED = {"storage": {"disks": [{"name": "vda", "kind": "shared"}], "servers": {}, "timeout_ns": 50 * NS_PER_MS}}


class Reports:
    def __init__(self):
        self.names = []

    def __call__(self, name, t_ns=None, **data):
        self.names.append(name)

    def progress(self, name, **data):
        self.names.append(name)


class Control:
    """A guest whose disks answer with what the test says, the last of it again and again."""

    def __init__(self, **answers):
        self.answers = answers
        self.asked = []

    def disks(self, what, deadline=None, **args):
        self.asked.append(what)
        left = self.answers.get(what, [{}])
        return left.pop(0) if len(left) > 1 else left[0]


class Quiet:
    """A runner and a destination that say nothing."""

    def __init__(self):
        self.mine, self.other = socket.socketpair()
        self.connection = self

    def wait(self, events, deadline, what):
        pass

    def check(self):
        pass

    def serve(self):
        pass

    def fileno(self):
        return self.mine.fileno()


@pytest.fixture
def quiet():
    made = Quiet()
    yield made
    made.mine.close()
    made.other.close()


def storage(control, stall_ns=50 * NS_PER_MS, guest=GUEST):
    reports = Reports()
    return SourceStorage(guest, control, "h2", reports, stall_ns), reports


def flush(over, problem="", pending=0):
    return {"over": over, "problem": problem, "pending": pending}


def copy(arrived, close=False, problem="", dirty=0):
    return {"vda": {"arrived_bytes": arrived, "dirty_bytes": dirty, "close": close, "problem": problem}}


def approached(disks):
    """How many looks at the disks before the pause found that it is not over."""
    approach, looks = disks.approach(), 0
    while not approach.expired:
        looks += 1
    return looks


def test_a_flush_that_is_over_is_told():
    control = Control(settled=[flush(False, pending=3), flush(False, pending=1), flush(True)])
    disks, reports = storage(control, guest=SHARED)
    assert approached(disks) == 2
    assert control.asked == ["settle", "settled", "settled", "settled"]
    assert reports.names == ["storage_settled"]


def test_the_copies_of_local_disks_come_close_before_the_flush():
    control = Control(mirrors=[copy(0, dirty=9 * MIB), copy(0, dirty=5 * MIB), copy(0)], settled=[flush(True)])
    disks, reports = storage(control)
    assert approached(disks) == 3
    assert control.asked == ["mirrors"] * 3 + ["settle", "settled"]
    assert reports.names == ["storage_settled"]


def test_looks_at_disks_that_take_long_become_rare():
    disks, _reports = storage(Control(settled=[flush(False)]), guest=SHARED)
    approach = disks.approach()
    waits = [approach.next_look.duration_ns for _ in range(9)]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (NS_PER_MS, 20 * NS_PER_MS)


def test_a_flush_that_takes_too_long_ends_it_before_the_pause_and_names_the_key():
    disks, _reports = storage(Control(settled=[flush(False, pending=7)]), guest=SHARED)
    with pytest.raises(MigrationError, match=r"not flushed within 0.05 s, 7 requests") as caught:
        approached(disks)
    assert "storage.timeout" in caught.value.remedy


def test_a_flush_that_fails_ends_it():
    disks, _reports = storage(Control(settled=[flush(True, "No space left on device")]), guest=SHARED)
    with pytest.raises(MigrationError, match="No space left on device"):
        approached(disks)


def test_a_guest_without_disks_has_nothing_to_flush(quiet):
    control = Control()
    disks, reports = storage(control, guest={})
    assert disks.approach() is None
    disks.begin(quiet, LIMITS)
    assert control.asked == reports.names == []


def test_a_copy_of_which_nothing_arrives_any_more_has_failed(quiet):
    control = Control(mirrors=[copy(0), copy(MIB), copy(2 * MIB)])
    disks, reports = storage(control)
    with pytest.raises(MigrationError, match=r"nothing has arrived at h2 for 0\.05 s"):
        disks.begin(quiet, LIMITS)
    assert "mirror_close" not in reports.names


def test_a_copy_that_goes_on_is_waited_for_however_long_it_takes(quiet):
    control = Control(mirrors=[*(copy(number * MIB) for number in range(12)), copy(12 * MIB, close=True)])
    disks, reports = storage(control, stall_ns=40 * NS_PER_MS)  # it takes 12 looks of 20 ms
    disks.begin(quiet, LIMITS)
    assert reports.names[-1] == "mirror_close"


def rounds(*dirty_after_mib):
    """A copy that goes on, after rounds that left so much each."""
    status = copy(0, dirty=9 * MIB)
    status["vda"]["rounds"] = [{"bytes": 20 * MIB, "dirty_bytes_after": left * MIB} for left in dirty_after_mib]
    return status


def test_a_copy_that_does_not_converge_is_forced_after_rounds_that_left_no_less(quiet):
    control = Control(mirrors=[rounds(30, 10), rounds(30, 10, 12, 11), rounds(30, 10, 12, 11, 10)])
    told = []
    disks, reports = storage(control, stall_ns=60 * NS_PER_S)
    disks._report = lambda name, t_ns=None, **data: told.append((name, data.get("reason", "")))
    disks._report.progress = reports.progress
    disks.begin(quiet, LIMITS)
    assert told[-1][0] == "mirror_close"
    assert told[-1][1].startswith("forced, no convergence of disk vda: none of the last 3 rounds left less than")
    assert len(control.asked) == 4


def test_a_copy_that_does_not_converge_is_cancelled_where_that_was_asked_for(quiet):
    slow = Limits(300 * NS_PER_MS, 3, 50 * NS_PER_MS, on_no_convergence="cancel")
    disks, reports = storage(Control(mirrors=[rounds(30, 20, 10)]), stall_ns=60 * NS_PER_S)
    with pytest.raises(Cancelled, match=r"no convergence of the local disks after 0\.05 s: 9 MiB remain"):
        disks.begin(quiet, slow)
    assert "mirror_close" not in reports.names

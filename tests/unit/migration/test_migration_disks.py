"""The source's disks before the pause: a storage that is slow or silent ends the migration in time, and says why."""

import socket

import pytest

from bench.clock import NS_PER_MS
from bench.errors import MigrationError
from bench.migration.storage import SourceStorage

MIB = 1 << 20
GUEST = {"storage": {"disks": [{"name": "vda", "kind": "local"}], "servers": {}, "timeout_ns": 50 * NS_PER_MS}}


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


def copy(arrived, close=False, problem=""):
    return {"vda": {"arrived_bytes": arrived, "dirty_bytes": 0, "close": close, "problem": problem}}


def test_a_flush_that_is_over_is_told(quiet):
    control = Control(settled=[flush(False, pending=3), flush(False, pending=1), flush(True)])
    disks, reports = storage(control)
    disks.settle(quiet)
    assert control.asked == ["settle", "settled", "settled", "settled"]
    assert reports.names == ["storage_settled"]


def test_a_flush_that_takes_too_long_ends_it_before_the_pause_and_names_the_key(quiet):
    disks, _reports = storage(Control(settled=[flush(False, pending=7)]))
    with pytest.raises(MigrationError, match=r"not flushed within 0.05 s, 7 requests") as caught:
        disks.settle(quiet)
    assert "storage.timeout" in caught.value.remedy


def test_a_flush_that_fails_ends_it(quiet):
    disks, _reports = storage(Control(settled=[flush(True, "No space left on device")]))
    with pytest.raises(MigrationError, match="No space left on device"):
        disks.settle(quiet)


def test_a_guest_without_disks_has_nothing_to_flush(quiet):
    control = Control()
    disks, reports = storage(control, guest={})
    disks.settle(quiet)
    disks.begin(quiet)
    assert control.asked == reports.names == []


def test_a_copy_of_which_nothing_arrives_any_more_has_failed(quiet):
    control = Control(mirrors=[copy(0), copy(MIB), copy(2 * MIB)])
    disks, reports = storage(control)
    with pytest.raises(MigrationError, match=r"nothing has arrived at h2 for 0\.05 s"):
        disks.begin(quiet)
    assert "mirror_close" not in reports.names


def test_a_copy_that_goes_on_is_waited_for_however_long_it_takes(quiet):
    control = Control(mirrors=[*(copy(number * MIB) for number in range(12)), copy(12 * MIB, close=True)])
    disks, reports = storage(control, stall_ns=40 * NS_PER_MS)  # it takes 12 looks of 20 ms
    disks.begin(quiet)
    assert reports.names[-1] == "mirror_close"

"""Moves a guest between the two hypervisors of a lab, by both real engines."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from guest_lab import ANNOUNCE, MIGRATION_PORT, Lab, lab

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, wait_until
from bench.errors import BenchError
from bench.guest.client import GuestControl
from bench.host.lease import Lease
from bench.migration.driver import RECOVER_NS, Migration, Plan
from bench.timeline import Timeline

MIB = 1 << 20
SETTINGS = {
    "downtime_limit_ns": 300 * NS_PER_MS,
    "max_rounds": 30,
    "max_time_ns": 60 * NS_PER_S,
    "max_bandwidth_bps": 0,
    "on_no_convergence": "force",
    "verify": "background",
    "mode": "precopy",
}


class Mover:
    """Moves the lab's guest between its two hypervisors."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.count = 0

    def boot(self, **changes):
        guest = self.lab.spawn("h1")
        self.config = self.lab.config("h1", False, **changes)
        guest.control.configure(self.config)
        guest.control.start(ANNOUNCE)
        self.host, self.socket, self.first = "h1", guest.socket, guest
        self.control = guest.control

    def start(self, **changes) -> Migration:
        """Start moving to the other hypervisor."""
        migration = self.prepare(**changes)
        self.lab.stack.callback(self._end_guest, self.plan.new_guest_socket)
        self.lab.stack.callback(migration.stop)
        migration.start()
        return migration

    def prepare(self, *, recover_every_ns=0, recover_for_ns=RECOVER_NS, **changes) -> Migration:
        """The migration to the other hypervisor, not started yet; whoever asks for it ends what it starts."""
        there = "h2" if self.host == "h1" else "h1"
        self.count += 1
        directory = self.lab.directory
        base = f"new.{there}.{self.count}"
        self.plan = Plan(
            source_pid=self.lab.namespaces[self.host].pid,
            destination_pid=self.lab.namespaces[there].pid,
            source_host=self.host,
            destination_host=there,
            guest={**self.config, "host": self.host, "lease": {"path": str(self.lab.lease), "me": self.host}},
            guest_socket=self.socket,
            new_guest_socket=directory / f"{base}.sock",
            new_guest_events=directory / f"{base}.jsonl",
            new_guest_log=directory / f"{base}.log",
            bridge="br0",
            lease_path=self.lab.lease,
            address=f"10.0.0.{there[1:]}",
            port=MIGRATION_PORT,
            migration={**SETTINGS, **changes},
            announce=ANNOUNCE,
            events_directory=directory,
            log_directory=directory,
            tag=str(self.count),
            recover_every_ns=recover_every_ns,
            recover_for_ns=recover_for_ns,
        )
        self.moving = Migration(self.plan)
        return self.moving

    def move(self, on_event=None, **changes):
        return self.end(self.start(**changes).wait(on_event, Deadline(90 * NS_PER_S)))

    def end(self, outcome):
        """Of the migration under way; the guest is where it leads to."""
        self.moving.stop()
        if outcome["outcome"] == "completed":
            self.host, self.socket = self.plan.destination_host, self.plan.new_guest_socket
            self.control = GuestControl.connect(self.socket)
            self.lab.stack.callback(self.control.close)
        return outcome

    def rounds(self):
        events = Timeline.read(self.lab.directory / f"engine.source-{self.count}.jsonl")
        return [event.data for event in events.select("round_end")]

    def running(self):
        """(host, pages written) of every guest that says that it runs."""
        found = []
        places = {self.plan.source_host: self.plan.guest_socket, self.plan.destination_host: self.plan.new_guest_socket}
        for host, path in places.items():
            with (
                contextlib.suppress(BenchError),
                GuestControl.connect(path, deadline=Deadline(NS_PER_S // 2)) as control,
            ):
                if control.stats()["state"] == "running":
                    found.append(host)
        return found

    def assert_one_runs(self):
        owner = Lease(self.lab.lease).read().owner
        wait_until(lambda: self.running() == [owner], Deadline(20 * NS_PER_S), f"the guest runs at {owner} only")
        return owner

    def link(self, host, state):
        self.lab.namespaces[host].ip("link", "set", f"{host}-eth0", state)

    @staticmethod
    def _end_guest(path):
        with contextlib.suppress(BenchError), GuestControl.connect(path, deadline=Deadline(NS_PER_S // 10)) as control:
            control.quit(Deadline(2 * NS_PER_S))


def settle_bridges(made: Lab) -> None:
    """A bridge without an address of its own takes the lowest of its ports': it would change with each guest that comes
    or goes, and the other hypervisor's ARP entry would be wrong for 8 s.
    """
    for host in ("h1", "h2"):
        namespace = made.namespaces[host]
        uplink = namespace.ip("-o", "link", "show", f"{host}-eth0").split("link/ether ")[1].split()[0]
        namespace.ip("link", "set", "br0", "address", uplink)


@contextlib.contextmanager
def moving() -> Iterator[Mover]:
    """A lab, and who moves the guest in it."""
    directory = Path(tempfile.mkdtemp(prefix="mg-", dir="/tmp"))
    try:
        with lab(directory) as made:
            settle_bridges(made)
            yield Mover(made)
    finally:
        shutil.rmtree(directory)


def workload(pattern, rate_bytes_per_s=16 * MIB):
    return {
        "pattern": pattern,
        "rate_bytes_per_s": rate_bytes_per_s,
        "working_set_bytes": 4 * MIB,
        "hot_share": 0.9,
        "write_bytes": 256,
        "seed": 1,
    }

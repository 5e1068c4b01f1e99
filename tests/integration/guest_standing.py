"""A guest that stays from one test to the next, a client that talks to it, and a look at what a migration left behind.

Raising a network, a guest and its clients costs more than moving the guest does; so many cases share one, and it is
raised anew only when a case has cost the guest its life.
"""

import contextlib
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from guest_lab import GUEST_IP, Lab, lab
from guest_mover import Mover, settle_bridges

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.errors import BenchError
from bench.guest.client import GuestControl
from bench.host.kernel import entered_netns
from bench.host.lease import Lease

ECHO_PORT = 7
ANSWER_S = 20


class Talker:
    """A client with one connection to the guest's echo service; what it says must come back, whatever happens."""

    def __init__(self, namespace_pid):
        with entered_netns(namespace_pid):
            self.sock = socket.create_connection((GUEST_IP, ECHO_PORT), ANSWER_S)
        self.sock.settimeout(ANSWER_S)
        self.said = bytearray()
        self.count = 0

    def say(self):
        """Without waiting for the answer."""
        self.count += 1
        text = f"{self.count} ".encode() * 400
        self.sock.sendall(text)
        self.said += text

    def hear(self):
        """Everything that was said since the last time comes back."""
        heard = bytearray()
        while len(heard) < len(self.said):
            part = self.sock.recv(1 << 16)
            assert part, "the guest closed the connection"
            heard += part
        assert heard == self.said
        self.said.clear()

    def close(self):
        self.sock.close()


class Standing(Mover):
    """The guest, wherever it is now."""

    def __init__(self, made: Lab, **guest) -> None:
        super().__init__(made)
        self.guest = guest
        self.alive = False
        self.boots = 0
        self.client: Talker
        self.control: GuestControl

    def ensure(self):
        """The guest runs and its client talks to it; a new one, if the last was lost."""
        if not self.alive:
            self.sweep()
            self.lab.lease.unlink(missing_ok=True)
            self.boot(**self.guest)
            self.client = Talker(self.lab.namespaces["c"].pid)
            self.boots += 1
            self.alive = True
        self.client.say()
        self.client.hear()
        return self

    def owner(self):
        return Lease(self.lab.lease).read().owner

    def settle(self):
        """After a migration: the guest is where the lease says, runs only there, and nothing else of it is left.

        :returns: the host.
        """
        self.moving.stop()
        owner = self.owner()
        if owner == self.plan.destination_host:
            self.socket, self.host = self.plan.new_guest_socket, owner
            self.control = GuestControl.connect(self.socket)
            self.lab.stack.callback(self.control.close)
        wait_until(lambda: self._guests() == [self.socket], Deadline(20 * NS_PER_S), f"one guest, at {owner}")
        assert self.running() == [owner]
        wait_until(lambda: self._ports() == [owner], Deadline(20 * NS_PER_S), f"one port, at {owner}")
        return owner

    def require_lost(self):
        """After a migration that cost the guest its life: nothing of it is left, and nothing half runs."""
        self.alive = False
        self.moving.stop()
        wait_until(lambda: not self._guests(), Deadline(20 * NS_PER_S), "no half guest")
        wait_until(lambda: self._ports() == [], Deadline(20 * NS_PER_S), "no port is left")
        self.client.close()

    def require_intact(self):
        """Its client goes on, its memory holds what its vCPUs wrote, and a migration left neither door nor tracking."""
        self.client.hear()
        assert self.control.stats(check=True)["self_check_errors"] == 0
        other = Talker(self.lab.namespaces["c"].pid)  # the door is open
        other.say()
        other.hear()
        other.close()
        self.control.track(True, "pagemap-scan")  # nobody else tracks
        self.control.track(False, "pagemap-scan")

    def _ports(self):
        """Hosts with a guest's port; the kernel takes it away some time after its guest."""
        names = self.lab.namespaces
        return [host for host in ("h1", "h2") for _ in range(names[host].ip("-o", "link").count("vnet-g"))]

    def _guests(self):
        """The sockets of all guests of this lab that live."""
        found = []
        for path in self.lab.directory.glob("*.sock"):
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                probe.connect(str(path))
                found.append(path)
        return found

    def sweep(self):
        """End what is left: after the last case, or after one that failed."""
        if hasattr(self, "moving"):
            self.moving.stop()
        if hasattr(self, "client"):
            self.client.close()
        for path in self._guests():
            with contextlib.suppress(BenchError), GuestControl.connect(path, deadline=Deadline(NS_PER_S)) as control:
                control.quit(Deadline(2 * NS_PER_S))


@contextlib.contextmanager
def standing(**guest) -> Iterator[Standing]:
    """:param guest: changes to the guest's configuration."""
    directory = Path(tempfile.mkdtemp(prefix="mg-", dir="/tmp"))
    try:
        with lab(directory) as made:
            settle_bridges(made)
            stood = Standing(made, **guest)
            made.stack.callback(stood.sweep)
            yield stood
    finally:
        shutil.rmtree(directory)

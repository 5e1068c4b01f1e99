"""All Open vSwitch daemons of a run, and which of them a switch belongs to.

In the userspace datapath one thread receives from every port of every switch that its ovs-vswitchd has, whoever woke
it, and each port costs some microseconds even when nothing has come (``dp_netdev_process_rxq_port`` in OVS's
``lib/dpif-netdev.c``; with TSO every look makes a batch of buffers). So what a frame waits at one switch grows with the
ports of all: measured on two cores in a fat-tree of 20 switches, a round trip took 1.4 ms more for each switch with one
daemon, and 0.22 ms with a daemon for each. Therefore switches are spread over several daemons, each with a database of
its own, as soon as they have more than :data:`FEW_PORTS` ports. The kernel's datapath knows nothing of this: one does.

Several daemons in one network namespace use the datapath type ``dummy`` (``ovs-vswitchd --enable-dummy``): the same
datapath as ``netdev``, but for the taps that it would make for itself (``ovs-netdev``, and one for each bridge), whose
name only one daemon can have. Ports are the same interfaces, received from in the same way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Literal

from bench.host.commands import Process
from bench.host.ovs import Datapath, OpenVSwitch

FEW_PORTS: Final = 12
"""So many may share a daemon, whosever they are: with fewer, another process costs more than it saves."""

MOST_DAEMONS: Final = 24
"""Each takes 20 MiB, and a quarter of a second of a processor to start: more switches than that share."""

_TOGETHER: Final = 4  # so many are started at the same time


def spread(ports: Mapping[str, int]) -> list[list[str]]:
    """Which switches share a daemon, in their order; never an empty list, so that there is one in any case.

    :param ports: switch -> how many it has.
    """
    names = list(ports)
    if sum(ports.values()) <= FEW_PORTS:
        return [names]
    each = -(-len(names) // MOST_DAEMONS)
    return [names[first:][:each] for first in range(0, len(names), each)]


class SwitchDaemons:
    """Every daemon of a run: one where the kernel's datapath does, else as :func:`spread` says.

    :param directory: of the run, short; the first daemon's own, the others have theirs below it.
    :param ports: switch -> how many ports it has.
    :param linked: a socket that every daemon is to find in its directory (they connect to none elsewhere), under its
        name; None for none.
    """

    def __init__(
        self,
        directory: Path,
        datapath: Literal["auto", "kernel", "user"],
        ports: Mapping[str, int],
        linked: Path | None = None,
    ) -> None:
        self._directory = directory
        self._groups = spread(ports)
        self._linked = linked
        several = len(self._groups) > 1
        self._first = OpenVSwitch(directory, datapath, beside_others=several)
        self._all = [self._first]
        self._of: dict[str, OpenVSwitch] = {}

    def start(self) -> None:
        """:raises MachineError, HostError: as :meth:`OpenVSwitch.start`."""
        self._first.start()
        groups = (
            self._groups if self._first.datapath == "user" else [[name for group in self._groups for name in group]]
        )
        for number, _group in enumerate(groups[1:], 2):
            self._all.append(OpenVSwitch(self._directory / str(number), "user", beside_others=True, label=f"-{number}"))
        with ThreadPoolExecutor(_TOGETHER) as pool:
            list(pool.map(OpenVSwitch.start, self._all[1:]))
        self._of = {switch: daemon for daemon, group in zip(self._all, groups, strict=True) for switch in group}
        if self._linked is not None:
            for daemon in self._all:
                path = daemon.directory / self._linked.name
                if path != self._linked:
                    path.symlink_to(self._linked)

    def stop(self) -> None:
        """Stop them all. Idempotent and bounded."""
        with ThreadPoolExecutor(len(self._all)) as pool:  # they wait for the kernel, not for a processor
            list(pool.map(OpenVSwitch.stop, self._all))

    def of(self, switch: str) -> OpenVSwitch:
        """The daemons that a switch belongs to; the first ones' where it is not of the topology."""
        return self._of.get(switch, self._first)

    def __iter__(self) -> Iterator[OpenVSwitch]:
        return iter(self._all)

    @property
    def datapath(self) -> Datapath:
        return self._first.datapath

    @property
    def processes(self) -> tuple[Process, ...]:
        """All of all."""
        return tuple(process for daemon in self._all for process in daemon.processes)

    @property
    def forwarding_pids(self) -> Sequence[int]:
        """The processes whose packet sockets carry all frames; none with the kernel's datapath."""
        if self.datapath != "user":
            return []
        return [process.pid for process in self.processes if process.name == "ovs-vswitchd"]

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        """While the body runs, programs started by this process find the first daemons."""
        with self._first.environment():
            yield

    def switch_class(self, controller_port: int | None = None, *, controller_target: str | None = None) -> type:
        """The Mininet switch class of these daemons; see :meth:`OpenVSwitch.switch_class`. A target ``unix:FILE`` is
        told to each switch as the link to it in its daemons' directory.
        """
        made = self._first.switch_class(controller_port, controller_target=controller_target)
        return type(made.__name__, (made,), {"daemons_of": staticmethod(self.of)})

"""Several fake switches with links between them, and the logic of a network-wide app: every frame walks for real."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fake_flow_table import FakeFlowTable, data_frame
from mininet.topo import Topo

from controllers import lldp
from controllers.learning_logic import Barrier, Observation
from controllers.steps import PacketOut, Steps
from topologies.paths import switch_dpids

NS_PER_MS = 1_000_000
MAX_HOPS = 64


class Loop(Exception):
    """A frame went round."""


@dataclass
class Lab:
    """A topology of fake switches under *logic*. Barriers wait in ``asked`` until :meth:`confirm` answers them.

    :ivar place: host -> (dpid, port).
    """

    topo: Topo
    logic: Any
    now_ns: int = 0
    tables: dict[int, FakeFlowTable] = field(default_factory=dict)
    wires: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    place: dict[str, tuple[int, int]] = field(default_factory=dict)
    asked: deque[tuple[int, int]] = field(default_factory=deque)
    seen: list[Observation] = field(default_factory=list)

    def __post_init__(self) -> None:
        dpids = switch_dpids(self.topo)
        for switch, dpid in dpids.items():
            self.tables[dpid] = FakeFlowTable(frozenset(self.topo.ports[switch]))
            for port, (other, other_port) in self.topo.ports[switch].items():
                if other in dpids:
                    self.wires[dpid, port] = (dpids[other], other_port)
                else:
                    self.place[other] = (dpid, port)

    def start(self) -> None:
        """All switches connect, and the topology is found."""
        for dpid, table in self.tables.items():
            self.apply(self.logic.connected(self.now_ns, dpid, sorted(table.ports)))
        for _ in range(20):
            self.tick(100)

    def tick(self, ms: int) -> None:
        """So much later the logic looks at the clock, and whatever it asks for is confirmed."""
        self.wait(ms)
        self.apply(self.logic.tick(self.now_ns))
        self.confirm_all()

    def wait(self, ms: int) -> None:
        self.now_ns += ms * NS_PER_MS
        for table in self.tables.values():
            table.now_ns = self.now_ns

    def apply(self, steps: Steps) -> None:
        for at in steps:
            if isinstance(at.step, Barrier):
                self.asked.append((at.dpid, at.step.token))
            elif isinstance(at.step, PacketOut):
                for port in at.step.outputs:
                    if isinstance(port, int) and (at.dpid, port) in self.wires:
                        self._arrive(*self.wires[at.dpid, port], at.step.data)
            elif isinstance(at.step, Observation):
                self.seen.append(at.step)
            else:
                self.tables[at.dpid].apply([at.step])

    def _arrive(self, dpid: int, port: int, frame: bytes) -> None:
        """A frame of the controller's (LLDP) comes in at a switch."""
        assert lldp.parse(frame) is not None
        _ports, copied = self.tables[dpid].output(port, frame)
        if copied is not None:
            self.apply(self.logic.packet_in(self.now_ns, dpid, port, frame, copied.cookie))

    def confirm(self) -> bool:
        """One barrier is answered. :returns: whether one was waiting."""
        if not self.asked:
            return False
        self.apply(self.logic.confirmed(self.now_ns, *self.asked.popleft()))
        return True

    def confirm_all(self) -> None:
        while self.confirm():
            pass

    def order(self, **told: Any) -> None:
        order: Mapping[str, Any] = told
        self.apply(self.logic.ordered(self.now_ns, order))

    def walk(self, host: str, frame: bytes, *, ask: bool = True) -> list[str]:
        """Put a frame in at a host. :returns: the hosts that get it, each as often as it does.

        :param ask: let the controller see the copies.
        :raises Loop: when it goes round.
        """
        hosts = {place: name for name, place in self.place.items()}
        got: list[str] = []
        copies = []
        todo = deque([(*self.place[host], 0)])
        while todo:
            dpid, port, hops = todo.popleft()
            if hops > MAX_HOPS:
                raise Loop(host)
            ports, copied = self.tables[dpid].output(port, frame)
            if copied is not None:
                copies.append((dpid, port, copied.cookie))
            for out in ports:
                if (dpid, out) in self.wires:
                    todo.append((*self.wires[dpid, out], hops + 1))
                else:
                    got.append(hosts[dpid, out])
        for dpid, port, cookie in copies if ask else ():
            self.apply(self.logic.packet_in(self.now_ns, dpid, port, frame[:128], cookie))
        return sorted(got)

    def talk(self, host: str, mac: str, to: str, **options: bool) -> list[str]:
        return self.walk(host, data_frame(mac, to), **options)

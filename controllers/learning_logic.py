"""What a learning switch decides, without a network: packets in, flows and observations out.

One :class:`LearningSwitch` stands for one switch. Each call returns a list of steps in the order in which they take
effect; the OpenFlow app (:mod:`.learning`) carries them out. No clock and no socket here: the caller passes
CLOCK_MONOTONIC ns.

The pipeline
------------
A MAC address moves when its frames come in at another port, so a switch must compare each frame's *source* with what it
knows, not only look up its destination. Two tables do that:

=====  ========  =========================================  ==========================================================
table  priority  match                                      instruction
=====  ========  =========================================  ==========================================================
0      400       link-local group, or group source address  drop (IEEE 802.1D: a bridge does not forward these)
0      300       RARP, or ARP to broadcast                  a copy of its head to the controller; go to table 1
0      200       in_port and eth_src: a known pair          go to table 1
0      150       in_port: quietened, see below              go to table 1
0      0         anything: the pair is new                  a copy of its head to the controller; go to table 1
1      200       eth_dst: learnt                            output to its port
1      0         anything: broadcast, group, unknown        flood
=====  ========  =========================================  ==========================================================

- The rule of priority 300 lets every announcement reach the controller, also when flows match it already: "I am here"
  from a new port is seen at once, and so is a repetition.
- The switch forwards every frame by itself, the first of a new address too; the controller gets a copy of the first
  bytes. So no data frame waits for the controller or is overtaken by a later one, a broadcast crosses the
  controller's connection once per switch, and a 64 KiB segment (switches with segmentation offload carry those) never
  has to fit into an OpenFlow message. There is no packet-out.
- Table 1 holds one flow per address, keyed by eth_dst alone. A move *overwrites* it (same match and priority), so
  there is no instant without a flow, in which frames would be flooded, and no stale flow can be left, as there could
  be with a flow for each pair of ports.
- A move is followed by a barrier. Its answer says that the switch's tables are changed; its fast path may follow a
  moment later, which is why the bench looks at frames as well.

Late frames: the flap trap
--------------------------
When a guest has moved from port A to port B, frames that it sent before the pause can still arrive from A (a long link,
a full queue), and packet-ins of A may lie queued behind. Taken at face value they would move the address back to A, and
everything sent to the guest would be lost until its next frame from B. Therefore, for ``hold_ns`` after a move:

- A data frame from the *port it left* moves nothing. The switch is told not to ask about it either: the pair (A,
  address) stays "known" until a hard timeout of the same length, so a burst of late frames costs no packet-ins.
- An announcement from the port it left is obeyed, since a guest may really be back; only within ``guard_ns`` of the
  move it is taken for a late one. (A migration takes longer than that, and announcements are repeated.)

After the hold time a frame from A is news again and moves the address. So a genuine return without any announcement
is noticed after at most the hold time plus the switch's timer (a second), two machines with one address flap once in
that time at most, and late frames that are still in flight after ``hold_ns`` do make it flap.

Limits: one FDB for all VLANs (shared learning). At most ``max_macs`` addresses; when it is full, the port that brings
new ones is quietened for some seconds: its frames are forwarded without asking (announcements are still seen).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from controllers import packets

NS_PER_S = 1_000_000_000

SOURCE_TABLE = 0
DESTINATION_TABLE = 1

DROP_PRIORITY = 400
WATCH_PRIORITY = 300
KNOWN_PRIORITY = 200
QUIET_PRIORITY = 150
MISS_PRIORITY = 0

# Cookies tell a packet-in's rule; a flow-removed message's too.
MISS_COOKIE = 0xBE0001
WATCH_COOKIE = 0xBE0002
KNOWN_COOKIE = 0xBE0003

AGEING_S = 300  # as in a Linux bridge and Open vSwitch
QUIET_S = 10
HOLD_NS = NS_PER_S  # OpenFlow's timeouts count whole seconds
GUARD_NS = 20_000_000
HOLD_VARIABLE = "BENCH_HOLD_S"

Output: TypeAlias = int | Literal["controller", "flood"]


@dataclass(frozen=True, slots=True)
class Match:
    """What a flow matches; None is a wildcard. An address is ``"MAC"`` or ``"MAC/MASK"``."""

    in_port: int | None = None
    eth_src: str | None = None
    eth_dst: str | None = None
    eth_type: int | None = None


@dataclass(frozen=True, slots=True)
class Flow:
    """Add a flow, overwriting one of the same table, priority and match. Without outputs and ``goto`` it drops."""

    table: int
    priority: int
    match: Match
    outputs: tuple[Output, ...] = ()
    goto: int | None = None
    idle_timeout_s: int = 0
    hard_timeout_s: int = 0
    cookie: int = 0
    notify_removed: bool = False


@dataclass(frozen=True, slots=True)
class FlowDelete:
    """Delete every flow of *table* (None: all tables) at least as specific as *match* that outputs to *out_port*."""

    table: int | None = None
    match: Match = Match()
    out_port: int | None = None


@dataclass(frozen=True, slots=True)
class Barrier:
    """Let the switch confirm that all before is done. *mac*: the address it is about, None for the pipeline.

    *token*: handed back to the logic of a network-wide app with the answer.
    """

    mac: str | None = None
    token: int = 0


@dataclass(frozen=True, slots=True)
class Observation:
    """An event to write, as of the moment of the call."""

    name: str
    data: dict[str, Any] = field(default_factory=dict)


Step: TypeAlias = Flow | FlowDelete | Barrier | Observation


@dataclass(slots=True)
class Entry:
    """Where one address is. ``left_port``: where it was before its last move, at ``moved_ns``."""

    port: int
    installed_ns: int
    left_port: int | None = None
    moved_ns: int = 0


def hold_s(text: str) -> int:
    """The hold time in whole seconds, as OpenFlow counts it; empty: the default.

    :raises ValueError: when *text* is no number from 1 to 3600.
    """
    seconds = int(text) if text.isdecimal() else 0 if text else HOLD_NS // NS_PER_S
    if not 1 <= seconds <= 3600:
        raise ValueError(f"{HOLD_VARIABLE}={text}: a whole number of seconds from 1 to 3600")
    return seconds


def pipeline() -> list[Flow]:
    """The flows that do not depend on what was learnt."""
    broadcast_arp = Match(eth_type=packets.ETH_ARP, eth_dst=packets.BROADCAST)
    return [
        Flow(SOURCE_TABLE, DROP_PRIORITY, Match(eth_dst="01:80:c2:00:00:00/ff:ff:ff:ff:ff:f0")),
        Flow(SOURCE_TABLE, DROP_PRIORITY, Match(eth_src="01:00:00:00:00:00/01:00:00:00:00:00")),
        _copy_to_controller(WATCH_PRIORITY, Match(eth_type=packets.ETH_RARP), WATCH_COOKIE),
        _copy_to_controller(WATCH_PRIORITY, broadcast_arp, WATCH_COOKIE),
        _copy_to_controller(MISS_PRIORITY, Match(), MISS_COOKIE),
        Flow(DESTINATION_TABLE, MISS_PRIORITY, Match(), outputs=("flood",)),
    ]


def _copy_to_controller(priority: int, match: Match, cookie: int) -> Flow:
    return Flow(SOURCE_TABLE, priority, match, outputs=("controller",), goto=DESTINATION_TABLE, cookie=cookie)


class LearningSwitch:
    """The FDB of one switch and the decisions about it.

    :param name: the switch's name in observations.
    :param dpid: its datapath id.
    :param hold_ns: for how long after a move frames from the port that was left are taken for late ones.
    :param guard_ns: the same for announcements.
    :param max_macs: how many addresses it learns.
    """

    def __init__(
        self,
        name: str,
        dpid: int,
        *,
        hold_ns: int = HOLD_NS,
        guard_ns: int = GUARD_NS,
        ageing_s: int = AGEING_S,
        max_macs: int = 16384,
    ) -> None:
        self.name = name
        self.dpid = dpid
        self.fdb: dict[str, Entry] = {}
        self._hold_ns = hold_ns
        self._guard_ns = guard_ns
        self._ageing_s = ageing_s
        self._max_macs = max_macs

    def connected(self) -> list[Step]:
        """The switch is there (again): nothing it may hold from before counts."""
        self.fdb.clear()
        return [FlowDelete(), *pipeline(), Barrier()]

    def packet_in(self, now_ns: int, port: int, data: bytes, *, missed: bool) -> list[Step]:
        """A frame's head arrived from *port*.

        :param missed: sent by the table-miss flow (the switch does not know source and port), not by the watch.
        """
        frame = packets.parse(data)
        if frame is None:
            return []
        steps: list[Step] = [
            self._observe(
                "packet_in", dpid=self.dpid, port=port, src=frame.src, dst=frame.dst, ethertype=frame.ethertype
            )
        ]
        if frame.announcement is not None:
            told = frame.announcement
            steps.append(self._observe("announcement", kind=told.kind, mac=told.mac, ip=told.ip, port=port))
        if packets.is_unicast(frame.src):
            steps += self._source_seen(now_ns, frame.src, port, announced=frame.announcement is not None, missed=missed)
        return steps

    def flow_removed(self, match: Match) -> list[Step]:
        """A known pair fell silent and the switch removed its flow: forget the address, if it is still there."""
        mac, port = match.eth_src, match.in_port
        entry = self.fdb.get(mac) if mac is not None else None
        if mac is None or entry is None or entry.port != port:
            return []
        del self.fdb[mac]
        return [
            FlowDelete(DESTINATION_TABLE, Match(eth_dst=mac)),
            self._observe("mac_forgotten", mac=mac, port=port, reason="aged"),
        ]

    def port_down(self, port: int) -> list[Step]:
        """A port lost its link or was removed: nobody is behind it any more."""
        gone = [mac for mac, entry in self.fdb.items() if entry.port == port]
        for mac in gone:
            del self.fdb[mac]
        return [
            FlowDelete(SOURCE_TABLE, Match(in_port=port)),
            FlowDelete(DESTINATION_TABLE, out_port=port),
            *(self._observe("mac_forgotten", mac=mac, port=port, reason="port down") for mac in gone),
        ]

    def _source_seen(self, now_ns: int, mac: str, port: int, *, announced: bool, missed: bool) -> Iterable[Step]:
        entry = self.fdb.get(mac)
        if entry is None:
            return self._learn(now_ns, mac, port, missed=missed)
        if entry.port == port:
            return self._seen_again(now_ns, mac, entry, missed=missed)
        since_ns = now_ns - entry.moved_ns
        late_for_ns = self._guard_ns if announced else self._hold_ns
        if port == entry.left_port and since_ns < late_for_ns:
            return [self._observe("late_frame", mac=mac, port=port, current_port=entry.port, after_ns=since_ns)]
        return self._move(now_ns, mac, entry, port, announced=announced)

    def _learn(self, now_ns: int, mac: str, port: int, *, missed: bool) -> Iterable[Step]:
        if len(self.fdb) >= self._max_macs:
            if not missed:
                return []
            quiet = Match(in_port=port)
            return [
                Flow(SOURCE_TABLE, QUIET_PRIORITY, quiet, goto=DESTINATION_TABLE, hard_timeout_s=QUIET_S),
                self._observe("fdb_full", port=port, macs=len(self.fdb)),
            ]
        self.fdb[mac] = Entry(port, now_ns)
        return [*self._flows(mac, port), Barrier(mac), self._observe("mac_learned", mac=mac, port=port)]

    def _seen_again(self, now_ns: int, mac: str, entry: Entry, *, missed: bool) -> Iterable[Step]:
        """Frames from before the flows were in place ask again: normal. Long after, the flows are lost: mend."""
        if not missed or now_ns - entry.installed_ns < NS_PER_S:
            return []
        entry.installed_ns = now_ns
        return [*self._flows(mac, entry.port), Barrier(mac)]

    def _move(self, now_ns: int, mac: str, entry: Entry, port: int, *, announced: bool) -> Iterable[Step]:
        left = entry.port
        self.fdb[mac] = Entry(port, now_ns, left_port=left, moved_ns=now_ns)
        held = Flow(
            SOURCE_TABLE,
            KNOWN_PRIORITY,
            Match(in_port=left, eth_src=mac),
            goto=DESTINATION_TABLE,
            hard_timeout_s=max(1, round(self._hold_ns / NS_PER_S)),
        )
        return [
            *self._flows(mac, port),
            held,
            Barrier(mac),
            self._observe("mac_moved", mac=mac, from_port=left, to_port=port, announced=announced),
        ]

    def _flows(self, mac: str, port: int) -> list[Flow]:
        """The destination first: until it is in place, frames go where they went before."""
        return [
            Flow(DESTINATION_TABLE, KNOWN_PRIORITY, Match(eth_dst=mac), outputs=(port,)),
            Flow(
                SOURCE_TABLE,
                KNOWN_PRIORITY,
                Match(in_port=port, eth_src=mac),
                goto=DESTINATION_TABLE,
                idle_timeout_s=self._ageing_s,
                cookie=KNOWN_COOKIE,
                notify_removed=True,
            ),
        ]

    def _observe(self, name: str, **data: Any) -> Observation:
        return Observation(name, {"switch": self.name, **data})

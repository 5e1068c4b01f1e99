"""What a controller decides that knows the topology: one announcement anywhere moves the paths on all switches.

Links are found by LLDP (:mod:`.lldp`). Until every expected switch is connected and no new link turned up for
:data:`SETTLE_NS`, nothing is flooded: a loop that is not known yet would carry a broadcast round for ever. Afterwards
each switch holds:

=====  ========  =========================================  ==========================================================
table  priority  match                                      instruction
=====  ========  =========================================  ==========================================================
0      500       LLDP                                       to the controller
0      400       link-local group, or group source address  drop
0      350       in_port: towards another switch            go to table 1
0      300       RARP, ARP to broadcast, IPv6 to all nodes  a copy of its head to the controller; go to table 1
0      200       in_port and eth_src: a known pair          go to table 1
0      0         anything: the pair is new                  a copy of its head to the controller; go to table 1
1      200       eth_dst: known                             output towards it
1      0         anything else                              out of the ports of one spanning tree, and to the hosts
=====  ========  =========================================  ==========================================================

So only the switch that a host is at asks the controller, once, and the network may have loops.

A new address
-------------
As long as some switches flood what others send the shortest way, both copies may meet at the same host: the tree and
the shortest ways differ. So an address that nobody knew is sent along the tree by all switches first. Whatever is
flooded takes that way, too, and other branches lead back to where a frame came from, where it ends: exactly one copy
arrives, in whatever order switches take the flow. When all have it, and what was flooded before has had
:data:`SPREAD_NS` to end, the shortest ways follow, as a move. (An address that has aged is forgotten by all switches as
they come to it; it has not been heard of for minutes.)

Moving an address
-----------------
The new path is a tree of shortest ways towards the new place. Its switches are changed from the outermost one, at the
new place, inwards, one distance after the other; a distance is changed only when barriers have confirmed the one
before. Thus at every instant a switch that has been changed hands frames to one that has been changed already, down to
the new place, and one that has not follows the old tree until it meets a changed one or the old place: there is no
loop, and no switch without a flow (a flow is overwritten, never removed first).

Late frames from the port that was left are held off as in :mod:`.learning_logic`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from controllers import lldp, packets
from controllers.graph import Graph, layers
from controllers.learning_logic import (
    AGEING_S,
    DESTINATION_TABLE,
    DROP_PRIORITY,
    GUARD_NS,
    HOLD_NS,
    KNOWN_COOKIE,
    KNOWN_PRIORITY,
    MISS_COOKIE,
    MISS_PRIORITY,
    NS_PER_S,
    SOURCE_TABLE,
    WATCH_COOKIE,
    WATCH_PRIORITY,
    Barrier,
    Flow,
    FlowDelete,
    Match,
    Observation,
)
from controllers.steps import At, PacketOut, Steps

SETTLE_NS = NS_PER_S // 2
PROBE_NS = NS_PER_S // 4
SPREAD_NS = NS_PER_S // 20
LLDP_PRIORITY = 500
LINK_PRIORITY = 350
LLDP_COOKIE = 0xBE0004
MAX_MACS = 16384
ALL_NODES = "33:33:00:00:00:01"
ETH_IPV6 = 0x86DD


@dataclass
class Place:
    """Where an address is, and where it was before its last move."""

    dpid: int
    port: int
    left: tuple[int, int] | None = None
    moved_ns: int = 0


@dataclass
class Move:
    """A move under way: the distances still to be changed, and the answers that the last one waits for.

    :ivar shorten: after that, the shortest ways in place of the tree's. :ivar shorten_ns: from when on; 0: not yet.
    """

    waves: list[list[At]]
    waiting: set[tuple[int, int]]
    shorten: bool = False
    shorten_ns: int = 0


def pipeline() -> list[Flow]:
    """The flows that depend neither on the topology nor on what was learnt."""

    def copied(priority: int, match: Match, cookie: int) -> Flow:
        return Flow(SOURCE_TABLE, priority, match, ("controller",), goto=DESTINATION_TABLE, cookie=cookie)

    return [
        Flow(SOURCE_TABLE, LLDP_PRIORITY, Match(eth_type=lldp.ETHERTYPE), ("controller",), cookie=LLDP_COOKIE),
        Flow(SOURCE_TABLE, DROP_PRIORITY, Match(eth_dst="01:80:c2:00:00:00/ff:ff:ff:ff:ff:f0")),
        Flow(SOURCE_TABLE, DROP_PRIORITY, Match(eth_src="01:00:00:00:00:00/01:00:00:00:00:00")),
        copied(WATCH_PRIORITY, Match(eth_type=packets.ETH_RARP), WATCH_COOKIE),
        copied(WATCH_PRIORITY, Match(eth_type=packets.ETH_ARP, eth_dst=packets.BROADCAST), WATCH_COOKIE),
        copied(WATCH_PRIORITY, Match(eth_type=ETH_IPV6, eth_dst=ALL_NODES), WATCH_COOKIE),
        copied(MISS_PRIORITY, Match(), MISS_COOKIE),
    ]


class ProactiveNetwork:
    """The topology, the places of all addresses, and what follows from both.

    :param expected: how many switches there will be; 0: unknown, a pause without news has to do.
    :param name_of: datapath id -> the switch's name in observations.
    """

    def __init__(
        self,
        expected: int,
        name_of: Callable[[int], str],
        *,
        hold_ns: int = HOLD_NS,
        guard_ns: int = GUARD_NS,
    ) -> None:
        self.graph = Graph()
        self.places: dict[str, Place] = {}
        self.ready = False
        self._expected = expected
        self._name_of = name_of
        self._hold_ns = hold_ns
        self._guard_ns = guard_ns
        self._news_ns = 0
        self._probed_ns = 0
        self._moves: dict[str, Move] = {}
        self._token = 0
        self._said: dict[str, dict[int, tuple[int, ...]]] = {}  # mac -> dpid -> where its frames are sent

    # the topology

    def connected(self, now_ns: int, dpid: int, ports: list[int]) -> Steps:
        self.graph.ports[dpid] = set(ports)
        self._news_ns = now_ns
        for sent in self._said.values():
            sent.pop(dpid, None)
        steps: Steps = [At(dpid, FlowDelete()), *(At(dpid, flow) for flow in pipeline())]
        return [*steps, *self._probe(dpid), *(self._rebuild() if self.ready else [])]

    def disconnected(self, now_ns: int, dpid: int) -> Steps:
        self.graph.remove_switch(dpid)
        self._news_ns = now_ns
        for sent in self._said.values():
            sent.pop(dpid, None)
        return self._rebuild() if self.ready else []

    def port_changed(self, now_ns: int, dpid: int, port: int, up: bool) -> Steps:
        ports = self.graph.ports.get(dpid)
        if ports is None or (up and port in ports):
            return []
        self._news_ns = now_ns
        if up:
            ports.add(port)
            return [At(dpid, self._probe_of(dpid, port)), *(self._rebuild() if self.ready else [])]
        ports.discard(port)
        self.graph.remove_end(dpid, port)
        for mac in [mac for mac, place in self.places.items() if (place.dpid, place.port) == (dpid, port)]:
            self._forget(mac)
        gone = At(dpid, FlowDelete(SOURCE_TABLE, Match(in_port=port)))
        return [gone, *(self._rebuild() if self.ready else [])]

    def tick(self, now_ns: int) -> Steps:
        steps: Steps = []
        if now_ns - self._probed_ns >= (NS_PER_S if self.ready else PROBE_NS):
            self._probed_ns = now_ns
            for dpid in self.graph.ports:
                steps += self._probe(dpid)
        enough = len(self.graph.ports) >= max(self._expected, 1)
        if not self.ready and enough and now_ns - self._news_ns >= SETTLE_NS:
            self.ready = True
            steps += self._rebuild()
            links = len(self.graph.links) // 2
            told = {"switches": len(self.graph.ports), "links": links}
            steps.append(At(0, Observation("topology_known", told)))
            steps += [At(dpid, Barrier()) for dpid in self.graph.ports]
        for mac, move in list(self._moves.items()):
            if move.shorten_ns and now_ns >= move.shorten_ns:
                steps += self._begin(mac, self.places[mac], announced=False, moved=False)
        return steps

    def _probe(self, dpid: int) -> Steps:
        return [At(dpid, self._probe_of(dpid, port)) for port in sorted(self.graph.ports.get(dpid, ()))]

    @staticmethod
    def _probe_of(dpid: int, port: int) -> PacketOut:
        return PacketOut(lldp.build(dpid, port), (port,))

    def _rebuild(self) -> Steps:
        """Everything that depends on the topology, in place of what there was."""
        steps: Steps = []
        tree = self.graph.tree_ports()
        for dpid in self.graph.ports:
            links = sorted(port for port in self.graph.ports[dpid] if (dpid, port) in self.graph.links)
            steps += [
                At(dpid, Flow(SOURCE_TABLE, LINK_PRIORITY, Match(in_port=port), goto=DESTINATION_TABLE))
                for port in links
            ]
            flood = (*sorted(tree[dpid]), *self.graph.host_ports(dpid))
            steps.append(At(dpid, Flow(DESTINATION_TABLE, MISS_PRIORITY, Match(), flood)))
        for mac, place in self.places.items():
            if place.dpid in self.graph.ports:
                steps += [at for wave in self._waves(mac, place, told=False) for at in wave]
        return steps

    # addresses

    def packet_in(self, now_ns: int, dpid: int, port: int, data: bytes, cookie: int) -> Steps:
        if cookie == LLDP_COOKIE or lldp.parse(data) is not None:
            return self._link_seen(now_ns, lldp.parse(data), (dpid, port))
        frame = packets.parse(data)
        if frame is None or not self.ready or (dpid, port) in self.graph.links or dpid not in self.graph.ports:
            return []
        name = self._name_of(dpid)
        told = {"dpid": dpid, "switch": name, "port": port, "src": frame.src, "dst": frame.dst}
        steps: Steps = [At(dpid, Observation("packet_in", {**told, "ethertype": frame.ethertype}))]
        announced = frame.announcement is not None or (frame.dst == ALL_NODES and frame.ethertype == ETH_IPV6)
        if frame.announcement is not None:
            seen = {"switch": name, "kind": frame.announcement.kind, "mac": frame.announcement.mac, "port": port}
            steps.append(At(dpid, Observation("announcement", {**seen, "ip": frame.announcement.ip})))
        if packets.is_unicast(frame.src):
            steps += self._source_seen(now_ns, frame.src, (dpid, port), announced=announced)
        return steps

    def _link_seen(self, now_ns: int, there: tuple[int, int] | None, here: tuple[int, int]) -> Steps:
        known = there is not None and there[0] in self.graph.ports and here[0] in self.graph.ports
        if there is None or not known or not self.graph.add_link(there, here):
            return []
        self._news_ns = now_ns
        told = {"from": self._name_of(there[0]), "from_port": there[1], "to": self._name_of(here[0])}
        seen = At(here[0], Observation("link_found", {**told, "to_port": here[1]}))
        for mac in [mac for mac, place in self.places.items() if (place.dpid, place.port) in (here, there)]:
            self._forget(mac)
        return [*(self._rebuild() if self.ready else []), seen]

    def _source_seen(self, now_ns: int, mac: str, here: tuple[int, int], *, announced: bool) -> Steps:
        place = self.places.get(mac)
        if place is None:
            if len(self.places) >= MAX_MACS:
                return []
            self.places[mac] = Place(*here)
            return [*self._known(mac, here), *self._introduce(mac, self.places[mac])]
        if (place.dpid, place.port) == here:
            return self._known(mac, here) if not announced else []
        since_ns = now_ns - place.moved_ns
        if here == place.left and since_ns < (self._guard_ns if announced else self._hold_ns):
            told = {"switch": self._name_of(here[0]), "mac": mac, "port": here[1], "after_ns": since_ns}
            return [At(here[0], Observation("late_frame", told))]
        left = (place.dpid, place.port)
        self.places[mac] = Place(*here, left=left, moved_ns=now_ns)
        held = Flow(
            *(SOURCE_TABLE, KNOWN_PRIORITY, Match(in_port=left[1], eth_src=mac)),
            goto=DESTINATION_TABLE,
            hard_timeout_s=max(1, round(self._hold_ns / NS_PER_S)),
        )
        begun = self._begin(mac, self.places[mac], announced=announced)
        return [*self._known(mac, here), *begun, At(left[0], held)]

    def _known(self, mac: str, here: tuple[int, int]) -> Steps:
        """The switch need not ask about this pair again."""
        pair = Match(in_port=here[1], eth_src=mac)
        flow = Flow(
            *(SOURCE_TABLE, KNOWN_PRIORITY, pair),
            goto=DESTINATION_TABLE,
            idle_timeout_s=AGEING_S,
            cookie=KNOWN_COOKIE,
            notify_removed=True,
        )
        return [At(here[0], flow)]

    def _introduce(self, mac: str, place: Place) -> Steps:
        """The paths of an address that no switch knows: along the tree, at once."""
        sent = self._said.setdefault(mac, {})
        wave: list[At] = []
        for dpid, port in self.graph.tree_towards(place.dpid).items():
            ports = (place.port if dpid == place.dpid else port,)
            sent[dpid] = ports
            wave.append(At(dpid, Flow(DESTINATION_TABLE, KNOWN_PRIORITY, Match(eth_dst=mac), ports)))
            wave.append(At(dpid, self._barrier(mac)))
            wave.append(At(dpid, self._moved(mac, dpid, None, ports, announced=False)))
        self._moves[mac] = Move([wave], set(), shorten=True)
        return self._go_on(0, mac)

    def _begin(self, mac: str, place: Place, *, announced: bool, moved: bool = True) -> Steps:
        """Move the paths of *mac*: the first wave now, the rest as barriers are answered.

        :param moved: the address has; False: its paths are to be the shortest.
        """
        self._moves[mac] = Move(self._waves(mac, place, announced=announced, moved=moved), set())
        return self._go_on(0, mac)

    def _waves(
        self, mac: str, place: Place, *, told: bool = True, announced: bool = False, moved: bool = True
    ) -> list[list[At]]:
        """What changes at which switch, by its distance from *place*, without switches where nothing does.

        :param told: with barriers, and observations where it *moved*.
        """
        outputs = self._outputs(mac, place)
        sent = self._said.setdefault(mac, {})
        away = self.graph.distances(place.dpid)
        waves = []
        for members in layers(away, [dpid for dpid, ports in outputs.items() if not told or sent.get(dpid) != ports]):
            wave = []
            for dpid in members:
                match = Match(eth_dst=mac)
                wave.append(At(dpid, Flow(DESTINATION_TABLE, KNOWN_PRIORITY, match, outputs[dpid])))
                if told:
                    wave.append(At(dpid, self._barrier(mac)))
                if told and moved:
                    wave.append(At(dpid, self._moved(mac, dpid, sent.get(dpid), outputs[dpid], announced=announced)))
                sent[dpid] = outputs[dpid]
            waves.append(wave)
        return waves

    def _barrier(self, mac: str) -> Barrier:
        self._token += 1
        return Barrier(mac, self._token)

    def _outputs(self, _mac: str, place: Place) -> dict[int, tuple[int, ...]]:
        """Switch -> the ports that frames for an address at *place* leave by."""
        towards = {dpid: (port,) for dpid, port in self.graph.ports_towards(place.dpid).items()}
        return {**towards, place.dpid: (place.port,)}

    def _moved(
        self, mac: str, dpid: int, former: tuple[int, ...] | None, ports: tuple[int, ...], *, announced: bool
    ) -> Observation:
        told: dict[str, Any] = {"mac": mac, "switch": self._name_of(dpid)}
        if former is None:
            return Observation("mac_learned", {**told, "port": ports[-1]})
        return Observation("mac_moved", {**told, "from_port": former[0], "to_port": ports[-1], "announced": announced})

    def _go_on(self, now_ns: int, mac: str) -> Steps:
        move = self._moves[mac]
        if not move.waves:
            if move.shorten:
                move.shorten_ns = now_ns + SPREAD_NS
            else:
                del self._moves[mac]
            return []
        wave = move.waves.pop(0)
        move.waiting = {(at.dpid, at.step.token) for at in wave if isinstance(at.step, Barrier)}
        return wave

    def confirmed(self, now_ns: int, dpid: int, token: int) -> Steps:
        for mac, move in list(self._moves.items()):
            if (dpid, token) in move.waiting:
                move.waiting.discard((dpid, token))
                return [] if move.waiting else self._go_on(now_ns, mac)
        return []

    def flow_removed(self, _now_ns: int, dpid: int, match: Match) -> Steps:
        place = self.places.get(match.eth_src or "")
        if match.eth_src is None or place is None or (place.dpid, place.port) != (dpid, match.in_port):
            return []
        self._forget(match.eth_src)
        told = {"switch": self._name_of(dpid), "mac": match.eth_src, "port": place.port, "reason": "aged"}
        gone = [At(other, FlowDelete(DESTINATION_TABLE, Match(eth_dst=match.eth_src))) for other in self.graph.ports]
        return [*gone, At(dpid, Observation("mac_forgotten", told))]

    def _forget(self, mac: str) -> None:
        self.places.pop(mac, None)
        self._moves.pop(mac, None)
        self._said.pop(mac, None)

    def ordered(self, now_ns: int, order: Mapping[str, Any]) -> Steps:
        """Nothing is expected of this app."""
        del now_ns, order
        return []

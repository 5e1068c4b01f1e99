"""A switch that executes the flows of controllers.learning_logic, in the spirit of Faucet's fakeoftable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from controllers import packets
from controllers.learning_logic import Barrier, Flow, FlowDelete, LearningSwitch, Match, Observation, Step

NS_PER_S = 1_000_000_000


def raw(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def data_frame(src: str, dst: str, ethertype: int = 0x0800, payload: bytes = b"payload") -> bytes:
    return raw(dst) + raw(src) + ethertype.to_bytes(2, "big") + payload


def rarp(mac: str, tag: bytes = b"") -> bytes:
    """The 60-byte frame that QEMU sends for a guest (include/net/announce.h, RFC 903)."""
    body = bytes.fromhex("0001080006040003") + raw(mac) + bytes(4) + raw(mac) + bytes(4)
    return (b"\xff" * 6 + raw(mac) + tag + b"\x80\x35" + body).ljust(60, b"\0")


def arp(
    mac: str, sender_ip: str, target_ip: str, *, opcode: int = 1, dst: str = packets.BROADCAST, src: str = ""
) -> bytes:
    """An ARP frame; *src* is the Ethernet source where it differs from the sender."""
    ips = [bytes(int(part) for part in ip.split(".")) for ip in (sender_ip, target_ip)]
    body = bytes.fromhex("000108000604") + opcode.to_bytes(2, "big") + raw(mac) + ips[0] + bytes(6) + ips[1]
    return (raw(dst) + raw(src or mac) + b"\x08\x06" + body).ljust(60, b"\0")


@dataclass
class FakeFlowTable:
    """Two-table pipeline of one switch: only what the logic uses, strict about what it does not know."""

    ports: frozenset[int]
    flows: dict[tuple[int, int, Match], tuple[Flow, int]] = field(default_factory=dict)
    now_ns: int = 0

    def apply(self, steps: Iterable[Step]) -> list[Observation]:
        """Carry out flows; returns the observations."""
        seen = []
        for step in steps:
            if isinstance(step, Flow):
                self.flows[step.table, step.priority, step.match] = (step, self.now_ns)
            elif isinstance(step, FlowDelete):
                for key in [key for key, (flow, _since) in self.flows.items() if self._covers(step, flow)]:
                    del self.flows[key]
            elif isinstance(step, Observation):
                seen.append(step)
            else:
                assert isinstance(step, Barrier)
        return seen

    def output(self, in_port: int, frame: bytes) -> tuple[set[int], Flow | None]:
        """The ports that *frame* leaves by, and the flow that copies it to the controller, if one does."""
        ports: set[int] = set()
        copied = None
        table: int | None = 0
        while table is not None:
            flow = self._lookup(table, in_port, frame)
            if flow is None:
                break
            for action in flow.outputs:
                if action == "controller":
                    copied = flow
                elif action == "flood":
                    ports |= self.ports - {in_port}
                else:
                    assert isinstance(action, int)
                    ports |= {action} - {in_port}
            assert flow.goto is None or flow.goto > table
            table = flow.goto
        return ports, copied

    def _lookup(self, table: int, in_port: int, frame: bytes) -> Flow | None:
        found = [
            flow
            for flow, since_ns in self.flows.values()
            if flow.table == table
            and not (flow.hard_timeout_s and self.now_ns >= since_ns + flow.hard_timeout_s * NS_PER_S)
            and _matches(flow.match, in_port, frame)
        ]
        best = max((flow.priority for flow in found), default=-1)
        top = [flow for flow in found if flow.priority == best]
        # Two flows of one priority may match one frame only when it makes no difference which one is taken.
        assert len({(flow.outputs, flow.goto) for flow in top}) <= 1
        return top[0] if top else None

    @staticmethod
    def _covers(delete: FlowDelete, flow: Flow) -> bool:
        wanted = delete.match
        return (
            delete.table in (None, flow.table)
            and (delete.out_port is None or delete.out_port in flow.outputs)
            and all(
                getattr(wanted, name) in (None, getattr(flow.match, name))
                for name in ("in_port", "eth_src", "eth_dst", "eth_type")
            )
        )


def _matches(match: Match, in_port: int, frame: bytes) -> bool:
    head = packets.parse(frame)
    assert head is not None
    return (
        match.in_port in (None, in_port)
        and match.eth_type in (None, head.ethertype)
        and _address_matches(match.eth_src, head.src)
        and _address_matches(match.eth_dst, head.dst)
    )


def _address_matches(wanted: str | None, given: str) -> bool:
    if wanted is None:
        return True
    address, _slash, mask_text = wanted.partition("/")
    mask = int.from_bytes(raw(mask_text), "big") if mask_text else (1 << 48) - 1
    return int.from_bytes(raw(address), "big") & mask == int.from_bytes(raw(given), "big") & mask


class FakeSwitch:
    """A switch under the control of the logic: every frame goes through the flow table, copies to the logic.

    ``queued`` packet-ins are answered only by :meth:`answer`, so that a test can put frames before the answer.
    """

    def __init__(self, ports: int = 4, **options: int) -> None:
        self.logic = LearningSwitch("s1", 1, **options)
        self.table = FakeFlowTable(frozenset(range(1, ports + 1)))
        self.events = self.table.apply(self.logic.connected())
        self.queued: list[tuple[int, bytes, bool]] = []

    def wait(self, ns: int) -> None:
        self.table.now_ns += ns

    def put(self, in_port: int, frame: bytes) -> set[int]:
        """Put a frame in; returns the ports that it leaves by. The controller has not answered yet."""
        ports, copied = self.table.output(in_port, frame)
        if copied is not None:
            self.queued.append((in_port, frame[:128], copied.priority == 0))
        return ports

    def answer(self) -> list[Observation]:
        seen = []
        for in_port, frame, missed in self.queued:
            steps = self.logic.packet_in(self.table.now_ns, in_port, frame, missed=missed)
            seen += self.table.apply(steps)
        self.queued.clear()
        self.events += seen
        return seen

    def send(self, in_port: int, frame: bytes) -> set[int]:
        """Put a frame in and let the controller answer."""
        ports = self.put(in_port, frame)
        self.answer()
        return ports

    def names(self) -> list[str]:
        return [event.name for event in self.events]

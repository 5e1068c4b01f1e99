"""The links of a Mininet network: built by what this kernel can do, shaped, and read back.

:class:`LinkFactory` decides for each link how its delay, jitter and loss are done:

- none asked: a veth pair, as Mininet's own;
- a constant delay, and the kernel has netem: a veth pair with netem (probed by adding one, not by version);
- else two taps of the userspace delay line (:mod:`bench.link.delayline`). Jitter and loss go there even where there
  is netem, since netem sees TCP segments of up to 64 KiB, and what is meant is each packet.

Interfaces have Mininet's names either way. The rate is limited by htb (tbf for very short queues, see
:mod:`bench.link.tc`) on the egress of both ends. Everything applied is read back and compared.

A tap of the delay line works as a port of Open vSwitch's userspace datapath, with TCP segmentation offload: the
datapath opens it by AF_PACKET with virtio-net headers, as any interface. Its sockets need room:
:func:`bench.link.sockets.widen_packet_sockets`.

::

    factory = LinkFactory(scenario.link, log=run_directory / "logs" / "delay_line.log")
    net = Mininet(topo, link=factory.link_class(), switch=..., ...)
    net.start()
    factory.apply_all()         # after the switches started: Open vSwitch removes qdiscs from a port that it adds
    ...
    factory.check(); factory.verify()
    net.stop(); factory.stop()
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.clock import NS_PER_S, Deadline
from bench.errors import BenchError, CommandError, DeadlineError, HostError, LinkError
from bench.host.channel import Channel
from bench.host.commands import Process, describe_status, run, spawn_child
from bench.link import tc
from bench.link.impairment import DEFAULT_MTU, Direction, from_spec
from bench.link.tap import TUN_DEVICE
from bench.timeline import Event

if TYPE_CHECKING:
    from bench.scenario import LinkSpec

Wire = Literal["veth", "netem", "delay-line"]
_COMMAND_NS = 10 * NS_PER_S


@dataclass(frozen=True)
class End:
    """One end of a link. ``pid`` is a process in its namespace; None is the caller's own (the switches')."""

    node: str
    interface: str
    pid: int | None


@dataclass
class BenchLink:
    """A link and what is asked of it. ``forward`` is from the first end to the second."""

    name: str
    ends: tuple[End, End]
    wire: Wire
    asked: tuple[Direction, Direction]
    applied: dict[str, Any] = field(default_factory=dict)

    @property
    def mechanism(self) -> str:
        """``"none"``, ``"htb"``, ``"htb+netem"``, ``"htb+delay-line"``; tbf for htb where queues are very short."""
        shapers = sorted({shaper for shaper in map(tc.shaper_for, self.asked) if shaper is not None})
        parts = ["/".join(shapers)] if shapers else []
        if self.wire == "delay-line" or (self.wire == "netem" and any(item.delayed for item in self.asked)):
            parts.append(self.wire)
        return "+".join(parts) or "none"


def kernel_has_netem() -> bool:
    """Whether a netem qdisc can be added, tried on the loopback of a namespace made for it."""
    argv = ["unshare", "--net", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1us"]
    return run(argv, deadline=Deadline(_COMMAND_NS), check=False).status == 0


def choose_wire(forward: Direction, backward: Direction, *, netem: bool, tun: bool) -> Wire:
    """How delay, jitter and loss of a link are done.

    :raises LinkError: they are asked for and the kernel has neither netem nor tun.
    """
    both = (forward, backward)
    if not any(item.delayed for item in both):
        return "veth"
    exact = not any(item.jitter_ns or item.loss for item in both)
    segments_fit = all(tc.shaper_for(item) != "tbf" for item in both)  # tbf below netem corrupts its count of frames
    if netem and exact and segments_fit:
        return "netem"
    if tun:
        return "delay-line"
    if netem and segments_fit:
        return "netem"
    raise LinkError(
        "this kernel has neither netem nor tun: no link can have delay, jitter or loss",
        "load one of them (`modprobe sch_netem`, `modprobe tun`), or set delay, jitter and loss to 0",
    )


class LinkFactory:
    """All links of one network, and the delay line's process if one is needed. Not thread-safe.

    :param spec_of: (first node, second node) -> its spec, as ``Scenario.link``.
    :param log: where the delay line's process writes what it has to say.
    :param seed: of loss and jitter; each link derives its own.
    :param on_event: gets the delay line's events (``link_down``).
    :ivar links: name -> link, in the order of their making; the name is ``h1-s1``, with ``#2`` for a second one.
    """

    def __init__(
        self,
        spec_of: Callable[[str, str], LinkSpec],
        *,
        log: Path,
        seed: int = 0,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.links: dict[str, BenchLink] = {}
        self._spec_of = spec_of
        self._log = log
        self._seed = seed
        self._on_event = on_event
        self._netem: bool | None = None
        self._process: Process | None = None
        self._channel: Channel | None = None

    @property
    def delay_line(self) -> Process | None:
        """The delay line's process, None while no link needed it."""
        return self._process

    # building

    def link_class(self) -> type:
        """A Mininet ``Link`` class whose links this factory builds: ``Mininet(topo, link=factory.link_class())``."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Mininet 2.3 imports distutils
            from mininet.link import Link  # noqa: PLC0415  only here Mininet is needed

        factory = self

        class FactoryLink(Link):  # type: ignore[misc]
            """A link of the bench; ``bench`` is its :class:`BenchLink`."""

            bench: BenchLink
            intf1: Any
            intf2: Any

            def makeIntfPair(  # noqa: N802  Mininet's signature
                self,
                intfname1: str,
                intfname2: str,
                addr1: str | None = None,
                addr2: str | None = None,
                node1: Any = None,
                node2: Any = None,
                deleteIntfs: bool = True,  # noqa: N803
            ) -> None:
                del deleteIntfs  # the namespaces are the run's own: nothing is there to be deleted
                first = End(node1.name, intfname1, node1.pid if node1.inNamespace else None)
                second = End(node2.name, intfname2, node2.pid if node2.inNamespace else None)
                self.bench = factory.create(first, second, (addr1, addr2))

            def delete(self) -> None:
                factory.remove(self.bench.name)
                for intf in (self.intf1, self.intf2):
                    if intf is not None and intf.node is not None:
                        intf.node.delIntf(intf)
                self.intf1 = self.intf2 = None

        return FactoryLink

    def create(self, first: End, second: End, macs: tuple[str | None, str | None] = (None, None)) -> BenchLink:
        """Make both interfaces of a link in their namespaces, down and unshaped.

        :raises LinkError: an interface cannot be made, or the kernel can do nothing of what the link's spec asks.
        """
        name = base = f"{first.node}-{second.node}"
        number = 1
        while name in self.links:
            number += 1
            name = f"{base}#{number}"
        forward, backward = from_spec(self._spec_of(first.node, second.node))
        netem = (forward.delayed or backward.delayed) and self._has_netem()
        wire = choose_wire(forward, backward, netem=netem, tun=TUN_DEVICE.exists())
        link = BenchLink(name, (first, second), wire, (forward, backward))
        if wire == "delay-line":
            self._create_taps(link, macs)
        else:
            self._create_veth(link, macs)
        self.links[name] = link
        if forward.mtu != DEFAULT_MTU:
            for end in link.ends:
                self._set_mtu(link, end, forward.mtu)
        return link

    def _set_mtu(self, link: BenchLink, end: End, mtu: int) -> None:
        try:
            argv = ["ip", "link", "set", "dev", end.interface, "mtu", str(mtu)]
            run(argv, deadline=Deadline(_COMMAND_NS), netns_pid=end.pid)
        except CommandError as error:
            remedy = "take links.*.mtu and hosts.*.mtu out: this kernel's interfaces do not carry that"
            raise LinkError(f"link {link.name}: {end.interface}: no MTU of {mtu}: {error.message}", remedy) from error

    def _mtu(self, end: End) -> int:
        """As the kernel has it; 0 when it does not say."""
        argv = ["ip", "-j", "link", "show", "dev", end.interface]
        shown = json.loads(run(argv, deadline=Deadline(_COMMAND_NS), netns_pid=end.pid).stdout or "[]")
        return int(shown[0].get("mtu", 0)) if shown else 0

    def _has_netem(self) -> bool:
        if self._netem is None:
            self._netem = kernel_has_netem()
        return self._netem

    def _create_veth(self, link: BenchLink, macs: tuple[str | None, str | None]) -> None:
        first, second = link.ends
        argv = ["ip", "link", "add", "name", first.interface, *_address(macs[0]), *_netns(first)]
        argv += ["type", "veth", "peer", "name", second.interface, *_address(macs[1]), *_netns(second)]
        try:
            run(argv, deadline=Deadline(_COMMAND_NS))
        except CommandError as error:
            raise LinkError(f"link {link.name}: {error.message}") from error

    def _create_taps(self, link: BenchLink, macs: tuple[str | None, str | None]) -> None:
        ends = [{"interface": end.interface, "pid": end.pid} for end in link.ends]
        parameters = dict(zip(("forward", "backward"), map(_line_parameters, link.asked), strict=True))
        seed = self._seed * 65_536 + len(self.links)
        self._call("add", {"name": link.name, "ends": ends, "seed": seed, **parameters})
        for end, mac in zip(link.ends, macs, strict=True):
            if mac is not None:
                argv = ["ip", "link", "set", "dev", end.interface, "address", mac]
                run(argv, deadline=Deadline(_COMMAND_NS), netns_pid=end.pid)

    def remove(self, name: str) -> None:
        """Take a link away with both interfaces. Idempotent."""
        link = self.links.pop(name, None)
        if link is None:
            return
        if link.wire == "delay-line":
            if self._channel is not None:
                with contextlib.suppress(LinkError):  # the taps went with the process
                    self._call("remove", {"name": name})
            return
        end = link.ends[0]  # its peer goes with it; its whole namespace may be gone already
        argv = ["ip", "link", "del", "dev", end.interface]
        with contextlib.suppress(CommandError):
            run(argv, deadline=Deadline(_COMMAND_NS), netns_pid=end.pid, check=False)

    # shaping

    def apply_all(self) -> None:
        """Apply what was asked of every link; see :meth:`apply`."""
        for link in self.links.values():
            self.apply(link, *link.asked)

    def apply(self, link: BenchLink, forward: Direction, backward: Direction) -> dict[str, Any]:
        """Shape both directions, read back and compare. May be called again with other values while traffic flows.

        :returns: ``{"forward": {...}, "backward": {...}}`` as read back (also kept as ``link.applied``).
        :raises LinkError: naming the link, the interface and what could not be applied.
        """
        wanted = (forward, backward)
        if link.wire == "veth" and any(item.delayed for item in wanted):
            remedy = "give it a delay in the scenario, so that it is built for one"
            raise LinkError(f"link {link.name} was built without delay, jitter and loss", remedy)
        for end, direction in zip(link.ends, wanted, strict=True):
            commands = tc.build(end.interface, direction, netem=link.wire == "netem")
            if tc.is_ours(self._tc(link, end, ["-j", "qdisc", "show", "dev", end.interface])):
                commands.insert(0, tc.remove(end.interface))
            if commands:
                batch = "".join(" ".join(command) + "\n" for command in commands)
                self._tc(link, end, ["-batch", "-"], batch)
        if link.wire == "delay-line":
            parameters = dict(zip(("forward", "backward"), map(_line_parameters, wanted), strict=True))
            self._call("set", {"name": link.name, **parameters})
        link.asked = wanted
        link.applied = self._read_back(link)
        return link.applied

    def verify(self) -> None:
        """Read every link back again: is it still as asked? :raises LinkError: naming the first that is not."""
        for link in self.links.values():
            link.applied = self._read_back(link)

    def _read_back(self, link: BenchLink) -> dict[str, Any]:
        held = self._line_link(link.name) if link.wire == "delay-line" else {}
        result: dict[str, Any] = {}
        for key, end, asked in zip(("forward", "backward"), link.ends, link.asked, strict=True):
            netem = link.wire == "netem"
            applied = tc.parse(
                self._tc(link, end, ["-j", "qdisc", "show", "dev", end.interface]),
                self._tc(link, end, ["-j", "class", "show", "dev", end.interface]),
            )
            wrong = tc.differences(asked, applied, netem=netem)
            values = applied.to_json()
            if held:
                line = {name: held[key][name] for name in ("delay_ns", "jitter_ns", "loss")}
                wanted = _line_parameters(asked)
                wrong += [
                    f"{name} {line[name]} instead of {wanted[name]}" for name in line if line[name] != wanted[name]
                ]
                values |= line
            if asked.mtu != DEFAULT_MTU:
                values["mtu"] = self._mtu(end)
                wrong += [f"MTU {values['mtu']} instead of {asked.mtu}"] if values["mtu"] != asked.mtu else []
            if wrong:
                raise LinkError(
                    f"link {link.name}: {end.interface}: read back {'; '.join(wrong)}",
                    "something else changed the interface, or this kernel does them otherwise",
                )
            result[key] = values
        return result

    def _tc(self, link: BenchLink, end: End, arguments: list[str], batch: str | None = None) -> str:
        try:
            done = run(["tc", *arguments], deadline=Deadline(_COMMAND_NS), netns_pid=end.pid, input=batch)
        except CommandError as error:
            asked = f" ({batch.strip()})" if batch else ""
            raise LinkError(
                f"link {link.name}: {end.interface}: {error.message}{asked}",
                "`bench doctor` says which queueing disciplines this kernel has",
            ) from error
        return done.stdout

    # the delay line's process

    def _call(self, command: str, args: Mapping[str, Any] | None = None) -> dict[str, Any]:
        if self._channel is None:
            self._process, self._channel = spawn_child("bench.link.delayline", peer="delay line", log=self._log)
        try:
            return self._channel.call(command, args, deadline=Deadline(_COMMAND_NS), on_event=self._on_event)
        except (HostError, DeadlineError) as error:
            raise self._dead() from error
        except BenchError as error:
            raise LinkError(error.message) from error

    def _dead(self) -> LinkError:
        process = self._process
        how = "hangs" if process is None or process.status is None else f"ended ({describe_status(process.status)})"
        last = process.last_lines() if process is not None else ""
        return LinkError(f"the delay line {how}, so the links are down" + (f": {last}" if last else ""))

    def _line_link(self, name: str) -> dict[str, Any]:
        for item in self.line_stats():
            if item.get("name") == name:
                return item
        raise LinkError(f"link {name}: the delay line does not know it")

    def line_stats(self) -> list[dict[str, Any]]:
        """Counters of the delay line's links: {name, forward, backward}; empty when there is none.

        Each direction: see :meth:`bench.link.holding.Held.stats`. :raises LinkError: the process is dead.
        """
        if self._channel is None:
            return []
        links = self._call("stats")["links"]
        assert isinstance(links, list)
        return links

    def fileno(self) -> int | None:
        """The channel to the delay line, to watch for end of file (its death); None while there is none."""
        return None if self._channel is None else self._channel.fileno()

    def check(self) -> None:
        """:raises LinkError: when the delay line's process has died: all its links are down."""
        if self._process is not None and not self._process.alive:
            raise self._dead()

    def stop(self) -> None:
        """End the delay line. Idempotent and bounded; interfaces of veth links go with their namespaces."""
        channel, process = self._channel, self._process
        self._channel = self._process = None
        self.links.clear()
        if channel is not None:
            channel.close()
        if process is not None:
            process.stop()


def _line_parameters(direction: Direction) -> dict[str, Any]:
    return {
        "delay_ns": direction.delay_ns,
        "jitter_ns": direction.jitter_ns,
        "loss": direction.loss,
        "limit_bytes": direction.held_limit_bytes,
    }


def _netns(end: End) -> list[str]:
    return [] if end.pid is None else ["netns", str(end.pid)]


def _address(mac: str | None) -> list[str]:
    return [] if mac is None else ["address", mac]

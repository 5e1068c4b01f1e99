"""Before a run: does every link do what was asked? Round trips and rates, measured between hosts.

What is measured and to which link it is attributed: :mod:`bench.link.paths`. Round trips are those of our own UDP echo,
two processes and all switches included, nothing subtracted: the excess over the asked delays is the price of this
machine. Links are as asked when the *minimum* of a series is within ``calibration.delay_tolerance``, which every switch
on the path may add: what else runs on the machine can only add to it; else the run fails. The *median* has to be within
the tolerance too, or the link's result says ``ok = False``: the link is right and the machine too busy. Rates are those
of Ethernet frames in a short TCP burst, one direction at a time, within ``calibration.rate_tolerance`` of what was
asked, or the run fails.

What misses a tolerance is measured again, alone and longer, since a busy machine does that by chance; the best is taken
and the number of attempts is in the result.

Not measured, and said so in the link's ``measured``: the rate of a link that is never the slowest of a path, of an
unshaped link, of a path with loss (TCP's own reaction would be measured), and of one so slow or long that the burst
would take more than :data:`MAX_BURST_NS`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.clock import NS_PER_MS, NS_PER_S, Deadline
from bench.errors import BenchError, DeadlineError, LinkError
from bench.host.channel import Channel
from bench.host.commands import spawn_child
from bench.link.impairment import DEFAULT_MTU, Direction
from bench.link.links import BenchLink, End, LinkFactory
from bench.link.paths import Edge, Route, by_link, choose_paths, rounds
from bench.link.sockets import widen_packet_sockets
from bench.result import LinkResult
from bench.scenario import CalibrationSpec
from bench.units import format_bit_rate, format_duration

PROBES = 21
PROBE_INTERVAL_NS = 2 * NS_PER_MS
ECHO_ATTEMPTS = 12
FRAME_ATTEMPTS = 5
BURST_ATTEMPTS = 12
MAX_BURST_NS = NS_PER_S
MIN_BURST_FRAMES = 60
TOGETHER_BPS = 2 * 10**9
"""Paths whose rates sum to at most this are measured at the same time."""
TOGETHER_HOPS = 6
"""The round trips of paths with at most so many links in all: two switches of a userspace datapath and the delay line's
links between them take some tenth of a processor for probes every 2 ms, and two processors are not to be busy."""

_WARM_NS = 5 * NS_PER_S
_INITIAL_WINDOW_BYTES = 10 * 1448


@dataclass(frozen=True)
class Endpoint:
    """A host that can be measured from: a process in its namespace, and an IPv4 address that the others reach."""

    pid: int
    address: str


@dataclass
class Measured:
    """What was measured on a path. Keys of ``rates`` and ``notes``: False there, True back.

    ``round_trips_ns`` is the best series, ``minima_ns`` has the fastest round trip of each. ``packet_bytes``: the
    largest packet that was seen to pass, where that was tried.
    """

    path: Route
    sent: int = 0
    round_trips_ns: list[int] = field(default_factory=list)
    minima_ns: list[int] = field(default_factory=list)
    echo_attempts: int = 0
    packet_bytes: int = 0
    rates: dict[bool, int] = field(default_factory=dict)
    notes: dict[bool, str] = field(default_factory=dict)

    @property
    def minimum_ns(self) -> int:
        return min(self.round_trips_ns + self.minima_ns)

    @property
    def median_ns(self) -> int:
        return round(median(self.round_trips_ns))


def burst_ns(path: Route, spec_burst_ns: int, round_trip_ns: int, *, back: bool) -> int:
    """How long a burst has to be: slow start up to the path's rate, then what is asked for and enough frames."""
    rate_bps = path.rate_bps(back=back)
    doublings = max(rate_bps * round_trip_ns // (8 * NS_PER_S * _INITIAL_WINDOW_BYTES), 1).bit_length() + 1
    frames_ns = MIN_BURST_FRAMES * path.frame_bytes * 8 * NS_PER_S // rate_bps
    return doublings * round_trip_ns * 3 // 2 + max(spec_burst_ns, frames_ns)


def window_bytes(path: Route, round_trip_ns: int, *, back: bool) -> int:
    """TCP's window for a burst: what is on the wire, and half the bottleneck's queue, so that nothing is dropped."""
    wire = path.rate_bps(back=back) * round_trip_ns // (8 * NS_PER_S)
    return max(wire + path.queue_bytes(back=back) // 2, 4 * path.frame_bytes)


def skip_reason(path: Route, spec_burst_ns: int, round_trip_ns: int, *, back: bool) -> str:
    """Why a direction's rate is not measured; "" when it is."""
    if not path.rate_bps(back=back):
        return "unshaped: there is no rate to compare with"
    if path.loss(back=back) or path.loss(back=not back):
        return "with loss TCP would show its own reaction, not the rate"
    needed_ns = burst_ns(path, spec_burst_ns, round_trip_ns, back=back)
    if needed_ns > max(MAX_BURST_NS, 2 * spec_burst_ns):
        return f"so slow or long that a burst would take {format_duration(needed_ns)}"
    return ""


def round_trip_problem(measured: Measured, tolerance_ns: int, round_trip_ns: int) -> str:
    """How *round_trip_ns* (the series' minimum or median) deviates from what was asked; "" when within the tolerance.

    Every switch on the path may add the tolerance. Jitter that was asked for widens it, and so does the time that the
    probes take to pass slow links.
    """
    path = measured.path
    asked = path.round_trip_ns
    slack = tolerance_ns + path.jitter_ns
    switches = max(1, len(path.hops) - 1)
    more = tolerance_ns * switches + path.jitter_ns
    rates = [rate for hop in path.hops for rate in (hop.there.rate_bps, hop.back.rate_bps) if rate]
    passing = sum(128 * 8 * NS_PER_S // rate for rate in rates)
    if asked - slack <= round_trip_ns <= asked + more + passing:
        return ""
    return (
        f"round trip {format_duration(round_trip_ns)} instead of {format_duration(asked)} "
        f"(tolerance {format_duration(tolerance_ns)}{f' for each of {switches} switches' if switches > 1 else ''})"
    )


def rate_problem(asked_bps: int, got_bps: int, tolerance: float) -> str:
    """How a rate deviates; "" when it is within the tolerance."""
    if abs(got_bps - asked_bps) <= tolerance * asked_bps:
        return ""
    return f"{format_bit_rate(got_bps)} instead of {format_bit_rate(asked_bps)} (tolerance {100 * tolerance:g} %)"


class Calibration:
    """One calibration: a process in each host that is measured from.

    :param hosts: name -> endpoint, of all hosts that paths may start and end at; *cards*: see :func:`calibrate`.
    :param switch_pids: each ovs-vswitchd of a userspace datapath, whose sockets get room once traffic made them.
    """

    def __init__(
        self,
        factory: LinkFactory,
        hosts: Mapping[str, Endpoint],
        spec: CalibrationSpec,
        *,
        log_directory: Path,
        switch_pids: Sequence[int] = (),
        cards: Mapping[str, str] | None = None,
    ) -> None:
        self._factory = factory
        self._hosts = dict(hosts)
        self._cards = dict(cards or {})
        self._spec = spec
        self._logs = log_directory
        self._switch_pids = tuple(switch_pids)
        self._channels: dict[str, Channel] = {}
        self._ports: dict[str, int] = {}

    def run(self) -> list[LinkResult]:
        """Measure and judge every link.

        :raises LinkError: the first link that misses a tolerance (asked, measured, remedy), or a path that is dead.
        """
        links = self._factory.links
        edges = [
            Edge(link.name, self._endpoint(link.ends[0]), self._endpoint(link.ends[1]), *link.asked)
            for link in links.values()
        ]
        paths = choose_paths(edges, list(self._hosts))
        with self._processes(sorted({host for path in paths for host in (path.start, path.end)})):
            measured = self._measure(paths)
        seen = by_link(paths)
        return [self._result(link, [measured[path] for path in seen.get(link.name, [])]) for link in links.values()]

    def _endpoint(self, end: End) -> str:
        return self._cards.get(end.interface, end.node)

    @contextlib.contextmanager
    def _processes(self, hosts: Sequence[str]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for host in hosts:
                process, channel = spawn_child(
                    "bench.link.burst",
                    peer=f"calibration on {host}",
                    netns_pid=self._hosts[host].pid,
                    log=self._logs / f"calibrate.{host}.log",
                )
                stack.callback(process.stop)
                stack.callback(channel.close)
                self._channels[host] = channel
            listening = self._together([(host, "listen", {"address": self._hosts[host].address}) for host in hosts])
            self._ports = {host: int(value["port"]) for host, value in zip(hosts, listening, strict=True)}
            yield
        self._channels.clear()

    def _together(
        self, calls: Sequence[tuple[str, str, dict[str, Any]]], timeout_ns: int = 10 * NS_PER_S
    ) -> list[dict[str, Any]]:
        """Commands to several processes at once; their replies in the same order."""
        deadline = Deadline(timeout_ns)
        posted = [(self._channels[host], self._channels[host].post(name, args)) for host, name, args in calls]
        replies: list[dict[str, Any]] = []
        for (channel, number), (host, name, _) in zip(posted, calls, strict=True):
            try:
                message = channel.receive(deadline)
            except (DeadlineError, BenchError) as error:
                raise LinkError(f"calibration: {host}: {name}: {error.message}") from error
            if message.get("reply") != number or "error" in message:
                raise LinkError(f"calibration: {host}: {message.get('error', 'an unexpected reply')}")
            replies.append(message["value"])
        return replies

    # measuring

    def _measure(self, paths: Sequence[Route]) -> dict[Route, Measured]:
        measured = {path: Measured(path) for path in paths}
        self._warm(paths)
        for pid in self._switch_pids:
            widen_packet_sockets(pid)
        for group in rounds(paths, TOGETHER_BPS, TOGETHER_HOPS):
            self._echo([measured[path] for path in group])
        for path, item in measured.items():
            if not item.round_trips_ns:
                raise LinkError(
                    f"path {path.name}: none of {item.sent} probes came back", "look at the switches' logs and the loss"
                )
            problem = round_trip_problem(item, self._spec.delay_tolerance, item.minimum_ns)
            if problem:
                raise LinkError(
                    f"path {path.name}: at least {problem}",
                    "raise calibration.delay_tolerance, or leave the machine alone while the bench runs",
                )
        self._check_frames(measured)
        for group in rounds(paths, TOGETHER_BPS):
            for back in (False, True):
                self._burst([measured[path] for path in group], back)
        return measured

    def _warm(self, paths: Sequence[Route]) -> None:
        """Let neighbours be resolved and switches learn, until each path has carried one echo."""
        waiting = list(paths)
        deadline = Deadline(_WARM_NS)
        while waiting:
            missing: list[Route] = []
            for group in rounds(waiting, 10**15):
                timeout_ns = 100 * NS_PER_MS + 2 * max(path.round_trip_ns for path in group)
                for path, value in zip(group, self._echo_once(group, 2, timeout_ns), strict=True):
                    if not value["round_trips_ns"]:
                        missing.append(path)
            waiting = missing
            if waiting and deadline.expired:
                raise LinkError(
                    f"path {waiting[0].name}: no answer within {format_duration(_WARM_NS)}",
                    "look at the switches' and the controller's logs in the run directory",
                )

    def _echo_once(
        self, group: Sequence[Route], count: int, timeout_ns: int, *, packet_bytes: int = 0
    ) -> list[dict[str, Any]]:
        calls: list[tuple[str, str, dict[str, Any]]] = [
            (
                path.start,
                "echo",
                {
                    "address": self._hosts[path.end].address,
                    "port": self._ports[path.end],
                    "count": count,
                    "interval_ns": PROBE_INTERVAL_NS,
                    "timeout_ns": timeout_ns,
                    "packet_bytes": packet_bytes,
                },
            )
            for path in group
        ]
        return self._together(calls, timeout_ns + count * PROBE_INTERVAL_NS + 10 * NS_PER_S)

    def _echo(self, group: Sequence[Measured]) -> None:
        waiting = list(group)
        for _ in range(ECHO_ATTEMPTS):
            timeout_ns = 200 * NS_PER_MS + 2 * max(item.path.round_trip_ns for item in waiting)
            values = self._echo_once([item.path for item in waiting], PROBES, timeout_ns)
            for item, value in zip(waiting, values, strict=True):
                item.echo_attempts += 1
                times: list[int] = value["round_trips_ns"]
                if times:
                    item.minima_ns.append(min(times))
                if times and (not item.round_trips_ns or median(times) < median(item.round_trips_ns)):
                    item.round_trips_ns = times
                item.sent = value["sent"]
            waiting = [item for item in waiting if not self._punctual(item)]
            if not waiting:
                return

    def _check_frames(self, measured: Mapping[Route, Measured]) -> None:
        """Where a path's MTU is not Ethernet's: whether packets of that size, not to be cut up, pass there and back.

        :raises LinkError: they do not.
        """
        for path, item in measured.items():
            if path.mtu == DEFAULT_MTU or path.loss(back=False) or path.loss(back=True):
                continue
            timeout_ns = 200 * NS_PER_MS + 2 * path.round_trip_ns
            for _ in range(FRAME_ATTEMPTS):
                (value,) = self._echo_once([path], 2, timeout_ns, packet_bytes=path.mtu)
                if value["round_trips_ns"]:
                    item.packet_bytes = path.mtu
                    break
            else:
                raise LinkError(
                    f"path {path.name}: packets of {path.mtu} bytes do not pass",
                    "lower the mtu of its links: something on the way carries less",
                )

    def _punctual(self, item: Measured) -> bool:
        """Whether the median round trip is within the tolerance."""
        if not item.round_trips_ns:
            return False
        return not round_trip_problem(item, self._spec.delay_tolerance, item.median_ns)

    def _burst(self, group: Sequence[Measured], back: bool) -> None:
        """Bursts on all paths of a group at once; those that miss the tolerance again, alone and longer.

        :raises LinkError: one misses it every time.
        """
        waiting: list[Measured] = []
        for item in group:
            reason = skip_reason(item.path, self._spec.burst, item.median_ns, back=back)
            if reason:
                item.notes[back] = reason
            else:
                waiting.append(item)
        if waiting:
            self._burst_once(waiting, back, 1)
        for item in waiting:
            for attempt in range(2, BURST_ATTEMPTS + 1):
                if self._rate_problem(item, back):
                    self._burst_once([item], back, attempt)
            problem = self._rate_problem(item, back)
            if problem:
                links = ", ".join(sorted(name for name, _ in item.path.bottlenecks(back=back)))
                start, end = (item.path.end, item.path.start) if back else (item.path.start, item.path.end)
                raise LinkError(
                    f"link {links}: measured from {start} to {end}: {problem}",
                    "lower the bandwidth to what this machine forwards, or raise calibration.rate_tolerance",
                )

    def _burst_once(self, group: Sequence[Measured], back: bool, factor: int) -> None:
        pairs = [(item.path.end, item.path.start) if back else (item.path.start, item.path.end) for item in group]
        expected = self._together(
            [
                (
                    receiver,
                    "expect",
                    {
                        "address": self._hosts[receiver].address,
                        "window_bytes": window_bytes(item.path, item.median_ns, back=back),
                    },
                )
                for item, (_, receiver) in zip(group, pairs, strict=True)
            ]
        )
        calls: list[tuple[str, str, dict[str, Any]]] = []
        longest_ns = 0
        for item, (sender, receiver), port in zip(group, pairs, expected, strict=True):
            duration_ns = factor * burst_ns(item.path, self._spec.burst, item.median_ns, back=back)
            timeout_ns = 5 * NS_PER_S + 2 * duration_ns
            longest_ns = max(longest_ns, timeout_ns)
            target = {"address": self._hosts[receiver].address, "port": port["port"]}
            calls.append((receiver, "collect", {"timeout_ns": timeout_ns}))
            calls.append((sender, "send", {**target, "duration_ns": duration_ns, "timeout_ns": timeout_ns}))
        values = self._together(calls, longest_ns + 5 * NS_PER_S)
        for item, value in zip(group, values[::2], strict=True):
            asked, rate_bps, former = item.path.rate_bps(back=back), int(value["rate_bps"]), item.rates.get(back)
            if former is None or abs(rate_bps - asked) < abs(former - asked):
                item.rates[back] = rate_bps

    def _rate_problem(self, item: Measured, back: bool) -> str:
        if back not in item.rates:
            return ""
        return rate_problem(item.path.rate_bps(back=back), item.rates[back], self._spec.rate_tolerance)

    # judging

    def _result(self, link: BenchLink, seen: Sequence[Measured]) -> LinkResult:
        measured: dict[str, Any] = {}
        seen = sorted(seen, key=lambda one: (len(one.path.hops), one.path.name))
        if seen:
            item = seen[0]
            measured["round_trip"] = {
                "path": item.path.name,
                "asked_ns": item.path.round_trip_ns,
                "median_ns": item.median_ns,
                "minimum_ns": item.minimum_ns,
                "probes": item.sent,
                "lost": item.sent - len(item.round_trips_ns),
                "attempts": item.echo_attempts,
            }
            if item.packet_bytes:
                measured["packet_bytes"] = item.packet_bytes
            if not self._punctual(item):
                measured["note"] = (
                    f"the median misses the tolerance of {format_duration(self._spec.delay_tolerance)}, the minimum "
                    "does not: something else keeps this machine busy"
                )
        else:
            measured["note"] = "no path between two hosts crosses this link"
        for key, backward in (("forward", False), ("backward", True)):
            measured[key] = self._direction(link, link.asked[backward], backward, seen)
        return LinkResult(
            name=link.name,
            mechanism=link.mechanism,
            asked={"forward": link.asked[0].to_json(), "backward": link.asked[1].to_json()},
            applied=link.applied,
            measured=measured,
            ok=all(map(self._punctual, seen[:1])),
        )

    def _direction(self, link: BenchLink, asked: Direction, backward: bool, seen: Sequence[Measured]) -> dict[str, Any]:
        if not asked.rate_bps:
            return {"rate_note": "unshaped: there is no rate to compare with"}
        notes: list[str] = []
        for item in seen:
            for back in (False, True):
                if (link.name, backward) not in item.path.bottlenecks(back=back):
                    continue
                if back in item.notes:
                    notes.append(item.notes[back])
                    continue
                return {"rate_bps": item.rates[back], "path": item.path.name}
        return {"rate_note": notes[0] if notes else "no measured path has this link as its slowest"}


def calibrate(
    factory: LinkFactory,
    hosts: Mapping[str, Endpoint],
    spec: CalibrationSpec,
    *,
    log_directory: Path,
    switch_pids: Sequence[int] = (),
    cards: Mapping[str, str] | None = None,
) -> list[LinkResult]:
    """Measure every link of *factory*; with ``spec.enabled`` False only say what was asked and applied.

    :param cards: interface -> which of *hosts* it is, where that is not its node: a host's card in another network.
    :param log_directory: where the processes' logs go.
    :param switch_pids: each ovs-vswitchd of the userspace datapath (see :mod:`bench.link.sockets`).
    :raises LinkError: a link misses its tolerance: link, asked, measured, remedy.
    """
    if spec.enabled:
        found = Calibration(factory, hosts, spec, log_directory=log_directory, switch_pids=switch_pids, cards=cards)
        return found.run()
    for pid in switch_pids:
        widen_packet_sockets(pid)
    return [
        LinkResult(
            name=link.name,
            mechanism=link.mechanism,
            asked={"forward": link.asked[0].to_json(), "backward": link.asked[1].to_json()},
            applied=link.applied,
            measured={"note": "calibration is switched off"},
        )
        for link in factory.links.values()
    ]

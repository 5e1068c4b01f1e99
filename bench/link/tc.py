"""One direction of a link as arguments of ``tc``, and what ``tc`` says is applied; pure.

What is built on an interface's egress::

    htb       1: htb default 1, class 1:1 rate R ceil R, leaf 10: bfifo        the usual shaper
    tbf       1: tbf rate R, child 10: bfifo                                   queues too short for 64 KiB segments
    netem+htb 5: netem delay, child (5:1) 1: htb, class 1:1, leaf 10: bfifo    a delay on kernels that have netem
    netem     5: netem delay                                                   a delay without a rate

The queue is counted in bytes (``bfifo``), a full-size frame for each packet asked for: with
segmentation offload one "packet" of a ``pfifo`` can be 64 KiB, so that 1000 of them would be 43 times the queue that
was meant. A queue shorter than two such segments would drop every one of them; there ``tbf`` shapes instead, which cuts
a segment longer than its burst into packets (``tbf_segment`` in net/sched/sch_tbf.c).

htb's ``burst`` is :data:`BURST_NS` of the rate, since that much is lost when a timer is late, and two full frames at
least; ``quantum`` is given, since htb warns in the kernel's log about the one that it computes from r2q (and with one
class it means nothing). Rates reach 400 Gbit/s: tc sends them as 64 bit (``TCA_HTB_RATE64``).

netem stands before the shaper, so that the queue keeps its length in bytes whatever is under way. Its jitter is uniform
(no distribution table), and with jitter it gets a nominal rate, since without one netem reorders (tc-netem(8), "rate").
netem sees segments before they are cut up, so its loss is one of segments: :mod:`bench.link.links` prefers the delay
line for loss and jitter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bench.clock import NS_PER_S
from bench.errors import LinkError
from bench.link.impairment import Direction

Shaper = Literal["htb", "tbf"]

SEGMENT_BYTES = 65536 + 44 * 66
"""The largest segment as qdiscs count it: 64 KiB of payload and a header for each packet that it will become."""

BURST_NS = 500_000
QUANTUM_BYTES = 60_000
MAX_NETEM_LIMIT = 10_000_000
IN_ORDER_RATE = "400gbit"
_RATE_UNITS = {"bit": 1, "Kbit": 10**3, "Mbit": 10**6, "Gbit": 10**9, "Tbit": 10**12}
_CLASS_RATE = re.compile(r"\brate (\d+(?:\.\d+)?)([KMGT]?bit)\b")


@dataclass(frozen=True)
class Applied:
    """What an interface's qdiscs do, as read back. ``shaper`` None: unshaped; ``queue_bytes`` None: no bottleneck."""

    shaper: str | None = None
    rate_bps: int = 0
    queue_bytes: int | None = None
    netem: bool = False
    delay_ns: int = 0
    jitter_ns: int = 0
    loss: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def shaper_for(direction: Direction) -> Shaper | None:
    """Which qdisc limits the rate; None when none is asked for."""
    if not direction.rate_bps:
        return None
    return "htb" if direction.queue_bytes >= 2 * SEGMENT_BYTES else "tbf"


def burst_bytes(direction: Direction) -> int:
    """The token bucket: :data:`BURST_NS` of the rate, at least two frames; for tbf at most half the queue.

    tbf cuts up what is longer than its burst, and whatever is not must fit the queue.
    """
    burst = max(direction.rate_bps * BURST_NS // (8 * NS_PER_S), 2 * direction.frame_bytes)
    if shaper_for(direction) == "tbf":
        burst = min(burst, max(direction.queue_bytes // 2, 2 * direction.frame_bytes))
    return burst


def build(interface: str, direction: Direction, *, netem: bool) -> list[list[str]]:
    """Arguments of the ``tc`` commands that build *direction* on an interface without qdiscs of ours, in order.

    :param netem: whether netem does delay, jitter and loss; else something else does, and only the rate is set here.
    """
    commands: list[list[str]] = []
    parent = ["root"]
    if netem and direction.delayed:
        commands.append(["qdisc", "add", "dev", interface, *parent, "handle", "5:", *netem_arguments(direction)])
        parent = ["parent", "5:1"]
    shaper = shaper_for(direction)
    rate, burst = f"{direction.rate_bps}bit", str(burst_bytes(direction))
    if shaper == "htb":
        commands.append(["qdisc", "add", "dev", interface, *parent, "handle", "1:", "htb", "default", "1"])
        shape = ["rate", rate, "ceil", rate, "burst", burst, "cburst", burst, "quantum", str(QUANTUM_BYTES)]
        commands.append(["class", "add", "dev", interface, "parent", "1:", "classid", "1:1", "htb", *shape])
    elif shaper == "tbf":
        limit = str(direction.queue_bytes + burst_bytes(direction))  # of tbf's own queue, that the child replaces
        shape = ["rate", rate, "burst", burst, "limit", limit]
        commands.append(["qdisc", "add", "dev", interface, *parent, "handle", "1:", "tbf", *shape])
    if shaper is not None:
        queue = ["bfifo", "limit", str(direction.queue_bytes)]
        commands.append(["qdisc", "add", "dev", interface, "parent", "1:1", "handle", "10:", *queue])
    return commands


def netem_arguments(direction: Direction) -> list[str]:
    """netem's own arguments. Its limit counts all frames under way: the smallest ones at full rate fit."""
    wire = direction.rate_bps * (direction.delay_ns + direction.jitter_ns) // (8 * NS_PER_S * 64)
    limit = direction.queue_packets + wire if direction.rate_bps else MAX_NETEM_LIMIT // 10
    arguments = ["netem", "limit", str(min(max(limit, 1000), MAX_NETEM_LIMIT)), "delay", f"{direction.delay_ns}ns"]
    if direction.jitter_ns:
        arguments += [f"{direction.jitter_ns}ns"]
    if direction.loss:
        arguments += ["loss", f"{100 * direction.loss:.7f}%"]
    if direction.jitter_ns:
        arguments += ["rate", IN_ORDER_RATE]
    return arguments


def remove(interface: str) -> list[str]:
    """Arguments that delete the root qdisc (and with it the frames that it holds)."""
    return ["qdisc", "del", "dev", interface, "root"]


def is_ours(qdiscs: str) -> bool:
    """Whether the output of ``tc -j qdisc show dev`` holds a root qdisc that someone added (handle not ``0:``)."""
    return any(item.get("root") and item.get("handle") != "0:" for item in _objects(qdiscs, "qdisc"))


def parse(qdiscs: str, classes: str) -> Applied:
    """What ``tc -j qdisc show dev X`` and ``tc -j class show dev X`` say.

    iproute2 before 6.10 or so prints htb's classes as text even with ``-j``; both forms are read.

    :raises LinkError: when the output is neither.
    """
    shaper: str | None = None
    rate_bps = delay_ns = jitter_ns = 0
    queue_bytes: int | None = None
    netem = False
    loss = 0.0
    for item in _objects(qdiscs, "qdisc"):
        options = item.get("options") or {}
        kind = item.get("kind")
        if kind == "htb":
            shaper, rate_bps = "htb", _class_rate_bps(classes)
        elif kind == "tbf":
            shaper, rate_bps = "tbf", 8 * int(options.get("rate", 0))
        elif kind == "bfifo" and item.get("parent") == "1:1":
            queue_bytes = int(options.get("limit", 0))
        elif kind == "netem":
            netem = True
            delay = options.get("delay") or {}
            delay_ns = round(float(delay.get("delay", 0)) * NS_PER_S)
            jitter_ns = round(float(delay.get("jitter", 0)) * NS_PER_S)
            loss = float((options.get("loss-random") or {}).get("loss", 0))
    return Applied(shaper, rate_bps, queue_bytes, netem, delay_ns, jitter_ns, loss)


def differences(direction: Direction, applied: Applied, *, netem: bool) -> list[str]:
    """What was asked and is not applied, one phrase each; empty when all is as asked.

    tc prints four significant digits of a rate and (some versions) of a time, so 0.1 % is "equal".
    """
    found: list[str] = []
    shaper = shaper_for(direction)
    if applied.shaper != shaper:
        found.append(f"shaper {applied.shaper or 'none'} instead of {shaper or 'none'}")
    elif not _near(applied.rate_bps, direction.rate_bps):
        found.append(f"rate {applied.rate_bps} bit/s instead of {direction.rate_bps} bit/s")
    if shaper is not None and applied.queue_bytes != direction.queue_bytes:
        found.append(f"queue {applied.queue_bytes} bytes instead of {direction.queue_bytes} bytes")
    asked = direction if netem else Direction()
    if applied.netem != asked.delayed:
        found.append("netem is there" if applied.netem else "netem is missing")
    elif applied.netem:
        for name, got, wanted in (
            ("delay", applied.delay_ns, asked.delay_ns),
            ("jitter", applied.jitter_ns, asked.jitter_ns),
        ):
            if not _near(got, wanted, 100):
                found.append(f"{name} {got} ns instead of {wanted} ns")
        if not _near(applied.loss, asked.loss, 1e-6):
            found.append(f"loss {applied.loss:g} instead of {asked.loss:g}")
    return found


def _near(got: float, wanted: float, slack: float = 0) -> bool:
    return abs(got - wanted) <= wanted / 1000 + slack


def _objects(text: str, what: str) -> list[dict[str, Any]]:
    try:
        items = json.loads(text or "[]")
    except ValueError:
        raise LinkError(f"tc -j {what} show printed no JSON: {text[:200]!r}", "install a newer iproute2") from None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise LinkError(f"tc -j {what} show printed no list of objects: {text[:200]!r}")
    return items


def _class_rate_bps(text: str) -> int:
    """The rate of the one htb class, from JSON (bytes/s) or from text (``rate 1Gbit``)."""
    if text.lstrip().startswith("["):
        rates: Sequence[int] = [
            8 * int((item.get("options") or item).get("rate", 0))
            for item in _objects(text, "class")
            if (item.get("kind") or item.get("class")) == "htb"
        ]
        return rates[0] if rates else 0
    match = _CLASS_RATE.search(text)
    if match is None:
        return 0
    return round(float(match[1]) * _RATE_UNITS[match[2]])

"""What became of a flow in a migration, and how close its connection came to its end. Pure.

**Verdict**, one word for each flow: *undisturbed* (it noticed nothing), *delayed* (by its outage), *reconnected* (its
client had to connect anew), *died* (with its error).

**Deadline**: the longest outage that the connection would have survived, by theory
(:mod:`bench.analysis.tcp_timers`) from the timer that the kernel stated before the pause, ``tcp_retries2`` and
TCP_USER_TIMEOUT, and the client's own timeout; *used* is the outage's share of it. Both ends have such a limit; what is
known here is the client's.

**Wait**: how long after the network was ready the first segment left that got through, which is the budget's stage
*client's wait* (the "RTO tax"). From the samples: how many timeouts in a row ended it, and the timer by then. What a
smaller minimum of the timer would have saved is the difference to the wait that theory gives for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bench.analysis import tcp_timers
from bench.analysis.tcp_timers import Sender
from bench.clock import NS_PER_MS
from bench.records import StructuredArray
from bench.result import FlowResult, FlowTcp, Verdict

SMALL_RTO_MIN_NS: Final = 5 * NS_PER_MS  # what published work on fast relearning used
_DEFAULT_RETRIES2: Final = 15
_PROBING: Final = (3, 4)  # tcp_early_retrans
_US: Final = 1000


@dataclass(frozen=True, slots=True)
class Options:
    """What the flow set on its connection; 0 for the kernel's default.

    :param timeout_ns: after which the client itself gives up.
    """

    user_timeout_ns: int = 0
    rto_min_ns: int = 0
    timeout_ns: int = 0


def verdict(flow: FlowResult, report: Mapping[str, Any]) -> Verdict:
    """See the module."""
    if not flow.alive:
        return "died"
    if report.get("reconnects"):
        return "reconnected"
    return "delayed" if flow.outage_ns else "undisturbed"


def connection(
    flow: FlowResult, samples: StructuredArray, kernel: Mapping[str, int], options: Options
) -> FlowTcp | None:
    """What the kernel said of a flow's connection around its outage; None when there is no sample.

    :param samples: :data:`bench.records.TCP_SAMPLE`, of the whole run.
    :param kernel: ``retries2`` and ``early_retrans`` of the client host.
    """
    if not len(samples):
        return None
    start_ns, end_ns = flow.outage_start_ns, flow.outage_end_ns
    at_ns = int(samples["t_ns"][-1]) if start_ns is None else start_ns
    before = samples[max(0, int(np.searchsorted(samples["t_ns"], at_ns, side="right")) - 1)]
    rto_min_ns = options.rto_min_ns or tcp_timers.RTO_MIN_NS
    sender = Sender(
        rto_ns=int(before["rto_us"]) * _US,
        srtt_ns=int(before["rtt_us"]) * _US,
        probes=kernel.get("early_retrans", _PROBING[0]) in _PROBING,
        rto_min_ns=rto_min_ns,
    )
    survivable_ns = _survivable(sender, kernel, options)
    during = samples[:0]
    if start_ns is not None and end_ns is not None:
        begin, end = np.searchsorted(samples["t_ns"], [start_ns, end_ns + 1])
        during = samples[begin:end]
    wait_ns = next((part.ns for part in flow.budget if part.stage == "client's wait"), None)
    return FlowTcp(
        rto_ns=sender.rto_ns,
        rtt_ns=sender.srtt_ns,
        cwnd=int(before["cwnd"]),
        samples=len(samples),
        timeouts=int(during["timeouts"].max()) if len(during) else 0,
        backoff=int(during["backoff"].max()) if len(during) else 0,
        longest_rto_ns=int(during["rto_us"].max()) * _US if len(during) else sender.rto_ns,
        retransmits=int(during["retransmits"].max() - before["retransmits"]) if len(during) else 0,
        wait_ns=wait_ns,
        saved_ns=_saved(flow, sender, wait_ns),
        survivable_ns=survivable_ns,
        used=flow.outage_ns / survivable_ns if flow.outage_ns is not None and survivable_ns else None,
    )


def _survivable(sender: Sender, kernel: Mapping[str, int], options: Options) -> int:
    retries2 = kernel.get("retries2", _DEFAULT_RETRIES2)
    limit_ns = tcp_timers.longest_survivable_ns(sender, retries2, options.user_timeout_ns)
    return min(limit_ns, options.timeout_ns) if options.timeout_ns else limit_ns


def _saved(flow: FlowResult, sender: Sender, wait_ns: int | None) -> int | None:
    """How much sooner a sender with a least timeout of :data:`SMALL_RTO_MIN_NS` would have got through."""
    if not wait_ns or flow.outage_ns is None:
        return None
    ready_ns = flow.outage_ns - wait_ns - sum(part.ns for part in flow.budget if part.stage == "reply")
    eager = Sender(
        rto_ns=sender.srtt_ns + SMALL_RTO_MIN_NS,
        srtt_ns=sender.srtt_ns,
        probes=sender.probes,
        rto_min_ns=SMALL_RTO_MIN_NS,
    )
    return max(0, wait_ns - (tcp_timers.stall_ns(max(0, ready_ns), eager) - max(0, ready_ns)))

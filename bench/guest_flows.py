"""The flows that guests run themselves, as the runner sees them: their servers outside, their start, state and end.

Who runs a flow is the guest, wherever it is; its server runs on the client host that the scenario names. What both
noted is put together by :mod:`bench.collect`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Final

from bench.clock import NS_PER_S, Deadline, now_ns, wait_until
from bench.errors import BenchError, DeadlineError
from bench.guests import RunningGuest
from bench.outside.servers import Servers
from bench.plan import Plan
from bench.probe.clients import FlowReport
from bench.scenario import ClientSpec
from bench.scenario.values import parse_keepalive
from bench.testbed import Testbed
from bench.timeline import Event

STATUS_NS: Final = NS_PER_S // 5
TUNE_NS: Final = 5 * NS_PER_S
STOP_NS: Final = 12 * NS_PER_S  # an upload waits up to 10 s for its server's answer


class GuestFlows:
    """Start, ask, stop, close; ``close`` at any time and as often as one likes.

    :param directory: the run directory; *requests* where the flows' records go.
    """

    def __init__(self, plan: Plan, directory: Path, requests: Path, testbed: Testbed) -> None:
        self._plan = plan
        self._requests = requests
        self._testbed = testbed
        self._servers = Servers(directory / "events", directory / "logs")
        self._asked_ns = 0
        self._started_ns = 0
        every = [(host, flow) for host, flows in plan.flows.items() for flow in flows]
        self._own = [(host, flow) for host, flow in every if flow.direction == "from-guest"]
        self._tuned = [(host, flow) for host, flow in every if flow.tcp.guest_rto_min]
        self._sinks = any(flow.kind == "udp-stream" for _host, flow in every)

    def start(self) -> None:
        """The servers, then the flows. :raises BenchError: one cannot be started."""
        self._started_ns = now_ns()
        for host in dict.fromkeys(host for host, _flow in self._own):
            self._servers.start(host, self._testbed.net[host].pid, self._plan.addresses[host])
        for guest in self._guests():
            orders = [flow_order(flow, self._plan.addresses[host]) for host, flow in self._of(guest)]
            guest.control.flows("start", flows=orders)

    def _guests(self) -> list[RunningGuest]:
        named = {str(flow.guest) for _host, flow in self._own}
        return [guest for guest in self._testbed.guests if guest.name in named and not guest.lost]

    def _of(self, guest: RunningGuest) -> list[tuple[str, ClientSpec]]:
        return [(host, flow) for host, flow in self._own if flow.guest == guest.name]

    def connected(self, event: Event) -> None:
        """A flow to a guest stands: its guest's end gets what the scenario wants of it.

        :raises BenchError: the guest's kernel does not take it.
        """
        name, port = event.data.get("flow"), event.data.get("local_port")
        for host, flow in self._tuned:
            if flow.name == name and isinstance(port, int):
                self._tune(flow, (self._plan.addresses[host], port))

    def _tune(self, flow: ClientSpec, remote: tuple[str, int]) -> None:
        control = self._testbed.guests[str(flow.guest)].control

        def done() -> bool:  # the client knows of the connection before the guest has accepted it
            return control.set_least_timeout(remote, flow.tcp.guest_rto_min // 1000)

        wait_until(done, Deadline(TUNE_NS), f"the guest knows the connection of {flow.name}")

    def status(self) -> list[Event]:
        """An event for each flow, some times a second: not more often than that. Not while its guest moves."""
        now = now_ns()
        if not self._own or now < self._asked_ns + STATUS_NS:
            return []
        self._asked_ns = now
        return [
            Event(now, f"guest.{guest.name}", "flow_status", {key: report[key] for key in _SHOWN})
            for guest in self._guests()
            for report in guest.control.flows("look")["flows"]
        ]

    def stop(self) -> list[FlowReport]:
        """Stop them, and have every guest write what it noted. A guest that is gone takes its flows along."""
        reports = [report for guest in self._guests() for report in self._stop(guest)]
        if self._sinks:
            for guest in self._testbed.guests:
                self._told(guest)
        told = {report.name for report in reports}
        dead = {"alive": False, "error": "guest lost", "local_port": None, "retransmits": None}
        reports += [self._report(host, flow, dict(dead)) for host, flow in self._own if flow.name not in told]
        self._servers.close()
        return reports

    def _stop(self, guest: RunningGuest) -> list[FlowReport]:
        answer = self._told(guest, "stop")

        def over() -> bool:
            nonlocal answer
            answer = self._told(guest)
            return answer is None or all(flow["done"] for flow in answer["flows"])

        with contextlib.suppress(DeadlineError):
            wait_until(over, Deadline(STOP_NS), f"the flows of {guest.name} have ended")
        if answer is None:
            return []
        told = {str(flow["name"]): {**flow, "kernel": answer["kernel"]} for flow in answer["flows"]}
        return [
            self._report(host, flow, told[str(flow.name)]) for host, flow in self._of(guest) if str(flow.name) in told
        ]

    @staticmethod
    def _told(guest: RunningGuest, what: str = "look") -> dict[str, Any] | None:
        try:
            return dict(guest.control.flows(what))
        except BenchError:
            return None

    def _report(self, host: str, flow: ClientSpec, report: dict[str, Any]) -> FlowReport:
        name = str(flow.name)
        return FlowReport(
            host, name, flow.kind, {**report, "started_ns": self._started_ns}, self._requests / host / f"{name}.npy"
        )

    def close(self) -> None:
        """End the servers."""
        self._servers.close()


_SHOWN: Final = ("name", "requests", "last_reply_ns", "alive")


def flow_order(client: ClientSpec, address: str) -> dict[str, Any]:
    """A client of the scenario as who runs it wants to be told.

    :param address: of the other end.
    """
    return {
        "name": client.name,
        "kind": client.kind,
        "interval_ns": client.interval,
        "think_ns": client.think,
        "size": client.size,
        "rate_bps": client.rate,
        "timeout_ns": client.timeout,
        "command": list(client.command),
        "address": address,
        "retry": client.retry,
        "tcp": {
            "congestion": client.tcp.congestion,
            "user_timeout_ns": client.tcp.user_timeout,
            "keepalive": list(parse_keepalive(client.tcp.keepalive)) if client.tcp.keepalive else [],
            "rto_min_ns": client.tcp.rto_min,
            "retries2": client.tcp.retries2,
            "syn_retries": client.tcp.syn_retries,
            "nagle": client.tcp.nagle,
        },
    }

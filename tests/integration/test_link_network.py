"""Links between real namespaces: what is asked is applied, read back, and does what it says."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pings import round_trips_ms

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, wait_until
from bench.errors import ControllerError, LinkError
from bench.host.commands import run, spawn
from bench.host.sandbox import call_in_sandbox
from bench.link.impairment import Direction
from bench.link.links import BenchLink, End, LinkFactory, choose_wire, kernel_has_netem
from bench.reach import wait_reachable
from bench.scenario import LinkSpec

pytestmark = pytest.mark.root

ADDRESSES = ("10.77.0.1", "10.77.0.2")


def spec(**values: Any) -> LinkSpec:
    return LinkSpec.model_validate(values)


class Pair:
    """Two namespaces, ``a`` and ``b``, and one link between them."""

    def __init__(self, stack: ExitStack, link: LinkSpec, log: Path) -> None:
        self.log = log
        self.factory = LinkFactory(lambda _a, _b: link, log=log / "line.log", seed=7)
        stack.callback(self.factory.stop)
        self.pids = [self.namespace(stack, name) for name in ("a", "b")]
        ends = [End(name, f"{name}-eth0", pid) for name, pid in zip("ab", self.pids, strict=True)]
        self.link: BenchLink = self.factory.create(*ends)
        for end, address in zip(ends, ADDRESSES, strict=True):
            self.run(end.pid, "ip", "address", "add", f"{address}/24", "dev", end.interface)
            self.run(end.pid, "ip", "link", "set", end.interface, "up")
        self.factory.apply_all()

    def namespace(self, stack: ExitStack, name: str) -> int:
        process = spawn(["unshare", "--net", "sleep", "infinity"], log=self.log / f"{name}.log")
        stack.callback(process.stop)
        home = Path("/proc/self/ns/net").readlink()
        wait_until(lambda: Path(f"/proc/{process.pid}/ns/net").readlink() != home, Deadline(5 * NS_PER_S), name)
        return process.pid

    def run(self, pid: int | None, *argv: str, check: bool = True) -> str:
        return run(argv, deadline=Deadline(60 * NS_PER_S), netns_pid=pid, check=check).stdout

    def ping(self, count: int) -> list[float]:
        """Round trips in ms."""
        return list(round_trips_ms(self.pids[0], ADDRESSES[1], count, every_ms=5).values())

    def iperf(self, *options: str) -> dict[str, Any]:
        server = spawn(["iperf3", "-s", "-1"], netns_pid=self.pids[1], log=self.log / "iperf3.log")
        try:

            def listens() -> bool:
                return ":5201" in self.run(self.pids[1], "ss", "-Hltn")

            wait_until(listens, Deadline(10 * NS_PER_S), "iperf3 listens")
            text = self.run(self.pids[0], "iperf3", "-J", "-c", ADDRESSES[1], *options)
        finally:
            server.stop()
        end: dict[str, Any] = json.loads(text)["end"]
        return end


@contextmanager
def pair(link: LinkSpec, log: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(stack, link, log)


def test_delay_is_never_early_and_offload_is_right(tmp_path: Path) -> None:
    def body() -> dict[str, Any]:
        with pair(spec(bandwidth="unlimited", delay="3ms"), tmp_path) as network:
            sent = network.iperf("-n", "64M")
            return {
                "mechanism": network.link.mechanism,
                "pings": network.ping(10),
                "stats": network.factory.line_stats(),
                "received": sent["sum_received"]["bytes"],
                "sent": sent["sum_sent"]["bytes"],
            }

    got = call_in_sandbox(body)
    assert "delay-line" in got["mechanism"] or "netem" in got["mechanism"]
    assert len(got["pings"]) == 10
    assert min(got["pings"]) >= 6.0
    # iperf3 stops counting when the sender is done: what is in flight then, at most a window, arrives uncounted
    window_bytes = int(Path("/proc/sys/net/ipv4/tcp_rmem").read_text().split()[2])
    assert got["sent"] >= 63 << 20
    assert got["received"] >= got["sent"] - window_bytes
    for item in got["stats"]:  # none where the kernel's netem did it
        forward = item["forward"]
        assert forward["bytes"] > 64 << 20
        assert forward["bytes"] > 3000 * forward["frames"]  # segments crossed whole
        assert forward["dropped_overflow"] == 0


def test_parameters_change_while_running(tmp_path: Path) -> None:
    def body() -> list[list[float]]:
        with pair(spec(delay="1ms"), tmp_path) as network:
            before = network.ping(5)
            slow = Direction(10**9, 20 * NS_PER_MS)
            applied = network.factory.apply(network.link, slow, slow)
            assert applied["backward"]["delay_ns"] == 20 * NS_PER_MS
            return [before, network.ping(5)]

    before, after = call_in_sandbox(body)
    assert min(before) >= 2.0
    assert min(after) >= 40.0


def test_directions_differ(tmp_path: Path) -> None:
    def body() -> dict[str, Any]:
        link = spec(bandwidth="100Mbit", delay="1ms", reverse={"delay": "9ms", "bandwidth": "25Gbit", "queue": 50})
        with pair(link, tmp_path) as network:
            return {**network.link.applied, "pings": network.ping(5), "mechanism": network.link.mechanism}

    got = call_in_sandbox(body)
    assert min(got["pings"]) >= 10.0
    assert got["mechanism"] == "htb/tbf+delay-line"
    assert (got["forward"]["shaper"], got["forward"]["rate_bps"]) == ("htb", 10**8)
    assert (got["backward"]["shaper"], got["backward"]["rate_bps"]) == ("tbf", 25 * 10**9)
    assert got["backward"]["queue_bytes"] == 50 * 1514


def test_loss_is_of_packets_and_seeded(tmp_path: Path) -> None:
    """Segments are cut up before the delay line, so that each packet meets its own fate; TCP data survives."""

    def body() -> dict[str, Any]:
        with pair(spec(bandwidth="unlimited", delay="1ms", loss=0.02), tmp_path) as network:
            network.iperf("-n", "8M")
            return dict(network.factory.line_stats()[0]["forward"])

    forward = call_in_sandbox(body)
    assert forward["bytes"] <= 1514 * forward["frames"]
    offered = forward["frames"] + forward["dropped_loss"]
    assert offered > 2000
    assert 0.005 < forward["dropped_loss"] / offered < 0.04


def test_without_impairments_there_is_nothing_between(tmp_path: Path) -> None:
    def body() -> dict[str, Any]:
        with pair(spec(bandwidth="unlimited"), tmp_path) as network:
            return {"mechanism": network.link.mechanism, "line": network.factory.delay_line is not None}

    assert call_in_sandbox(body) == {"mechanism": "none", "line": False}


def test_a_foreign_change_is_noticed(tmp_path: Path) -> None:
    def body() -> str:
        with pair(spec(bandwidth="1Gbit"), tmp_path) as network:
            network.factory.verify()
            network.run(network.pids[0], "tc", "qdisc", "del", "dev", "a-eth0", "root")
            with pytest.raises(LinkError) as caught:
                network.factory.verify()
            return str(caught.value)

    text = call_in_sandbox(body)
    assert "a-b" in text
    assert "a-eth0" in text
    assert "shaper none instead of htb" in text


def test_a_veth_link_cannot_be_delayed_later(tmp_path: Path) -> None:
    def body() -> str:
        with pair(spec(bandwidth="1Gbit"), tmp_path) as network:
            late = Direction(10**9, NS_PER_MS)
            with pytest.raises(LinkError) as caught:
                network.factory.apply(network.link, late, late)
            return str(caught.value)

    assert "remedy" in call_in_sandbox(body)


def test_death_of_the_delay_line_is_noticed(tmp_path: Path) -> None:
    def body() -> list[str]:
        with pair(spec(delay="1ms", jitter="0.1ms"), tmp_path) as network:
            process = network.factory.delay_line
            assert process is not None
            network.factory.check()
            process.send_signal(signal.SIGKILL)
            process.wait(Deadline(5 * NS_PER_S))
            texts = []
            for call in (network.factory.check, network.factory.line_stats):
                with pytest.raises(LinkError) as caught:
                    call()
                texts.append(str(caught.value))
            return texts

    assert all("links are down" in text for text in call_in_sandbox(body))


def test_a_taken_name_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    def body() -> list[str]:
        with pair(spec(delay="1ms", jitter="0.1ms"), tmp_path) as network:
            taken = End("a", "a-eth0", network.pids[0])
            with pytest.raises(LinkError) as caught:
                network.factory.create(End("c", "c-eth0", network.pids[1]), taken)
            names = json.loads(network.run(network.pids[1], "ip", "-j", "link", "show"))
            return [str(caught.value), *[item["ifname"] for item in names]]

    text, *names = call_in_sandbox(body)
    assert "a-eth0: the name is taken" in text
    assert "c-eth0" not in names


def test_the_wire_is_chosen_by_what_the_kernel_has() -> None:
    netem = kernel_has_netem()
    delayed = Direction(10**9, NS_PER_MS)
    assert choose_wire(delayed, delayed, netem=netem, tun=True) == ("netem" if netem else "delay-line")


def test_hosts_that_reach_each_other_and_one_that_is_not_reached(tmp_path: Path) -> None:
    def body() -> list[str]:
        with pair(spec(), tmp_path) as network:
            hosts = {name: (pid, address) for name, pid, address in zip("ab", network.pids, ADDRESSES, strict=True)}
            pairs = [("a", "b"), ("b", "a")]
            wait_reachable(hosts, pairs, "a test")
            network.run(network.pids[1], "ip", "link", "set", "b-eth0", "down")
            try:
                wait_reachable(hosts, pairs, "a test", wait_ns=NS_PER_MS)
            except ControllerError as error:
                return [error.message, error.remedy]
            return []

    message, remedy = call_in_sandbox(body)
    assert message.startswith("a does not reach b (10.77.0.2) through the network that a test controls: ")
    assert "tried for 1 ms; 2 of 2 pairs do not" in message
    assert "every switch" in remedy

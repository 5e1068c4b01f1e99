"""Does to the network of a run what its scenario's [faults] say, while a guest is paused or when it has resumed."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Final

from bench.clock import NS_PER_S, Deadline
from bench.errors import BenchError
from bench.host import firewall
from bench.host.commands import python_environment, run, spawn
from bench.migration.announce import frames
from bench.timeline import Event, EventWriter

if TYPE_CHECKING:
    from bench.testbed import Testbed

_COMMAND_NS: Final = 5 * NS_PER_S
SOURCE: Final = "faults"
GATEWAY: Final = "gw2"
NOBODY: Final = "02:00:00:00:fe:fe"


class NetworkFaults:
    """:meth:`on_event` is called with every event of a migration."""

    def __init__(self, testbed: Testbed, stack: contextlib.ExitStack) -> None:
        self._testbed = testbed
        self._spec = testbed.scenario.faults
        self._write = EventWriter(testbed.directory / "events" / f"{SOURCE}.jsonl", SOURCE)
        stack.callback(self._write.close)
        self._stack = stack

    def on_event(self, event: Event) -> None:
        """:raises BenchError: a fault that was asked for cannot be done."""
        if self._spec.gateway_mac is not None and (event.source, event.name) == ("engine.source", "paused"):
            self._move_gateway(self._spec.gateway_mac, event.guest)  # at the new place it never was another
        if (event.source, event.name) != ("engine.destination", "resumed"):
            return
        if self._spec.conntrack_flush:
            for name in self._testbed.plan.routers:
                firewall.flush(self._testbed.net[name].pid)
                self._write("conntrack_flushed", host=name)
        if self._spec.second_holder is not None:
            self._hold_address(self._spec.second_holder, event.guest)

    def _move_gateway(self, mac: str, guest_name: str) -> None:
        """Another card takes the gateway's address, without a word, and the old card's MAC address is nobody's.

        A card that changed its MAC address itself would forget its neighbours, ask for the guest, and thereby tell it:
        so the new one is a macvlan that knows the guest already.
        """
        plan = self._testbed.plan
        guest = self._testbed.scenario.guest_named(guest_name or None)
        for name in plan.routers:
            host = self._testbed.net[name]
            for intf in host.intfList():
                if str(intf.IP()) != plan.gateway:
                    continue
                address = f"{plan.gateway}/{plan.prefix_of(name)}"
                batch = [
                    f"link add link {intf.name} name {GATEWAY} address {mac} type macvlan mode bridge",
                    f"link set {GATEWAY} up",
                    f"neigh replace {guest.address} lladdr {guest.mac} dev {GATEWAY} nud permanent",
                    f"addr del {address} dev {intf.name}",
                    f"addr add {address} dev {GATEWAY}",
                    f"link set {intf.name} address {NOBODY}",
                ]
                text = "\n".join(batch).encode() + b"\n"
                run(["ip", "-batch", "-"], deadline=Deadline(_COMMAND_NS), input=text, netns_pid=host.pid)
                self._write("gateway_moved", host=name, mac=mac)

    def _hold_address(self, name: str, guest_name: str) -> None:
        """The host has the guest's address as well, and announces it twice a second (RFC 5227 section 2.3)."""
        host = self._testbed.net[name]
        guest = self._testbed.scenario.guest_named(guest_name or None)
        address = f"{guest.address}/{self._testbed.plan.prefix_length}"
        interface = str(host.defaultIntf())
        with contextlib.suppress(BenchError):  # it holds it since an earlier migration
            argv = ["ip", "addr", "add", address, "dev", interface]
            run(argv, deadline=Deadline(_COMMAND_NS), netns_pid=host.pid)
        (frame,) = frames(["garp"], str(host.defaultIntf().MAC()), guest.address)
        times = str(2 * self._spec.second_holder_times)
        sender = spawn(
            [sys.executable, "-m", "bench.host.frame_sender", interface, frame["hex"], times, "500"],
            netns_pid=host.pid,
            env=python_environment(),
            log=self._testbed.directory / "logs" / "second_holder.log",
            name=f"second holder {name}",
        )
        self._stack.callback(sender.stop)
        self._write("address_held_twice", host=name, ip=guest.address)

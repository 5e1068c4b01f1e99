"""The control plane of one run: which switches, which controller, when both are ready. By the scenario's one word."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.host.controller import ControllerProcess
from bench.host.ovs_daemons import SwitchDaemons
from bench.host.spanning_tree import bridge_states, ovs_states, wait_settled
from bench.plan import Plan
from bench.scenario import Scenario
from bench.scenario.network import CONTROL_PLANES

CONTROLLER_PORT: Final = 6653
CONNECT_NS: Final = 30 * NS_PER_S
# Open vSwitch connects to a Unix socket below its own directory only (vswitchd/bridge.c).
RELAY_SOCKET: Final = "ovs/controller.sock"


class ControlPlane:
    """Switches and what controls them.

    :param directory: the run directory.
    :ivar ovs: None with Linux bridges. :ivar controller: the bench's own process; None when none of its runs.
    """

    def __init__(self, scenario: Scenario, plan: Plan, directory: Path) -> None:
        self.ovs: SwitchDaemons | None = None
        self.controller: ControllerProcess | None = None
        self._spec = scenario.controller
        self._plan = plan
        self._directory = directory
        self._datapath = scenario.network.datapath

    @property
    def name(self) -> str:
        """Such as ``ryu/learning``, ``none/standalone``."""
        spec = self._spec
        if spec.app == "external":
            return f"external/{spec.address}"
        return f"{spec.framework if spec.is_process else 'none'}/{spec.app}"

    @property
    def is_foreign(self) -> bool:
        """Whether flows are somebody else's, so that nobody here knows when they are there."""
        return self._spec.app == "external" or self._spec.app not in CONTROL_PLANES

    def start(self, stack: contextlib.ExitStack) -> None:
        """Start Open vSwitch and the controller, whichever there are. :raises BenchError: with the reason."""
        spec = self._spec
        if spec.app != "bridge":
            topo = self._plan.topo
            ports = {switch: len(topo.ports.get(switch, ())) for switch in topo.switches()}
            relay = self._directory / RELAY_SOCKET if spec.app == "external" else None
            self.ovs = SwitchDaemons(self._directory / "ovs", self._datapath, ports, relay)
            stack.callback(self.ovs.stop)
            self.ovs.start()
        if spec.is_process:
            self.controller = ControllerProcess(
                spec.framework,
                spec.app,
                self._directory,
                CONTROLLER_PORT,
                names={dpid: name for name, dpid in self._plan.dpids.items()},
                hold_s=spec.hold // NS_PER_S,
                options={
                    "idle_timeout_s": spec.idle_timeout // NS_PER_S,
                    "hard_timeout_s": spec.hard_timeout // NS_PER_S,
                    "dual_delivery": spec.dual_delivery,
                },
            )
            stack.callback(self.controller.stop)
            self.controller.start()

    def switch_class(self) -> type:
        """The Mininet switch class."""
        if self.ovs is None:
            from bench.host.bridge_switch import BridgeSwitch  # noqa: PLC0415 - Mininet is imported lazily

            return BridgeSwitch
        if self._spec.app == "external":
            return self.ovs.switch_class(controller_target=f"unix:{self._directory / RELAY_SOCKET}")
        return self.ovs.switch_class(CONTROLLER_PORT if self.controller else None)

    @contextlib.contextmanager
    def environment(self) -> Any:
        """While the body runs, Mininet's commands find the switches' daemons."""
        with contextlib.ExitStack() as stack:
            if self.ovs is not None:
                stack.enter_context(self.ovs.environment())
            yield

    def wait_ready(self, switches: Iterable[Any]) -> None:
        """Until every switch is connected and the spanning tree, if there is one, has settled; notes in the plan which
        links that blocks.

        :raises BenchError: the controller ended, or it takes too long.
        """
        switches = list(switches)
        if self.controller is not None:
            self.controller.wait_connected(len(switches), Deadline(CONNECT_NS))
        elif self._spec.app == "external":
            wait_until(
                lambda: all(switch.connected() for switch in switches),
                Deadline(CONNECT_NS),
                f"every switch connected to {self._spec.address}",
            )
        if any(switch.stp for switch in switches if hasattr(switch, "stp")):
            self._note_blocked(switches, wait_settled(lambda: self._tree_states(switches)))

    def _tree_states(self, switches: Iterable[Any]) -> dict[str, str]:
        if self.ovs is not None:
            return {port: state for daemon in self.ovs for port, state in ovs_states(daemon).items()}
        ports = [intf.name for switch in switches for intf in switch.intfList() if switch.ports[intf]]
        return bridge_states(ports)

    def _note_blocked(self, switches: Iterable[Any], blocked: set[str]) -> None:
        for switch in switches:
            for intf in switch.intfList():
                if intf.name in blocked and intf.link is not None:
                    ends = (intf.link.intf1.node.name, intf.link.intf2.node.name)
                    self._plan.blocked.add(frozenset(ends))

    # what an app may want to know beforehand

    def expect(self, mac: str, switch: str, port: int) -> None:
        """A guest is about to move to a port. Only the app ``activation`` cares."""
        if self.controller is not None and self._spec.app == "activation":
            self.controller.order("expect", mac=mac, switch=switch, port=port)

    def forget(self, mac: str) -> None:
        """It does not come after all."""
        if self.controller is not None and self._spec.app == "activation":
            self.controller.order("forget", mac=mac)

    # looking at it

    @property
    def datapath(self) -> str:
        """``kernel``, ``user``, or ``bridge``."""
        return self.ovs.datapath if self.ovs is not None else "bridge"

    def watched(self, switches: Iterable[Any]) -> dict[str, Any]:
        """What :class:`bench.probe.switches.SwitchWatch` is to watch of these switches: flow tables where a controller
        fills them, the FDB where a switch learns by itself.
        """
        switches = list(switches)
        ports = {
            switch.name: {intf.name: number for intf, number in switch.ports.items() if number} for switch in switches
        }
        if self.ovs is None:
            return {"bridges": {name: list(names) for name, names in ports.items()}}
        numbers = {name: {str(number): port for port, number in names.items()} for name, names in ports.items()}
        of = self.ovs.of
        flows = [{"switch": name, "env": of(name).env, "ports": numbers[name]} for name in ports]
        fdb = [{"switch": name, "socket": str(of(name).control_path()), "ports": numbers[name]} for name in ports]
        if self.is_foreign:
            # Somebody else's flows may say where a frame goes, or leave that to the FDB (NORMAL).
            return {"flows": flows, "fdb": fdb}
        return {"flows": flows} if self._spec.is_process else {"fdb": fdb}

    def forwarding_pids(self) -> Sequence[int]:
        """The processes whose packet sockets carry all frames: each ovs-vswitchd of the userspace datapath."""
        return [] if self.ovs is None else self.ovs.forwarding_pids

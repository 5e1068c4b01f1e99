"""The Mininet switch of the bench.

Imports Mininet, so it is loaded lazily, by :meth:`bench.host.ovs.OpenVSwitch.switch_class`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Mininet 2.3 imports distutils
    from mininet.net import VERSION
    from mininet.node import OVSSwitch

if TYPE_CHECKING:
    from bench.host.ovs import OpenVSwitch

MININET_VERSION = str(VERSION)
_MAX_BACKOFF_MS = 1000  # the least that Open vSwitch's schema allows
_TOGETHER = 4  # daemons that are told something at the same time


class BenchSwitch(OVSSwitch):  # type: ignore[misc]
    """An Open vSwitch bridge in the run's private daemons.

    OpenFlow 1.3 unless the topology says otherwise; fail mode ``secure`` with a controller and ``standalone`` (a
    learning switch) without; the rapid spanning tree for the topology's ``stp``; out-of-band control; the datapath that
    the daemons chose, whatever the topology asks for.
    The option ``bond`` names a switch: all links to it are one bond in mode balance-slb.
    Every port has the QoS type ``linux-noop`` (ovs-vswitchd.conf.db(5)), or Open vSwitch would delete the queueing
    disciplines that shape the link.

    All switches of a network are created in one database transaction of each daemon (Mininet's ``batchStartup``).

    :ivar ovs: the daemons that this switch belongs to.
    """

    daemons_of: Callable[[str], OpenVSwitch]
    controller_target: str | None = None
    default_protocols = "OpenFlow13"
    OVSVersion = "3.0"  # Mininet compares it with 1.10 only

    def __init__(self, name: str, **params: Any) -> None:
        params.setdefault("protocols", self.default_protocols)
        self.ovs: OpenVSwitch = type(self).daemons_of(name)
        params["datapath"] = self.ovs.datapath
        self._asked_fail_mode = params.get("failMode")
        self._bond: str | None = params.pop("bond", None)
        self._start_arguments: list[str] = []
        self._controllers = 0
        with self.ovs.environment():  # which its shell keeps
            super().__init__(name, **params)

    @classmethod
    def setup(cls) -> None:
        """Nothing: Mininet's own looks for the system's daemons."""

    def start(self, controllers: Iterable[Any]) -> None:
        """Create the bridge with its ports and controllers; with ``batch`` only when :meth:`batchStartup` is called."""
        self._start_arguments = self._creation(list(controllers))
        if not self.batch:
            self.batchStartup([self])

    def _creation(self, controllers: Sequence[Any]) -> list[str]:
        targets = {
            controller.name: f"{controller.protocol}:{controller.IP()}:{controller.port}" for controller in controllers
        }
        if self.controller_target is not None:
            targets["bench"] = self._own(self.controller_target)
        self._controllers = len(targets)
        self.failMode = self._asked_fail_mode or ("secure" if targets else "standalone")
        words = ["--", "--may-exist", "add-br", self.name, "--", "set", "Bridge", self.name]
        words += [f"datapath_type={self.ovs.datapath_type}", f"fail_mode={self.failMode}"]
        words += [f"rstp_enable={str(bool(self.stp)).lower()}"]
        words += [f"other_config:datapath-id={self.dpid}", f"other_config:dp-desc={self.name}"]
        words += [f"other_config:disable-in-band={str(not self.inband).lower()}", f"protocols={self.protocols}"]
        names = []
        for name, target in targets.items():
            names.append(f"@{self.name}_{name}")
            words += ["--", f"--id={names[-1]}", "create", "Controller", f'target="{target}"']
            words += [f"max_backoff={max(self.reconnectms or 0, _MAX_BACKOFF_MS)}"]
        if names:
            words += ["--", "set", "Bridge", self.name, f"controller={','.join(names)}"]
        data = [intf for intf in self.intfList() if self.ports[intf] and not intf.IP()]
        bonded = [intf for intf in data if self._bond is not None and _leads_to(intf, self._bond)]
        for intf in data:
            if intf not in bonded:
                words += self._addition(intf)
        if bonded:
            words += ["--", "add-bond", self.name, f"{self.name}-bond", *(intf.name for intf in bonded)]
            words += ["--", "set", "Port", f"{self.name}-bond", "bond_mode=balance-slb", "qos=@noop"]
            for intf in bonded:
                words += ["--", "set", "Interface", intf.name, f"ofport_request={self.ports[intf]}"]
        return words

    def _addition(self, intf: Any) -> list[str]:
        words = ["--", "add-port", self.name, intf.name, "--", "set", "Port", intf.name, "qos=@noop"]
        return [*words, "--", "set", "Interface", intf.name, f"ofport_request={self.ports[intf]}"]

    def _own(self, target: str) -> str:
        """A socket is to be found in the daemons' own directory (see :class:`bench.host.ovs_daemons.SwitchDaemons`)."""
        kind, _, path = target.partition(":")
        return f"unix:{self.ovs.directory / Path(path).name}" if kind == "unix" else target

    def attach(self, intf: Any) -> None:
        """Connect a data port."""
        self.ovs.vsctl(*_with_noop(self._addition(intf)))

    def detach(self, intf: Any) -> None:
        """Disconnect a data port."""
        self.ovs.vsctl("--if-exists", "del-port", self.name, str(intf))

    @classmethod
    def batchStartup(cls, switches: Sequence[BenchSwitch], run: Any = None) -> Sequence[BenchSwitch]:  # noqa: N802
        """Create all *switches* at once. *run* is Mininet's and not used."""
        del run
        _tell({switch: switch._start_arguments for switch in switches}, _with_noop)
        for switch in switches:
            switch._start_arguments = []
            switch.batch = False
        return switches

    @classmethod
    def batchShutdown(cls, switches: Sequence[BenchSwitch], run: Any = None) -> Sequence[BenchSwitch]:  # noqa: N802
        """Delete all *switches* at once and end their shells. *run* is Mininet's and not used."""
        del run
        _tell({switch: ["--", "--if-exists", "del-br", switch.name] for switch in switches}, list)
        for switch in switches:
            switch.terminate()
        return switches

    def stop(self, deleteIntfs: bool = True) -> None:  # noqa: N803
        """Delete the bridge, and with *deleteIntfs* its interfaces."""
        self.ovs.vsctl("--if-exists", "del-br", self.name)
        if deleteIntfs:
            self.deleteIntfs()

    def connected(self) -> bool:
        """True when every controller of this switch is connected, or there is none."""
        if not self._controllers:
            return True
        found = self.ovs.vsctl("--bare", "--columns=_uuid", "find", "Controller", "is_connected=true").split()
        mine = self.ovs.vsctl("--bare", "get", "Bridge", self.name, "controller").strip(" []\n").split(", ")
        return set(mine) <= set(found)

    def dpctl(self, *args: Any) -> Any:
        """Run ``ovs-ofctl`` in this switch's protocol."""
        return self.cmd("ovs-ofctl", "-O", self.protocols, args[0], self, *args[1:])


def _leads_to(intf: Any, node: str) -> bool:
    link = intf.link
    return link is not None and node in (link.intf1.node.name, link.intf2.node.name)


def _tell(words: Mapping[BenchSwitch, Sequence[str]], whole: Callable[[Sequence[str]], list[str]]) -> None:
    """Each daemon what there is for all its switches.

    :param words: of ovs-vsctl. :param whole: makes one transaction of them.
    """
    of: dict[OpenVSwitch, list[str]] = {}
    for switch, told in words.items():
        of.setdefault(switch.ovs, []).extend(told)
    with ThreadPoolExecutor(_TOGETHER) as pool:
        list(pool.map(lambda item: item[0].vsctl(*whole(item[1])), [item for item in of.items() if item[1]]))


def _with_noop(words: Sequence[str]) -> list[str]:
    return ["--", "--id=@noop", "create", "QoS", "type=linux-noop", *words]

"""Linux bridges as the switches of a Mininet network.

Imports Mininet, so it is loaded lazily. The bridges live in this process's network namespace, like Open vSwitch's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from bench.clock import NS_PER_S, Deadline
from bench.host.commands import run

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Mininet 2.3 imports distutils
    from mininet.node import Switch

_COMMAND_NS = 15 * NS_PER_S
_FORWARD_DELAY = 200  # hundredths of a second: the least that IEEE 802.1D allows


class BridgeSwitch(Switch):  # type: ignore[misc]
    """A Linux bridge, with the kernel's spanning tree where the topology asks for one (node option ``stp``).

    A group address is flooded (no snooping), as by Open vSwitch; ageing 300 s, the kernel's default.
    """

    def __init__(self, name: str, **params: Any) -> None:
        self.stp = bool(params.pop("stp", False))
        super().__init__(name, **params)

    def start(self, controllers: Iterable[Any]) -> None:
        """Make the bridge and give it its ports. *controllers* is Mininet's; a bridge has none."""
        del controllers
        ports = [intf.name for intf in self.intfList() if self.ports[intf] and not intf.IP()]
        stp = f"stp_state {int(self.stp)} forward_delay {_FORWARD_DELAY if self.stp else 0}"
        batch = [
            f"link add {self.name} type bridge {stp} mcast_snooping 0",
            *(f"link set {port} master {self.name}" for port in ports),
            *(f"link set {port} up" for port in ports),
            f"link set {self.name} up",
        ]
        run(["ip", "-batch", "-"], deadline=Deadline(_COMMAND_NS), input="\n".join(batch).encode() + b"\n")

    def stop(self, deleteIntfs: bool = True) -> None:  # noqa: N803
        """Delete the bridge, and with *deleteIntfs* its interfaces. Idempotent."""
        run(["ip", "link", "del", self.name], deadline=Deadline(_COMMAND_NS), check=False)
        super().stop(deleteIntfs)

    def connected(self) -> bool:
        """There is no controller to wait for."""
        return True

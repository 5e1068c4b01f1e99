"""What else goes wrong in the network when a guest moves."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bench.scenario.values import NodeName, Spec


class FaultsSpec(Spec):
    """What the network does to a guest that moves; each at the moment of its resume.

    ``conntrack_flush``: the routers forget every connection that they track (a firewall whose state stayed at the
    source). ``gateway_mac``: the guest's gateway has this MAC address from then on, and does not say so (each site has
    a gateway of its own). ``second_holder``: this host takes the guest's address as well, and announces it for
    ``second_holder_times`` seconds.
    """

    conntrack_flush: bool = False
    gateway_mac: Annotated[str, Field(pattern=r"^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$")] | None = None
    second_holder: NodeName | None = None
    second_holder_times: Annotated[int, Field(ge=1, le=60)] = 3

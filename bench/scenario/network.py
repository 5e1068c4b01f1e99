"""The network: topology, links, calibration, controller."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from bench.scenario.cards import Interface4, Interface6, Vlan
from bench.scenario.values import FROM_LIST, Bandwidth, Bytes, DurationNs, Mtu, NodeName, Share, Spec


class NetworkSpec(Spec):
    """Where the guest lives and moves.

    ``topology`` is a built-in name (``bench topo list``) or ``path.py:name`` in Mininet's ``--custom`` convention
    (the file's ``topos`` dictionary, or a Topo class of that name). Roles are given by node name; those left empty are
    taken from the topology's node option ``role`` ("hypervisor", "storage", "client"), else from the order of its
    hosts. ``guest_memory``: what a hypervisor (or ``default``) has for its guests, those that are coming included; a
    migration waits until there is room. One that is not named has no limit of its own. ``nics`` 2: every hypervisor has
    a second card, in a network of its own (switch m1, links such as ``h1-m1``) that carries nothing but migrations; 1:
    what the topology says, which is one converged card in most of them. ``firewall``: the routers of the
    topology are stateful firewalls. ``sysctls``: kernel parameters of every host that is no hypervisor,
    ``guest_sysctls``: of the guest; ``{dev}`` in a name stands for its interface.
    ``vlans``: the access VLAN of a host's port (of hypervisors all or none, where Open vSwitch forwards by itself; by
    default their ports carry all VLANs); ``addresses``: a host's IPv4 address with its prefix length in place of the
    topology's; ``addresses6``: its IPv6 address, without which it has no IPv6.
    """

    topology: str = "single"
    args: dict[str, str | int | float | bool] = Field(default_factory=dict)
    hypervisors: Annotated[tuple[NodeName, ...], FROM_LIST] = ()
    storage: NodeName | None = None
    datapath: Literal["auto", "kernel", "user"] = "auto"
    subnet: str = "10.0.0.0/16"
    guest_memory: dict[NodeName, Bytes] = Field(default_factory=dict)
    nics: Literal[1, 2] = 1
    firewall: bool = False
    sysctls: dict[str, str | int] = Field(default_factory=dict)
    guest_sysctls: dict[str, str | int] = Field(default_factory=dict)
    vlans: dict[NodeName, Vlan] = Field(default_factory=dict)
    addresses: dict[NodeName, Interface4] = Field(default_factory=dict)
    addresses6: dict[NodeName, Interface6] = Field(default_factory=dict)


class LinkDirectionSpec(Spec):
    """The direction from a link's second node to its first, where it differs; keys left out are as in the link."""

    bandwidth: Bandwidth | None = None
    delay: DurationNs | None = None
    jitter: DurationNs | None = None
    loss: Share | None = None
    queue: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


class LinkSpec(Spec):
    """One link; both directions alike, but for what ``reverse`` says of the direction from its second node to its
    first.

    ``bandwidth`` 0 (or ``"unlimited"``) means unshaped. ``delay`` is one way. ``jitter`` is the half-width of a uniform
    deviation from the delay. ``queue`` is the length of the bottleneck queue in full-size packets. ``mtu``: the largest
    IP packet in bytes, at both ends; above 1500 they are jumbo frames.
    """

    bandwidth: Bandwidth = 10**9
    delay: DurationNs = 0
    jitter: DurationNs = 0
    loss: Share = 0.0
    queue: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    mtu: Mtu = 1500
    reverse: LinkDirectionSpec | None = None

    @field_validator("bandwidth")
    @classmethod
    def _bandwidth(cls, value: int) -> int:
        if value and not 8_000 <= value <= 400 * 10**9:
            raise ValueError("'unlimited', or a rate from '8kbit' to '400Gbit'")
        return value

    @field_validator("delay", "jitter")
    @classmethod
    def _delay(cls, value: int) -> int:
        if value > 60 * 10**9:
            raise ValueError("a duration up to '60s'")
        return value

    @model_validator(mode="after")
    def _jitter_within_delay(self) -> LinkSpec:
        if self.jitter > self.delay:
            raise ValueError("jitter no larger than the delay")
        return self

    def flipped(self) -> LinkSpec:
        """The same link seen from its second node."""
        if self.reverse is None:
            return self
        keys = ("bandwidth", "delay", "jitter", "loss", "queue")
        here = {key: getattr(self, key) for key in keys}
        there = {key: value for key in keys if (value := getattr(self.reverse, key)) is not None}
        if "delay" in there and "jitter" not in there:
            there["jitter"] = min(self.jitter, there["delay"])
        return self.model_copy(update={**there, "reverse": LinkDirectionSpec.model_construct(**here)})


class CalibrationSpec(Spec):
    """What is checked before a run, and how far a link may be off. ``delay_tolerance``: by how much a round trip may be
    shorter than asked for, and by how much longer for each switch on its way.
    """

    enabled: bool = True
    burst: DurationNs = 150_000_000
    rate_tolerance: Share = 0.1
    delay_tolerance: DurationNs = 1_000_000


CONTROL_PLANES = ("standalone", "bridge", "learning", "proactive", "activation", "forwarding", "stale", "external")
OUR_APPS = ("learning", "proactive", "activation", "stale")


class ControllerSpec(Spec):
    """The control plane, in one word (``app``).

    ``standalone``: Open vSwitch learns by itself, as any switch; ``bridge``: Linux bridges in place of Open vSwitch;
    ``learning``: an OpenFlow app, packet-in, one switch after the other; ``proactive``: an app that knows the topology
    and moves all paths at the first announcement; ``activation``: the guest's new port is blocked until the guest is
    announced there, with ``dual_delivery`` to both places meanwhile if wanted; ``forwarding``: as ``standalone``, and
    frames that reach the source after the pause are kept and sent on to the destination; ``stale``: an app whose flows
    live for ``idle_timeout`` and ``hard_timeout`` (whole seconds, 0: for ever) and that does not handle moves;
    ``external``: any OpenFlow controller at ``address`` (``tcp:HOST:PORT``); or a ``file.py`` with an app of your own
    for ``framework``. ``hold``: for how long frames from the place that was left are taken for late ones.
    """

    app: str = "learning"
    framework: Literal["ryu", "os-ken"] = "ryu"
    address: Annotated[str, Field(pattern=r"^tcp:[^:\s]+:\d{1,5}$")] | None = None
    dual_delivery: bool = False
    hold: DurationNs = 10**9
    idle_timeout: DurationNs = 10 * 10**9
    hard_timeout: DurationNs = 5 * 10**9

    @field_validator("app")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in CONTROL_PLANES and not value.endswith(".py"):
            raise ValueError(f"one of {', '.join(CONTROL_PLANES)}, or the path of an app's .py file")
        return value

    @field_validator("hold", "idle_timeout", "hard_timeout")
    @classmethod
    def _whole_seconds(cls, value: int) -> int:
        if value % 10**9 or value > 3600 * 10**9:
            raise ValueError("whole seconds up to '3600s', as OpenFlow counts them")
        return value

    @model_validator(mode="after")
    def _fits(self) -> ControllerSpec:
        if (self.app == "external") != (self.address is not None):
            raise ValueError("an address (tcp:HOST:PORT) with app 'external' and only there")
        if self.address is not None and not 0 < int(self.address.rpartition(":")[2]) <= 65535:
            raise ValueError("a port from 1 to 65535")
        if self.dual_delivery and self.app != "activation":
            raise ValueError("dual_delivery only with app 'activation'")
        if self.hold < 10**9:
            raise ValueError("a hold of at least '1s'")
        return self

    @property
    def keeps_vlans(self) -> bool:
        """Whether the switches' own port VLANs count: where Open vSwitch forwards by itself (NORMAL)."""
        return self.app in ("standalone", "forwarding")

    @property
    def is_process(self) -> bool:
        """Whether a controller process of the bench runs: one of its apps, or the user's."""
        return self.app in OUR_APPS or self.app.endswith(".py")

    @property
    def knows_topology(self) -> bool:
        """Whether it copes with loops."""
        return self.app == "proactive" or (self.app == "activation" and not self.dual_delivery)

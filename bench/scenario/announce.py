"""How the network is told where a guest is now, and what goes wrong with that in the field."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from bench.scenario.values import FROM_LIST, DurationNs, Share, Spec

MAX_WAIT_NS = 600 * 10**9
AnnounceKind = Literal["rarp", "garp", "garp-reply", "na"]


class AnnounceFaultsSpec(Spec):
    """What becomes of the announcement of a migration. ``lost_first``: so many frames are lost; ``lost``: each of the
    others is, with that probability (drawn with ``seed``). ``late``: all leave that much later. ``wired_late``: the
    hypervisor lets the guest's port forward only so long after the guest resumed. ``before_wiring``: the schedule
    counts from the resume and not from the wiring, so that frames leave before the port forwards, and are lost there.
    ``reordered``: the frames of each time leave in reverse order, and those of the first two times change places.
    ``wrong_mac``: every frame tells this address instead of the guest's.
    """

    lost_first: Annotated[int, Field(ge=0, le=1024)] = 0
    lost: Share = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    late: DurationNs = 0
    wired_late: DurationNs = 0
    before_wiring: bool = False
    reordered: bool = False
    wrong_mac: Annotated[str, Field(pattern=r"^([0-9a-f]{2}:){5}[0-9a-f]{2}$")] | None = None

    @field_validator("late", "wired_late")
    @classmethod
    def _bounded(cls, value: int) -> int:
        if value > 120 * 10**9:
            raise ValueError("a duration up to '120s'")
        return value

    @model_validator(mode="after")
    def _wiring(self) -> AnnounceFaultsSpec:
        if self.before_wiring and not self.wired_late:
            raise ValueError("wired_late with before_wiring: how long after the resume the port forwards")
        return self


class AnnounceSpec(Spec):
    """What tells the network where the guest is now.

    ``sender``: ``hypervisor`` (as QEMU and ESXi: the frames enter at the guest's card as soon as its port is wired),
    ``guest`` (as Xen's netfront or virtio's guest announce: ``guest_delay`` later, and no RARP), or ``both`` (QEMU with
    virtio's guest announce: RARP by the hypervisor, the other kinds by the guest after it).

    Schedules: ``qemu`` at 0, 50, 200, 450, 800 ms; ``once``; ``esxi`` five times within a second; ``xen`` once;
    ``custom`` as QEMU's parameters say: the first of ``rounds`` at once, the next after ``initial``, each wait longer
    by ``step`` up to ``max``; ``none``.
    """

    kinds: Annotated[tuple[AnnounceKind, ...], FROM_LIST] = ("rarp", "garp")
    sender: Literal["hypervisor", "guest", "both"] = "hypervisor"
    guest_delay: DurationNs = 30_000_000
    schedule: Literal["qemu", "once", "esxi", "xen", "custom", "none"] = "qemu"
    initial: DurationNs = 50_000_000
    max: DurationNs = 550_000_000
    rounds: Annotated[int, Field(ge=1, le=64)] = 5
    step: DurationNs = 100_000_000
    faults: AnnounceFaultsSpec = AnnounceFaultsSpec()

    @field_validator("kinds")
    @classmethod
    def _once_each(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each kind at most once")
        return value

    @model_validator(mode="after")
    def _possible(self) -> AnnounceSpec:
        if self.sender == "guest" and "rarp" in self.kinds:
            raise ValueError("no kind 'rarp' with sender 'guest': a guest announces by ARP or neighbour advertisement")
        if self.sender == "both" and ("rarp" not in self.kinds or len(self.kinds) < 2):
            raise ValueError("kinds 'rarp' and another with sender 'both'")
        if self.max < self.initial or max(self.max, self.guest_delay) * self.rounds > MAX_WAIT_NS:
            raise ValueError("max of at least initial, and rounds that are over within '600s'")
        return self

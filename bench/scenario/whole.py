"""The whole scenario: all its parts, and the run around them."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from bench.scenario.announce import AnnounceSpec
from bench.scenario.clients import ClientSpec
from bench.scenario.disks import StorageSpec
from bench.scenario.expect import check_texts
from bench.scenario.faults import FaultsSpec
from bench.scenario.guest import GuestSpec
from bench.scenario.guests import complete
from bench.scenario.hosts import CrossTrafficSpec, HostSpec, ScriptSpec
from bench.scenario.migration import MigrationSpec
from bench.scenario.moves import MoveSpec
from bench.scenario.network import CalibrationSpec, ControllerSpec, LinkSpec, NetworkSpec
from bench.scenario.survival import SurvivalSpec
from bench.scenario.values import FROM_LIST, DurationNs, Share, Spec

MAX_MOVES: Final = 256


class RunSpec(Spec):
    """The run around the migration. ``predict``: sample the dirty rate within the warm-up, and predict from it.
    ``watch_switches``: watch flow tables, FDBs, neighbour caches and conntrack as well.
    """

    warmup: DurationNs = 2 * 10**9
    settle: DurationNs = 2 * 10**9
    repeat: Annotated[int, Field(ge=1, le=1000)] = 1
    pause_between: DurationNs = 500_000_000
    capture: bool = False
    watch_switches: bool = True
    predict: bool = True
    max_cpu_load: Share = 0.95


DEFAULT_CLIENTS = tuple(
    ClientSpec.model_validate(client)
    for client in (
        {"kind": "udp-echo", "name": "udp-echo"},
        {"kind": "tcp-request", "name": "tcp-request"},
        {"kind": "tcp-download", "name": "tcp-download", "rate": "20Mbit"},
        {"kind": "tcp-upload", "name": "tcp-upload", "rate": "20Mbit"},
    )
)


class Scenario(Spec):
    """A whole scenario. See ``scenarios/reference.toml``; with several guests ``evacuate.toml`` and ``crossing.toml``.

    ``guests`` are all guests: without any ``[[guests]]`` the one of ``[guest]``.

    ``[expect]`` bounds figures of the result (:mod:`bench.figures`): ``downtime = "< 300ms"``, ``flows.died = "== 0"``,
    ``"mean(outage.p99)" = "< 1s"``. A run in which one does not hold ends with exit code 1.
    """

    title: Annotated[str, Field(max_length=200)] = ""
    network: NetworkSpec = NetworkSpec()
    links: dict[str, LinkSpec] = Field(default_factory=dict)
    calibration: CalibrationSpec = CalibrationSpec()
    controller: ControllerSpec = ControllerSpec()
    guest: GuestSpec = GuestSpec()
    guests: Annotated[tuple[GuestSpec, ...], FROM_LIST, Field(validate_default=True)] = ()
    hosts: dict[str, HostSpec] = Field(default_factory=dict)
    cross_traffic: Annotated[tuple[CrossTrafficSpec, ...], FROM_LIST, Field(max_length=32)] = ()
    script: Annotated[tuple[ScriptSpec, ...], FROM_LIST, Field(max_length=1000)] = ()
    storage: StorageSpec = StorageSpec()
    migration: MigrationSpec = MigrationSpec()
    moves: Annotated[tuple[MoveSpec, ...], FROM_LIST, Field(max_length=MAX_MOVES)] = ()
    announce: AnnounceSpec = AnnounceSpec()
    faults: FaultsSpec = FaultsSpec()
    clients: Annotated[tuple[ClientSpec, ...], FROM_LIST] = DEFAULT_CLIENTS
    run: RunSpec = RunSpec()
    expect: Annotated[tuple[str, ...], BeforeValidator(check_texts)] = ()
    survival: SurvivalSpec = SurvivalSpec()

    @field_validator("guests")
    @classmethod
    def _complete(cls, value: tuple[GuestSpec, ...], info: ValidationInfo) -> tuple[GuestSpec, ...]:
        default = info.data.get("guest")
        return value if default is None else complete(default, value)  # without: [guest] is what is wrong

    @field_validator("clients")
    @classmethod
    def _named(cls, value: tuple[ClientSpec, ...]) -> tuple[ClientSpec, ...]:
        """Every flow gets a name: its own, or its kind with a number where there are several."""
        named: list[ClientSpec] = []
        taken = {client.name for client in value if client.name}
        if len(taken) != sum(1 for client in value if client.name):
            raise ValueError("client names that differ from each other")
        for client in value:
            name = client.name
            number = 1
            while name is None:
                candidate = client.kind if number == 1 else f"{client.kind}-{number}"
                if candidate not in taken:
                    name = candidate
                number += 1
            taken.add(name)
            named.append(client.model_copy(update={"name": name}))
        return tuple(named)

    def guest_named(self, name: str | None) -> GuestSpec:
        """The guest of this name; None is the first. :raises KeyError: there is no such guest."""
        if name is None:
            return self.guests[0]
        return {guest.name: guest for guest in self.guests}[name]

    def host(self, name: str) -> HostSpec:
        """Of a hypervisor: ``hosts.NAME``, else ``hosts.default``."""
        return self.hosts.get(name) or self.hosts.get("default") or HostSpec()

    def link(self, first: str, second: str) -> LinkSpec:
        """The spec of the link between two nodes: ``links."a-b"`` (either order), else ``links.default``.

        Its directions are as seen from *first*, whichever way round the scenario names the link.
        """
        if f"{first}-{second}" in self.links:
            return self.links[f"{first}-{second}"]
        if f"{second}-{first}" in self.links:
            return self.links[f"{second}-{first}"].flipped()
        return self.links.get("default", LinkSpec())

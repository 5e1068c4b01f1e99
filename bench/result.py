"""The result of a run: one versioned JSON document.

Every time is CLOCK_MONOTONIC in ns, every duration ns, every size bytes, every rate bit/s. ``None`` means "not
observed"; a number is never made up. The members named in :class:`RunResult` are a contract with whoever builds on
them: adding one keeps the schema's version, renaming or removing one raises it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import ResultError

SCHEMA: Literal["migration-bench/result/1"] = "migration-bench/result/1"
MAX_RESULT_BYTES = 256 << 20


class Part(BaseModel):
    """Base of the parts of a result."""

    model_config = ConfigDict(extra="forbid", defer_build=True)


class PhaseResult(Part):
    """One of the phases: setup, precopy, stop-and-copy, device-state, storage, resume, announce,
    postcopy (from the resume until the last page)."""

    name: str
    start_ns: int
    end_ns: int


class RoundResult(Part):
    """One pre-copy round; the last one is the final copy while the guest is paused (``paused``)."""

    pages: int
    zero_pages: int
    bytes_sent: int
    dirty_pages_after: int
    start_ns: int
    end_ns: int
    paused: bool = False


class MemoryResult(Part):
    """Was the memory the same on both sides?"""

    bytes: int
    identical: bool | None
    digest: str | None
    digest_source: str | None = None
    digest_destination: str | None = None
    verify: str = "background"


class BudgetPart(Part):
    """One stage of an outage."""

    stage: str
    ns: int


Verdict = Literal["undisturbed", "delayed", "reconnected", "died"]


class FlowTcp(Part):
    """What the kernel said of a flow's connection (TCP_INFO at 100 Hz) around its outage, at the client.

    ``rto_ns``, ``rtt_ns``, ``cwnd`` (segments): just before the outage. In the outage: ``timeouts`` in a row, doublings
    of the timer (``backoff``), ``longest_rto_ns``, ``retransmits``. ``wait_ns``: of the outage, what only the timer
    cost; ``saved_ns``: what of that a least timer of 5 ms would have saved, by theory. ``survivable_ns``: the longest
    outage that the connection could have survived, by theory; ``used``: the outage's share of it.
    """

    rto_ns: int
    rtt_ns: int
    cwnd: int
    samples: int
    timeouts: int = 0
    backoff: int = 0
    longest_rto_ns: int | None = None
    retransmits: int = 0
    wait_ns: int | None = None
    saved_ns: int | None = None
    survivable_ns: int | None = None
    used: float | None = None


class ResentResult(Part):
    """Of a flow's segments as captured at the switch ports, in one migration: how many each end (the client or the
    server outside; the guest) sent again, and how many copies of what had arrived before reached each. The first
    thousand times of those sent again.
    """

    by_client: int = 0
    by_guest: int = 0
    copies_at_client: int = 0
    copies_at_guest: int = 0
    by_client_ns: list[int] = Field(default_factory=list)
    by_guest_ns: list[int] = Field(default_factory=list)


class FlowResult(Part):
    """One client flow. ``budget`` parts sum to ``budget_sum_ns``; ``budget_ok``: that is ``outage_ns`` to within 1
    ms. ``guest``: that it talks to, or (``direction``) that is the client of a server on ``host``. Of a ``command``:
    its ``exit_status`` (negative: the signal that ended it) and where its ``output`` is, below the result. ``error``:
    of which a flow that is not ``alive`` died, at ``died_ns``. What is counted (``requests`` to ``corrupted``) is the
    whole run's, of which the flow outlives each migration.
    """

    name: str
    kind: str
    host: str
    guest: str = ""
    direction: Literal["to-guest", "from-guest"] = "to-guest"
    requests: int
    lost: int
    duplicated: int
    reordered: int
    corrupted: int
    alive: bool
    error: str | None = None
    died_ns: int | None = None
    outage_ns: int | None
    outage_start_ns: int | None = None
    outage_end_ns: int | None = None
    typical_gap_ns: int | None = None
    longest_gap_ns: int | None = None
    retransmits: int | None = None
    budget: list[BudgetPart] = Field(default_factory=list)
    budget_sum_ns: int | None = None
    budget_ok: bool = True
    budget_note: str = ""
    verdict: Verdict | None = None
    reconnects: int = 0
    tcp: FlowTcp | None = None
    resent: ResentResult | None = None
    exit_status: int | None = None
    output: str = ""


class SwitchRelearn(Part):
    """When one switch learnt where the guest is now; times absolute, None where that was not observed.

    ``confirmed_ns`` is the control plane's word, ``state_ns`` the switch's own tables' (seen by ``state_by``: flow
    monitor, netlink, or poll), ``stable_ns`` what the frames show. ``distance``: switches between it and the guest's
    new place. ``vlan``: of the FDB's entry. ``by``: the kind of the guest's frame that came in by the new port before
    the switch changed. ``frames_dropped``: frames for the guest that came in and left nowhere. ``differ``: which
    witnesses do not agree, empty when all do.
    """

    name: str
    distance: int | None = None
    vlan: int | None = None
    by: str = ""
    controller_ns: int | None = None
    confirmed_ns: int | None = None
    state_ns: int | None = None
    state_by: str = ""
    first_frame_ns: int | None = None
    stable_ns: int | None = None
    frames_to_old_port: int = 0
    frames_flooded: int = 0
    frames_dropped: int = 0
    flapped: int = 0
    differ: str = ""


class NeighbourChange(Part):
    """A host's neighbour cache changed what it holds of the guest's address."""

    host: str
    t_ns: int
    ip: str
    mac: str
    state: str


class CardRelearn(Part):
    """The wave for a further network card of the guest; ``vlan`` 0 for none."""

    card: int
    mac: str
    address: str
    address6: str = ""
    vlan: int = 0
    announce_ns: int | None = None
    announcements: int = 0
    switches: list[SwitchRelearn] = Field(default_factory=list)


class RelearnResult(Part):
    """The wave of relearning after the announcement left the destination. ``tolerance_ns``: to within which the
    witnesses of each switch have to agree. ``conntrack``: host and event -> connections of the guest. ``cards``: the
    same for each further network card of the guest, in its VLAN.
    """

    announce_ns: int | None
    announcements: int = 0
    tolerance_ns: int | None = None
    switches: list[SwitchRelearn] = Field(default_factory=list)
    neighbours: list[NeighbourChange] = Field(default_factory=list)
    conntrack: dict[str, int] = Field(default_factory=dict)
    cards: list[CardRelearn] = Field(default_factory=list)


class LinkResult(Part):
    """One link: what was asked, what the kernel says is applied, what the calibration measured."""

    name: str
    mechanism: str
    asked: dict[str, Any]
    applied: dict[str, Any]
    measured: dict[str, Any]
    ok: bool = True


class Trust(Part):
    """May the numbers be trusted? Every reason why not."""

    ok: bool = True
    reasons: list[str] = Field(default_factory=list)


class ExpectationResult(Part):
    """One bound of ``[expect]``, held against what was measured.

    ``value``: what was compared with the bound: of ``every`` migration the one that is worst, else the statistic over
    them, with its 95 % confidence interval (of ``every``: of the median) as far as there are migrations enough for
    one. ``dimension`` is what all three are measured in; None: a plain number.
    """

    expectation: str
    ok: bool
    value: float | None
    dimension: str | None = None
    low: float | None = None
    high: float | None = None
    samples: int = 0
    note: str = ""


class PredictedResult(Part):
    """What the model said before the migration; ``total_ns`` is the transfer's. See :mod:`bench.analysis.model`."""

    rounds: int
    bytes: int
    total_ns: int
    downtime_ns: int
    converged: bool = True


class BoundResult(Part):
    """The least that any engine could have needed for these pages on this link, uncompressed."""

    bytes: int
    total_ns: int
    downtime_ns: int | None


class EfficiencyResult(Part):
    """Lower bound / measured: 1 is perfect, None where either is missing."""

    bytes: float | None = None
    total: float | None = None
    downtime: float | None = None


class PredictionResult(Part):
    """Prediction, measurement and lower bound of one migration.

    ``transfer_ns`` is what was measured and compares with both ``total_ns``: the migration's ``total_ns`` without its
    set-up (the connection and allocating the skeleton's memory), which says nothing about the link. ``note`` says why
    something is missing.
    """

    predicted: PredictedResult | None = None
    bound: BoundResult | None = None
    efficiency: EfficiencyResult = EfficiencyResult()
    transfer_ns: int | None = None
    inputs: dict[str, Any] = Field(default_factory=dict)
    note: str = ""


class Observed(Part):
    """A flow or a disk in a stretch of time: requests that were answered, their latencies, and what arrived."""

    duration_ns: int
    requests: int = 0
    median_ns: int | None = None
    p99_ns: int | None = None
    bps: int | None = None


class InterferenceResult(Part):
    """What a migration's copying did to a client's ``flow`` or a guest's ``disk``: how it was *before* (up to 5 s), and
    while memory was *copying*, from the first round to the pause.
    """

    name: str
    kind: Literal["flow", "disk"]
    host: str = ""
    before: Observed
    copying: Observed


class MigrationResult(Part):
    """One move of a guest, with the flows of that guest only. One that never started has equal ``start_ns`` and
    ``end_ns``, and a reason.
    """

    guest: str = ""
    outcome: Literal["completed", "cancelled", "failed"]
    reason: str = ""
    source: str
    destination: str
    start_ns: int
    end_ns: int
    pause_ns: int | None = None
    resume_ns: int | None = None
    total_ns: int | None
    downtime_ns: int | None
    bytes_sent: int = 0
    phases: list[PhaseResult] = Field(default_factory=list)
    rounds: list[RoundResult] = Field(default_factory=list)
    memory: MemoryResult
    flows: list[FlowResult] = Field(default_factory=list)
    relearn: RelearnResult
    connections: int = 0
    cost: dict[str, Any] = Field(default_factory=dict)
    prediction: PredictionResult | None = None
    interference: list[InterferenceResult] = Field(default_factory=list)


class GuestOverall(Part):
    """What became of one guest: where it booted and where it is at the end (None: it is lost), and how often and how
    long in all it stood still.
    """

    name: str
    memory_bytes: int
    home: str
    host: str | None
    moved: int = 0
    downtime_ns: int = 0


class OverallResult(Part):
    """All migrations of a run together: from the first one's start to the last one's end, ``at_once`` of them going on
    at the same time at most.
    """

    start_ns: int
    end_ns: int
    total_ns: int
    bytes_sent: int
    at_once: int
    completed: int
    cancelled: int
    failed: int
    guests: list[GuestOverall] = Field(default_factory=list)


class RunResult(MigrationResult):
    """A whole run. ``migrations`` holds all of its migrations, by their start.

    With more than one (``--repeat``, several guests) the run's own members are those of the last one, ``guest`` too,
    but: ``outcome`` and ``reason`` are those of the first that did not complete, and ``flows`` are those of all guests.

    The flows are counted over the whole run; their outage and budget are those of the worst migration of their guest.
    """

    schema_version: Literal["migration-bench/result/1"] = Field(default=SCHEMA, alias="schema")
    title: str = ""
    started_at: str
    guest: str
    migrations: list[MigrationResult] = Field(default_factory=list)
    overall: OverallResult | None = None
    links: list[LinkResult] = Field(default_factory=list)
    environment: dict[str, Any] = Field(default_factory=dict)
    trust: Trust = Trust()
    expectations: list[ExpectationResult] = Field(default_factory=list)

    model_config = ConfigDict(extra="forbid", populate_by_name=True, defer_build=True)

    def write(self, directory: Path) -> Path:
        """Write ``result.json`` into *directory*; returns its path."""
        path = directory / "result.json"
        text = json.dumps(self.model_dump(mode="json", by_alias=True), indent=1)
        path.write_text(text + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, directory: Path) -> RunResult:
        """:raises ResultError: missing, too large, not JSON, another schema, or not a result."""
        path = directory / "result.json"
        try:
            with path.open("rb") as file:
                data = file.read(MAX_RESULT_BYTES + 1)
        except OSError as error:
            raise ResultError(f"{path}: {error.strerror}", "name the directory that `bench run -o` wrote") from None
        if len(data) > MAX_RESULT_BYTES:
            raise ResultError(f"{path}: more than {MAX_RESULT_BYTES >> 20} MiB")
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ResultError(f"{path}: not JSON: {error}") from None
        schema = raw.get("schema") if isinstance(raw, dict) else None
        if schema != SCHEMA:
            shown = repr(schema)[:100]
            raise ResultError(
                f"{path}: schema {shown}; this version reads {SCHEMA!r}", "read it with the bench that wrote it"
            )
        try:
            return cls.model_validate(raw)
        except ValidationError as problem:
            first = problem.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ResultError(f"{path}: {where}: {first['msg']}") from None

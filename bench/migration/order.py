"""What the source engine is told to do, and what it says in the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bench.clock import NS_PER_S
from bench.errors import MigrationError
from bench.migration.carriers import NONE, Credentials
from bench.migration.engine import want
from bench.migration.levers import Levers
from bench.migration.policy import Limits
from bench.migration.states import State
from bench.migration.transport import LINK_TIMEOUT_NS

POST_COPY_MODES: Final = ("postcopy", "hybrid")
MAX_HOLD_NS: Final = 600 * NS_PER_S
ANSWER_NS: Final = 30 * NS_PER_S  # a destination that is alive but says nothing: the guest stands still meanwhile


@dataclass(frozen=True, slots=True)
class Order:
    """The arguments of ``migrate``, checked.

    :param ticket: what a first frame must show to be let in at the destination.
    :param credentials: the source's half of what the carrier made.
    :param hold_ns: how long the destination waits, with everything there, before it takes the guest over.
    """

    guest_socket: str
    guest: Mapping[str, Any]
    address: str
    port: int
    limits: Limits
    verify: str
    mode: str
    precopy_rounds: int
    announce: Mapping[str, Any]
    link_timeout_ns: int
    answer_timeout_ns: int
    levers: Levers
    security: str = NONE
    ticket: str = ""
    credentials: Credentials = field(default_factory=dict)
    destination_host: str = ""
    hold_ns: int = 0

    @property
    def post_copy(self) -> str:
        """``at-once``, ``later`` (perhaps) or ``never``: what the destination prepares for."""
        if self.mode == "postcopy":
            return "at-once"
        return "later" if self.mode in POST_COPY_MODES or self.limits.on_no_convergence == "post-copy" else "never"

    @classmethod
    def from_json(cls, args: Mapping[str, Any]) -> Order:
        """:raises MigrationError: naming the argument that is missing or wrong."""
        migration = want(args, "migration", dict, "migrate")
        verify = migration.get("verify", "background")
        if verify not in ("background", "pause", "off"):
            raise MigrationError(f"migrate: verify {verify!r} is none of background, pause, off")
        mode, otherwise = migration.get("mode", "precopy"), migration.get("on_no_convergence", "force")
        if otherwise not in ("force", "cancel", "post-copy", "throttle"):
            raise MigrationError("migrate: on_no_convergence must be force, cancel, post-copy or throttle")
        if verify == "pause" and (mode in POST_COPY_MODES or otherwise == "post-copy"):
            raise MigrationError(
                "migrate: verify 'pause' compares whole memories at the pause, when post-copy has not sent them",
                'use verify = "background"',
            )
        levers = Levers.from_json(migration)
        if mode == "postcopy" and levers.streams > 1:
            raise MigrationError(
                f"migrate: {levers.streams} streams carry rounds, and mode 'postcopy' has none",
                "use streams = 1 or mode 'hybrid'",
            )
        where = "migrate: migration"
        return cls(
            guest_socket=want(args, "guest_socket", str, "migrate"),
            guest=want(args, "guest", dict, "migrate"),
            address=want(args, "address", str, "migrate"),
            port=want(args, "port", int, "migrate"),
            limits=Limits(
                downtime_limit_ns=None
                if migration.get("downtime_limit_ns") == "min"
                else want(migration, "downtime_limit_ns", int, where),
                max_rounds=want(migration, "max_rounds", int, where),
                max_time_ns=want(migration, "max_time_ns", int, where),
                max_bandwidth_bps=want(migration, "max_bandwidth_bps", int, where),
                on_no_convergence=otherwise,
            ),
            verify=verify,
            mode=mode,
            precopy_rounds=migration.get("precopy_rounds", 1),
            announce=want(args, "announce", dict, "migrate"),
            link_timeout_ns=migration.get("link_timeout_ns", LINK_TIMEOUT_NS),
            answer_timeout_ns=migration.get("answer_timeout_ns", ANSWER_NS) + migration.get("hold_ns", 0),
            levers=levers,
            security=str(migration.get("security", NONE)),
            ticket=str(args.get("ticket", "")),
            credentials=args.get("credentials", {}),
            destination_host=str(args.get("destination_host", "")),
            hold_ns=migration.get("hold_ns", 0),
        )


@dataclass(slots=True)
class Outcome:
    """What ``finished`` says."""

    state: State
    reason: str = ""
    digest_source: str | None = None
    digest_destination: str | None = None
    bytes_sent: int = 0
    connections: int = 0
    cost: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        both = self.digest_source is not None and self.digest_destination is not None
        return {
            "outcome": self.state.value,
            "reason": self.reason,
            "digest_source": self.digest_source,
            "digest_destination": self.digest_destination,
            "identical": self.digest_source == self.digest_destination if both else None,
            "bytes_sent": self.bytes_sent,
            "connections": self.connections,
            "cost": self.cost,
        }

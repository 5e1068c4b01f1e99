"""Where a guest is to live: what the destination engine is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.migration.carriers import NONE, Credentials
from bench.migration.engine import want
from bench.migration.transport import LINK_TIMEOUT_NS


@dataclass(frozen=True, slots=True)
class Place:
    """The arguments of ``listen``, checked.

    :param vcpu_group: the control group that groups of the guest's vCPUs are made in; empty for none.
    :param ticket: what a first frame must show.
    :param credentials: the destination's half of what the carrier made.
    """

    address: str
    port: int
    host: str
    guest_socket: str
    guest_events: str
    guest_log: str
    bridge: str
    lease_path: str
    link_timeout_ns: int
    security: str
    vcpu_group: str
    ticket: str
    credentials: Credentials

    @classmethod
    def from_json(cls, args: Mapping[str, Any]) -> Place:
        """:raises MigrationError: naming the argument that is missing or wrong."""
        texts = {
            key: want(args, key, str, "listen")
            for key in ("address", "host", "guest_socket", "guest_events", "guest_log", "bridge", "lease_path")
        }
        timeout_ns = args.get("link_timeout_ns", LINK_TIMEOUT_NS)
        texts["security"] = str(args.get("security", NONE))
        texts["vcpu_group"] = str(args.get("vcpu_group", ""))
        texts["ticket"] = want(args, "ticket", str, "listen")
        credentials = args.get("credentials", {})
        return cls(port=want(args, "port", int, "listen"), link_timeout_ns=timeout_ns, credentials=credentials, **texts)

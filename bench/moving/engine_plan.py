"""What the engines of one migration are told: from scenario and testbed to :class:`bench.migration.driver.Plan`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench.clock import NS_PER_S
from bench.guests import BRIDGE
from bench.host.cgroup import make_parent
from bench.migration.driver import Plan
from bench.scenario import Scenario
from bench.testbed import Testbed

RECOVER_EVERY_NS: Final = NS_PER_S  # a post-copy whose network failed


class EnginePlans:
    """Makes the plans of a run's migrations.

    :param record_cgroup: notes in the ledger a control group that is about to be made; None: make none.
    :param vcpu_group: of a hypervisor, where groups of vCPUs have to lie to stay within its limits; empty for anywhere.
    """

    def __init__(
        self,
        scenario: Scenario,
        testbed: Testbed,
        directory: Path,
        record_cgroup: Callable[[Path], Path] | None,
        vcpu_group: Callable[[str], str] = lambda _host: "",
    ) -> None:
        self._scenario = scenario
        self._testbed = testbed
        self._directory = directory
        self._record_cgroup = record_cgroup
        self._vcpu_group = vcpu_group
        self._cgroup: Path | None = None
        self._made = 0

    def make(self, name: str, destination: str) -> Plan:
        """For guest *name* from where it is now. :raises HostError: when it does not run."""
        guests = self._testbed.guests
        guest = guests[name]
        here, there = self._testbed.hypervisors[guest.host], self._testbed.hypervisors[destination]
        migration = self._scenario.migration
        new_socket, new_events, new_log = guests.paths(name, destination)
        self._made += 1
        return Plan(
            source_pid=here.pid,
            destination_pid=there.pid,
            source_host=guest.host,
            destination_host=destination,
            guest=guests.configuration(name, guest.host),
            guest_socket=guest.socket_path,
            new_guest_socket=new_socket,
            new_guest_events=new_events,
            new_guest_log=new_log,
            bridge=BRIDGE,
            lease_path=guests.lease_path(name),
            address=there.migration_address,
            port=migration.port + self._scenario.guests.index(guest.spec),
            migration={
                "mode": migration.mode,
                "downtime_limit_ns": migration.downtime_limit,
                "precopy_rounds": migration.precopy_rounds,
                "max_rounds": migration.max_rounds,
                "max_time_ns": migration.max_time,
                "max_bandwidth_bps": migration.max_bandwidth,
                "on_no_convergence": migration.on_no_convergence,
                "verify": migration.verify,
                "security": migration.security,
                "zero_pages": migration.zero_pages,
                "compression": migration.compression,
                "compression_level": migration.compression_level,
                "compression_threads": migration.compression_threads,
                "delta_cache_bytes": migration.delta_cache,
                "streams": migration.streams,
                "auto_converge": migration.auto_converge,
                "dirty_limit_bytes_per_s": migration.dirty_limit,
                "announce_delay_ns": migration.announce_delay,
                "hold_ns": migration.hold,
                "cgroup": self._throttle_cgroup(guest.host),
            },
            announce=guests.announcement(name, migration.announce_delay, faulty=True),
            events_directory=self._directory / "events",
            log_directory=self._directory / "logs",
            tag=f"{name}.{self._made}",
            recover_every_ns=RECOVER_EVERY_NS,
            vcpu_group=self._vcpu_group(destination),
        )

    def _throttle_cgroup(self, host: str) -> str:
        """The control group for vCPUs of the source: its own where it has limits, else the run's, made when the
        scenario first needs it; empty for none.
        """
        migration = self._scenario.migration
        wanted = migration.auto_converge or migration.on_no_convergence == "throttle"
        if not wanted or self._record_cgroup is None:
            return ""
        if group := self._vcpu_group(host):
            return group
        if self._cgroup is None:
            self._cgroup = make_parent(f"migration-bench-{self._directory.name}", self._record_cgroup)
        # A Mininet host mounts a /sys of its own, which hides the hierarchy: this process still sees it.
        return "" if self._cgroup is None else f"/proc/{os.getpid()}/root{self._cgroup}"

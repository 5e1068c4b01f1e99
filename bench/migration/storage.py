"""Storage handover: control of the guest's disks passes from source to destination.

A step on the timeline that moves nothing yet: this version's guests have no disks. It has its place between the device
state and the ownership point, because a disk must never have two writers.
"""

from __future__ import annotations

from bench.migration.engine import Reporter


def hand_over(report: Reporter) -> None:
    """At the source, while the guest is paused: let go of its storage."""
    report("storage_begin")
    report("storage_end")


def acquire(report: Reporter) -> None:
    """At the destination, before it takes the guest over: get hold of its storage."""
    report("storage_acquired")

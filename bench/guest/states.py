"""Where a guest is in its life; which calls lead from one to the other: :mod:`bench.guest.lifecycle`."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """Where a guest is in its life."""

    NEW = "new"
    READY = "ready"
    SKELETON = "skeleton"
    LOADED = "loaded"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"

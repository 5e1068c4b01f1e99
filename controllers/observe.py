"""Writes what a controller sees as events of the bench: one JSON line each, as it happens.

::

    {"t": 123456789, "source": "controller", "name": "mac_moved", "data": {"switch": "s1", ...}}

``t`` is CLOCK_MONOTONIC in ns. The file is the one that the environment variable ``BENCH_EVENTS`` names; without it
the lines go to the log. Each event is one unbuffered write in append mode, so that a killed controller loses none and
threads do not mix theirs.

Lifecycle events (:data:`LIFECYCLE`) also go up the channel of whoever started the controller (:func:`set_channel`), as
``{"event": {...}}`` lines.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SOURCE = "controller"
EVENTS_VARIABLE = "BENCH_EVENTS"
NAMES_VARIABLE = "BENCH_SWITCHES"
LIFECYCLE = frozenset({"started", "listening", "switch_connected", "switch_ready", "switch_disconnected", "failed"})

_log = logging.getLogger("bench.controller")


def now_ns() -> int:
    """CLOCK_MONOTONIC in ns: the clock of every process of a run."""
    return time.monotonic_ns()


class Observer:
    """Where the events of this process go.

    :param path: the file to append to; None: the log.
    """

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else path.open("ab", buffering=0)
        self._channel: socket.socket | None = None

    def set_channel(self, channel: socket.socket) -> None:
        """Send lifecycle events there as well, from now on."""
        self._channel = channel

    def __call__(self, name: str, data: Mapping[str, Any], t_ns: int | None = None) -> None:
        """Write one event. *t_ns* is when it happened, now by default."""
        event = {"t": now_ns() if t_ns is None else t_ns, "source": SOURCE, "name": name, "data": dict(data)}
        line = json.dumps(event, separators=(",", ":"))
        if self._file is None:
            _log.info("%s", line)
        else:
            self._file.write(line.encode() + b"\n")
        if self._channel is not None and name in LIFECYCLE:
            try:
                self._channel.sendall(b'{"event":' + line.encode() + b"}\n")
            except OSError:
                self._channel = None  # whoever started us is gone; the launcher ends us


class _Process:
    """What belongs to this process: made at first use, since a framework's own launcher makes nothing for us."""

    observer: Observer | None = None
    names: Mapping[int, str] | None = None


def observer() -> Observer:
    """The observer of this process, by the environment."""
    if _Process.observer is None:
        path = os.environ.get(EVENTS_VARIABLE)
        _Process.observer = Observer(Path(path) if path else None)
    return _Process.observer


def switch_names() -> Mapping[int, str]:
    """The switches that the environment variable ``BENCH_SWITCHES`` names (JSON, ``{"1": "s1"}``); empty without it."""
    if _Process.names is None:
        try:
            told = json.loads(os.environ.get(NAMES_VARIABLE) or "{}")
            _Process.names = {int(key): str(name) for key, name in told.items()}
        except (ValueError, AttributeError):
            _log.warning("%s is not a JSON object of datapath ids and names: ignored", NAMES_VARIABLE)
            _Process.names = {}
    return _Process.names


def switch_name(dpid: int) -> str:
    """A switch's name, by :func:`switch_names`, else Mininet's, which makes the id from the name's digits: 1 is s1."""
    return switch_names().get(dpid, f"s{dpid}")

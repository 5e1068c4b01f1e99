"""For the time of a run: the way out of its sandbox to a controller that somebody else started."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bench.control_plane import RELAY_SOCKET
from bench.host.relay import Relay
from bench.scenario import Scenario


@contextlib.contextmanager
def relayed(scenario: Scenario, run_directory: Path) -> Iterator[None]:
    """Around the sandbox. Does nothing when the scenario names no address.

    :raises ControllerError: nobody answers there.
    """
    address = scenario.controller.address
    if address is None:
        yield
        return
    logs = run_directory / "logs"
    logs.mkdir(exist_ok=True)
    path = run_directory / RELAY_SOCKET
    path.parent.mkdir(mode=0o700, exist_ok=True)
    relay = Relay(path, address, logs / "relay.log")
    relay.start()
    try:
        yield
    finally:
        relay.stop()

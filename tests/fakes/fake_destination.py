"""The real destination engine, whose skeletons are fake guests."""

import sys
from pathlib import Path

from bench.migration import arrival, destination
from bench.migration.engine import engine_main


def fake_guest_command(socket_path, events, log):
    fake = Path(__file__).with_name("fake_guest.py")
    return [sys.executable, str(fake), "--socket", str(socket_path), "--events", str(events), "--log", str(log)]


arrival.guest_command = fake_guest_command

if __name__ == "__main__":
    sys.exit(engine_main(destination.DestinationEngine, "destination"))

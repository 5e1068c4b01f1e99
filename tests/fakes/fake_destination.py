"""The real destination engine, whose skeletons are fake guests."""

import sys

import fake_guest

from bench.migration import arrival, destination
from bench.migration.engine import engine_main

arrival.guest_process = fake_guest

if __name__ == "__main__":
    sys.exit(engine_main(destination.DestinationEngine, "destination"))

"""The naive learning switch as an app: flow timeouts, no handling of moves. Decisions: :mod:`.stale_logic`.

Options (``BENCH_APP_OPTIONS``): ``idle_timeout_s`` (default 10) and ``hard_timeout_s`` (default 5) of every flow.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__ and str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.append(str(Path(__file__).resolve().parent.parent))  # loaded as a file by the framework's own launcher

from controllers import observe, shim
from controllers.stale_logic import StaleNetwork


class Stale(shim.NetworkApp):
    """One :class:`StaleNetwork`."""

    def make_logic(self) -> shim.Logic:
        told = shim.options()
        idle_s, hard_s = int(told.get("idle_timeout_s", 10)), int(told.get("hard_timeout_s", 5))
        return StaleNetwork(idle_s, hard_s, observe.switch_name)

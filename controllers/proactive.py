"""The controller that knows the topology, as an app. Decisions: :mod:`.proactive_logic`.

It waits for the switches that ``BENCH_SWITCHES`` names before it floods anything; without that, for half a second
without news.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if not __package__ and str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.append(str(Path(__file__).resolve().parent.parent))  # loaded as a file by the framework's own launcher

from controllers import observe, shim
from controllers.learning_logic import HOLD_VARIABLE, NS_PER_S, hold_s
from controllers.proactive_logic import ProactiveNetwork


class Proactive(shim.NetworkApp):
    """One :class:`ProactiveNetwork`."""

    def make_logic(self) -> shim.Logic:
        hold_ns = hold_s(os.environ.get(HOLD_VARIABLE, "")) * NS_PER_S
        return ProactiveNetwork(len(observe.switch_names()), observe.switch_name, hold_ns=hold_ns)

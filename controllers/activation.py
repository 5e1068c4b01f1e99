"""The controller that blocks a guest's new port until it is announced, as an app. Decisions: :mod:`.activation_logic`.

Option (``BENCH_APP_OPTIONS``): ``dual_delivery``, true or false (the default).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if not __package__ and str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.append(str(Path(__file__).resolve().parent.parent))  # loaded as a file by the framework's own launcher

from controllers import observe, shim
from controllers.activation_logic import ActivationNetwork
from controllers.learning_logic import HOLD_VARIABLE, NS_PER_S, hold_s


class Activation(shim.NetworkApp):
    """One :class:`ActivationNetwork`."""

    def make_logic(self) -> shim.Logic:
        names = observe.switch_names()
        dpids = {name: dpid for dpid, name in names.items()}
        hold_ns = hold_s(os.environ.get(HOLD_VARIABLE, "")) * NS_PER_S
        dual = bool(shim.options().get("dual_delivery"))
        return ActivationNetwork(len(names), observe.switch_name, dpids.get, dual=dual, hold_ns=hold_ns)

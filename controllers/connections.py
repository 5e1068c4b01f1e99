"""An app beside every app: says which switches are connected, whatever the app itself does.

The launcher loads it with the user's app, so that a test bench knows when the switches are there without the app's
help. It asks nothing of the switches and speaks no OpenFlow version in particular.
"""

from __future__ import annotations

from typing import Any

from controllers import framework, observe


class Connections(framework.app_class()):  # type: ignore[misc]
    """Events: ``switch_connected``, ``switch_disconnected`` {dpid, name}."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connected: dict[int, Any] = {}

    @framework.handles("EventOFPStateChange", "main", "dead")
    def state_changed(self, event: Any) -> None:
        datapath = event.datapath
        if datapath.id is None:  # gone before it said who it is
            return
        dpid = int(datapath.id)
        told = {"dpid": dpid, "name": observe.switch_name(dpid)}
        if event.state == "main":
            self._connected[dpid] = datapath
            observe.observer()("switch_connected", told)
        elif self._connected.get(dpid) is datapath:  # not of a switch that came back before its old connection died
            del self._connected[dpid]
            observe.observer()("switch_disconnected", told)

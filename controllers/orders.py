"""Orders from whoever started the controller: JSON objects, one a line, down the lifecycle channel.

``{"order": "expect", "mac": ..., "switch": ..., "port": ...}`` and the like; an app subscribes to them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

MAX_LINE_BYTES = 1 << 16
_log = logging.getLogger("bench.controller")
_subscribers: list[Callable[[Mapping[str, Any]], None]] = []


def subscribe(call: Callable[[Mapping[str, Any]], None]) -> None:
    """Have *call* called with every order from now on."""
    _subscribers.append(call)


class Lines:
    """Cuts what arrives into lines and hands each order on."""

    def __init__(self) -> None:
        self._left = b""

    def feed(self, data: bytes) -> None:
        """The next piece of the stream. What is no order is logged and left out."""
        *lines, self._left = (self._left + data).split(b"\n")
        if len(self._left) > MAX_LINE_BYTES:
            self._left = b""
            _log.warning("an order of more than %d bytes: ignored", MAX_LINE_BYTES)
        for line in lines:
            try:
                order = json.loads(line)
            except ValueError:
                order = None
            if not isinstance(order, dict) or not isinstance(order.get("order"), str):
                _log.warning("not an order: %r", line[:100])
                continue
            for call in _subscribers:
                call(order)

"""The guest's own events, kept back while milliseconds count: a write to a file may take some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.timeline import EventWriter


class Journal:
    """Events of one guest process, noted at once and written when there is time for it.

    :ivar critical: set while the guest's network waits for it: what is noted then is not to be written yet.
    """

    def __init__(self, path: Path, source: str) -> None:
        self.critical = False
        self._writer = EventWriter(path, source)
        self._pending: list[tuple[str, int, dict[str, Any]]] = []

    def note(self, name: str, at_ns: int, **data: Any) -> None:
        self._pending.append((name, at_ns, data))

    def flush(self) -> None:
        """Write what was noted."""
        pending, self._pending = self._pending, []
        for name, at_ns, data in pending:
            self._writer(name, at_ns, **data)

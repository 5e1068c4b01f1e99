"""What the block layer's loop waits for: a source, an alarm, the answers to requests that were sent at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Source(Protocol):
    """What the loop waits for."""

    def fileno(self) -> int: ...

    def wants(self) -> int: ...

    def due_ns(self) -> int | None: ...

    def on_time(self) -> None: ...

    def ready(self, events: int) -> None: ...


class Alarm:
    """A call in the future."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._due_ns: int | None = None

    def set(self, due_ns: int | None) -> None:
        self._due_ns = due_ns

    def fileno(self) -> int:
        return -1

    def wants(self) -> int:
        return 0

    def due_ns(self) -> int | None:
        return self._due_ns

    def on_time(self) -> None:
        self._due_ns = None
        self._call()

    def ready(self, events: int) -> None:
        del events


class Answers:
    """Of several requests that were sent at once.

    :ivar error: the first that was none of 0.
    """

    def __init__(self, count: int) -> None:
        self._left = count
        self.error = 0

    def done(self, error: int) -> None:
        """Of one of them."""
        self._left -= 1
        self.error = self.error or error

    @property
    def over(self) -> bool:
        return self._left <= 0

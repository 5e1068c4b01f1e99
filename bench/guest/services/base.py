"""What a service is, and what it sees of the guest.

A service is a state machine fed with bytes. Its owner (the guest process's event loop) does the input and output::

    received(data) / received_eof()     what came from the client, cut anywhere
    output(limit) -> bytes              the next bytes to send; asking changes nothing that the client can see
    sent(count)                         so many of them were taken by the kernel

At any moment between two calls ``export()`` gives everything the connection holds as JSON-able values, and the service
restored from them goes on as if nothing had happened: same output bytes for the same input bytes.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from bench.clock import now_ns
from bench.guest.store import Store
from bench.guest.store_log import StoreLog

OUTPUT_BOUND_BYTES = 1 << 16  # a service with more unsent output than this stops taking input


@dataclass(slots=True)
class Machine:
    """What services see of the guest.

    :param memory: all guest memory, to be read, format "B".
    :param store: the key-value store in the last part of that memory.
    :param clock_ns: CLOCK_MONOTONIC, replaced in tests only.
    :param journal: where the store's changes are written before they are acknowledged; None: the store is not durable.
    """

    memory: memoryview
    store: Store
    clock_ns: Callable[[], int] = now_ns
    journal: StoreLog | None = None


class StreamService(Protocol):
    """One object for each TCP connection."""

    name: str

    @property
    def reading(self) -> bool:
        """False: do not read from the connection now (back-pressure, or nothing more is expected)."""

    @property
    def closing(self) -> bool:
        """True: close the connection once :meth:`output` has nothing more."""

    def received(self, data: bytes) -> None:
        """Bytes from the client, cut anywhere. May be called while :attr:`reading` is False: nothing is lost."""

    def received_eof(self) -> None:
        """The client will send no more."""

    def output(self, limit: int) -> bytes | memoryview:
        """Up to *limit* bytes to send next, ``b""`` for none now; not consumed until :meth:`sent`."""

    def sent(self, count: int) -> None:
        """The kernel took the first *count* bytes of the last :meth:`output`."""

    def wake_ns(self) -> int | None:
        """CLOCK_MONOTONIC when :meth:`output` may have more by itself; None when only input changes that."""

    def export(self) -> dict[str, Any]:
        """Everything the connection holds, JSON-able."""


class DatagramService(Protocol):
    """One object for each UDP port: datagrams are answered one by one, so there is no state to move."""

    name: str

    def datagram(self, data: bytes) -> bytes | None:
        """The answer, None for none."""


def pack(data: bytes | bytearray | memoryview) -> str:
    """Bytes as base64 text."""
    return base64.b64encode(data).decode("ascii")


def unpack(text: object) -> bytes:
    """The inverse of :func:`pack`. :raises ValueError: when *text* is not base64 text."""
    if not isinstance(text, str):
        raise ValueError(f"base64 text expected, got {type(text).__name__}")
    return base64.b64decode(text, validate=True)


def integer(state: Mapping[str, Any], key: str) -> int:
    """A non-negative integer member of an exported state. :raises ValueError: when it is none."""
    value = state[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{key} is no count: {value!r}")
    return value


class OutputBuffer:
    """Unsent output of a connection. Part of every service whose output is not computed from an offset."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes = b"") -> None:
        self._data = bytearray(data)

    def __len__(self) -> int:
        return len(self._data)

    def __iadd__(self, data: bytes | bytearray | memoryview) -> OutputBuffer:
        self._data += data
        return self

    def peek(self, limit: int) -> bytes:
        """A copy: a view would forbid the buffer to grow for as long as somebody holds it."""
        return bytes(self._data[:limit]) if len(self._data) > limit else bytes(self._data)

    def drop(self, count: int) -> None:
        if count > len(self._data):
            raise ValueError(f"{count} bytes sent out of {len(self._data)}")
        del self._data[:count]

    def pack(self) -> str:
        return pack(self._data)

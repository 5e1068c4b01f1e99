"""Which service listens on which port, and how it is opened and restored: the entry points of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bench.errors import GuestError
from bench.flows.datagram import PORT
from bench.flows.notes import NoteFile
from bench.guest.services.base import DatagramService, Machine, StreamService
from bench.guest.services.http import HttpStream
from bench.guest.services.redis import RedisStream
from bench.guest.services.simple import ChargenStream, DiscardDatagram, DiscardStream, EchoDatagram, EchoStream
from bench.guest.services.sink import SinkDatagram

STREAM_PORTS: dict[int, str] = {7: "echo", 9: "discard", 19: "chargen", 80: "http", 6379: "redis"}
DATAGRAM_PORTS: dict[int, str] = {7: "echo", 9: "discard", PORT: "sink"}

_OPEN: dict[str, Callable[[Machine], StreamService]] = {
    "echo": lambda _machine: EchoStream(),
    "discard": lambda _machine: DiscardStream(),
    "chargen": lambda _machine: ChargenStream(),
    "http": HttpStream,
    "redis": RedisStream,
}
_RESTORE: dict[str, Callable[[Mapping[str, Any], Machine], StreamService]] = {
    "echo": lambda state, _machine: EchoStream.restore(state),
    "discard": lambda state, _machine: DiscardStream.restore(state),
    "chargen": lambda state, _machine: ChargenStream.restore(state),
    "http": HttpStream.restore,
    "redis": RedisStream.restore,
}
_DATAGRAM: dict[str, Callable[[NoteFile], DatagramService]] = {
    "echo": lambda _notes: EchoDatagram(),
    "discard": lambda _notes: DiscardDatagram(),
    "sink": SinkDatagram,
}


def open_stream(name: str, machine: Machine) -> StreamService:
    """The service for a new connection. :raises GuestError: when there is no service of that name."""
    if name not in _OPEN:
        raise GuestError(f"no stream service {name!r}")
    return _OPEN[name](machine)


def restore_stream(name: str, state: Mapping[str, Any], machine: Machine) -> StreamService:
    """The service whose :meth:`StreamService.export` gave *state*.

    :raises GuestError: when there is no service of that name, or *state* is none of its.
    """
    if name not in _RESTORE:
        raise GuestError(f"no stream service {name!r}")
    try:
        return _RESTORE[name](state, machine)
    except (KeyError, TypeError, ValueError) as error:
        raise GuestError(f"the state of a {name} connection is broken: {error!r}") from error


def open_datagram(name: str, notes: NoteFile | None = None) -> DatagramService:
    """The service of a UDP port; the sink writes *notes*. :raises GuestError: when there is no service of that name."""
    if name not in _DATAGRAM:
        raise GuestError(f"no datagram service {name!r}")
    return _DATAGRAM[name](notes or NoteFile(None))

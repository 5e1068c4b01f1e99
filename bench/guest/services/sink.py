"""The sink of one-way datagrams (``udp-stream``): notes what arrives, answers nothing.

Loss, copies and order are worked out of the notes afterwards, so there is no state to move.
"""

from __future__ import annotations

from bench.clock import now_ns
from bench.flows.datagram import unpack
from bench.flows.notes import NoteFile
from bench.records import STATUS_CORRUPT


class SinkDatagram:
    """See the module."""

    name = "sink"

    def __init__(self, notes: NoteFile) -> None:
        self._notes = notes

    def datagram(self, data: bytes) -> bytes | None:
        received_ns = now_ns()
        arrived = unpack(data)
        if arrived is not None:
            status = 0 if arrived.good else STATUS_CORRUPT
            self._notes.note(arrived.flow, arrived.number, arrived.sent_ns, received_ns, len(data), status)
        return None

"""tcp-request: requests on one connection to the echo service (RFC 862), one outstanding, *think* between them.

A request is 8 bytes of sequence number and seeded content, ``size`` bytes in all; the reply must equal it.
``sent_ns`` is before its first ``send``, ``received_ns`` after the ``recv`` that completed the reply. The next request
follows *think* after the reply, so a request that spans an outage takes as long as the outage did.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

from bench.clock import now_ns
from bench.flows.spec import GRACE_NS, filler
from bench.probe.flows.tcp import TcpFlow
from bench.records import STATUS_CORRUPT

_FILLER_STEPS: Final = 65519  # a prime below the filler's length less the largest request


class TcpRequestFlow(TcpFlow):
    """See the module."""

    kind = "tcp-request"
    port = 7

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._filler = filler(self.spec.name)
        self._reply = bytearray(self.spec.size)
        self._view = memoryview(self._reply)
        self._received = 0
        self._request = b""
        self._unsent = memoryview(b"")
        self._outstanding = -1

    def connected(self) -> None:
        self._ask()

    def _ask(self) -> None:
        if self.stopping or self.sock is None:
            return
        number = len(self.records)
        start = number % _FILLER_STEPS
        self._request = number.to_bytes(8, "little") + self._filler[start : start + self.spec.size - 8]
        self._unsent = memoryview(self._request)
        self._received = 0
        sent_ns = now_ns()
        self._outstanding = self.records.append(sent_ns, 0, self.spec.size, 0)
        self.waiting(sent_ns)
        self.writable()

    def writable(self) -> None:
        if self.sock is None:
            return
        with contextlib.suppress(BlockingIOError):
            self._unsent = self._unsent[self.sock.send(self._unsent) :]
        self.want_write(bool(self._unsent))

    def readable(self) -> None:
        if self.sock is None:
            return
        if self._outstanding < 0:
            data = self.sock.recv(4096)
            if not data:
                self.ended()
            elif self._reply:
                self.records.flag(len(self.records) - 1, STATUS_CORRUPT)  # bytes that nobody asked for
            return
        count = self.sock.recv_into(self._view[self._received :])
        received_ns = now_ns()
        if not count:
            self.ended()
            return
        self._received += count
        if self._received == len(self._reply):
            self._answered(received_ns)

    def _answered(self, received_ns: int) -> None:
        number, self._outstanding = self._outstanding, -1
        self._verify(number, received_ns)
        if self.stopping:
            self.finish()
        elif self.spec.think_ns:
            self._at(received_ns + self.spec.think_ns, self._ask)
        else:
            self._ask()

    def _verify(self, number: int, received_ns: int) -> None:
        """The reply to request *number* is whole: keep when, and whether it is right."""
        self.records.answer(number, received_ns)
        if self._reply != self._request:
            self.records.flag(number, STATUS_CORRUPT)
        self.last_reply_ns = received_ns
        self.waiting(0)

    def reset(self) -> None:
        self._outstanding = -1
        self._unsent = memoryview(b"")
        self.waiting(0)

    def stop(self) -> None:
        if self.stopping or self.done:
            return
        self.stopping = True
        if self._outstanding < 0:
            self.finish()
        else:
            self._finish_after(GRACE_NS)

"""tcp-request and tcp-idle from the guest: as :mod:`bench.probe.flows.tcp_request` does it, by a client that moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.clock import now_ns
from bench.flows.spec import APPLICATION_TIMEOUT, GRACE_NS, filler
from bench.guest.clients.stream import StreamFlow
from bench.guest.services.base import integer, pack, unpack
from bench.records import STATUS_CORRUPT

_FILLER_STEPS = 65519  # a prime below the filler's length less the largest request


class RequestFlow(StreamFlow):
    """A request that the server echoes, one outstanding, *think* between them."""

    kind = "tcp-request"
    port = 7

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._filler = filler(self.spec.name)
        self._request = b""
        self._offset = 0  # of the request, taken by the kernel
        self._reply = bytearray()
        self._sent_ns = 0  # 0: nothing is outstanding
        self._due_ns: int | None = None

    def content(self, number: int) -> bytes:
        """Request *number*, the same each time it is asked for."""
        start = number % _FILLER_STEPS
        return number.to_bytes(8, "little") + self._filler[start : start + self.spec.size - 8]

    def opened(self) -> None:
        self._due_ns = now_ns()

    def output(self, limit: int) -> bytes | memoryview:
        if not self._sent_ns:
            if self._due_ns is None or self.done or now_ns() < self._due_ns:
                return b""
            self._request, self._offset, self._due_ns = self.content(self.count), 0, None
            self._reply.clear()
            self._sent_ns = now_ns()
            self.waiting(self._sent_ns)
        return self._request[self._offset : self._offset + limit]

    def sent(self, count: int) -> None:
        self._offset += count

    def take(self, data: bytes, received_ns: int) -> None:
        self._reply += data
        if not self._sent_ns:
            self._reply.clear()  # bytes that nobody asked for
            self.note(max(0, self.count - 1), 0, 0, 0, STATUS_CORRUPT)
        elif (status := self.judge(bytes(self._reply))) is not None:
            self._answered(received_ns, status)

    def judge(self, said: bytes) -> int | None:
        """Flags of what the server said so far; None while there is more to come.

        :raises ProbeError: it is no answer.
        """
        if len(said) < len(self._request):
            return None
        return 0 if said == self._request else STATUS_CORRUPT

    def _answered(self, received_ns: int, status: int) -> None:
        self.note(self.count, self._sent_ns, received_ns, len(self._request), status)
        self.count += 1
        self._sent_ns, self.last_reply_ns = 0, received_ns
        self.waiting(0)
        if self.stopping:
            self.finish()
        else:
            self._due_ns = self.next_ns(received_ns)

    def next_ns(self, received_ns: int) -> int | None:
        """When the next request follows an answer."""
        return received_ns + self.spec.think_ns

    def wake_ns(self) -> int | None:
        return self._due_ns if not self._sent_ns else None

    def reset(self) -> None:
        self._lose()
        self._due_ns = None

    def _lose(self) -> None:
        """What was asked will not be answered."""
        if self._sent_ns:
            self.note(self.count, self._sent_ns, 0, len(self._request))
            self.count += 1
            self._sent_ns = 0

    def stop(self) -> None:
        if self.stopping or self.done:
            return
        self.stopping = True
        if self._sent_ns:
            self.at(now_ns() + GRACE_NS, self.finish)
        else:
            self.finish()

    def finish(self) -> None:
        if not self.done:
            self._lose()
        super().finish()

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "offset": self._offset,
            "reply": pack(self._reply),
            "sent_ns": self._sent_ns,
            "due_ns": self._due_ns,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self._offset, self._sent_ns = integer(state, "offset"), integer(state, "sent_ns")
        self._reply = bytearray(unpack(state["reply"]))
        self._due_ns = None if state["due_ns"] is None else integer(state, "due_ns")
        self._request = self.content(self.count)


class IdleFlow(RequestFlow):
    """One request when the connection stands, then silence; the stop asks once more."""

    kind = "tcp-idle"

    def next_ns(self, received_ns: int) -> int | None:
        return None

    def stop(self) -> None:
        if self.stopping or self.done:
            return
        if not self._sent_ns:
            self._due_ns = now_ns()
            self.poke()
        self.stopping = True
        self.at(now_ns() + GRACE_NS, self._gave_no_answer)

    def _gave_no_answer(self) -> None:
        if not self.done:
            self.fail(APPLICATION_TIMEOUT)

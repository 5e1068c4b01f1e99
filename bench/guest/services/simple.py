"""Echo (RFC 862), discard (RFC 863) and character generator (RFC 864), over TCP and UDP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.guest.services.base import OUTPUT_BOUND_BYTES, OutputBuffer, integer, unpack
from bench.guest.services.pattern import RING_SLICE_BYTES, chargen_slice


class _UntilEof:
    """What the three have in common: the client's end of file ends them, and no timer wakes them."""

    def __init__(self) -> None:
        self._eof = False

    @property
    def reading(self) -> bool:
        return not self._eof

    @property
    def closing(self) -> bool:
        return self._eof

    def received_eof(self) -> None:
        self._eof = True

    def wake_ns(self) -> int | None:
        return None


class EchoStream(_UntilEof):
    """Sends back what it receives; stops reading while more than :data:`OUTPUT_BOUND_BYTES` wait to be sent."""

    name = "echo"

    def __init__(self) -> None:
        super().__init__()
        self._out = OutputBuffer()

    @property
    def reading(self) -> bool:
        return not self._eof and len(self._out) < OUTPUT_BOUND_BYTES

    def received(self, data: bytes) -> None:
        self._out += data

    def output(self, limit: int) -> bytes:
        return self._out.peek(limit)

    def sent(self, count: int) -> None:
        self._out.drop(count)

    def export(self) -> dict[str, Any]:
        return {"out": self._out.pack(), "eof": self._eof}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> EchoStream:
        service = cls()
        service._out = OutputBuffer(unpack(state["out"]))
        service._eof = bool(state["eof"])
        return service


class DiscardStream(_UntilEof):
    """Reads and forgets; counts the bytes, so that a test can ask."""

    name = "discard"

    def __init__(self) -> None:
        super().__init__()
        self.received_bytes = 0

    def received(self, data: bytes) -> None:
        self.received_bytes += len(data)

    def output(self, limit: int) -> bytes:
        del limit
        return b""

    def sent(self, count: int) -> None:
        if count:
            raise ValueError("discard sends nothing")

    def export(self) -> dict[str, Any]:
        return {"received_bytes": self.received_bytes, "eof": self._eof}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> DiscardStream:
        service = cls()
        service.received_bytes = integer(state, "received_bytes")
        service._eof = bool(state["eof"])
        return service


class ChargenStream(_UntilEof):
    """The endless pattern, as fast as the connection takes it; what is received is thrown away. State: one offset."""

    name = "chargen"

    def __init__(self) -> None:
        super().__init__()
        self.sent_bytes = 0

    def received(self, data: bytes) -> None:
        """Thrown away (RFC 864)."""

    def output(self, limit: int) -> bytes | memoryview:
        return b"" if self._eof else chargen_slice(self.sent_bytes, min(limit, RING_SLICE_BYTES))

    def sent(self, count: int) -> None:
        self.sent_bytes += count

    def export(self) -> dict[str, Any]:
        return {"sent_bytes": self.sent_bytes, "eof": self._eof}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> ChargenStream:
        service = cls()
        service.sent_bytes = integer(state, "sent_bytes")
        service._eof = bool(state["eof"])
        return service


class EchoDatagram:
    """UDP echo: the same payload back."""

    name = "echo"

    def datagram(self, data: bytes) -> bytes | None:
        return data


class DiscardDatagram:
    """UDP discard: no answer."""

    name = "discard"

    def datagram(self, data: bytes) -> bytes | None:
        del data
        return None

"""redis: SET and GET by the library redis-py on one connection, *think* between them.

Even requests set the flow's key to a value that names the request, odd ones get it: it must be what was set last. So an
acknowledged write that the guest lost in its move is seen as a corrupt answer.
"""

from __future__ import annotations

import socket
from typing import Any, Final

from bench.errors import ProbeError
from bench.flows.spec import filler
from bench.probe.flows.library import LibraryFlow

PORT: Final = 6379


class RedisFlow(LibraryFlow):
    """See the module."""

    kind = "redis"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._client: Any = None
        self._key = f"flow:{self.spec.name}"
        self._filler = filler(self.spec.name)[: self.spec.size]
        self._value = b""

    def open(self, timeout_s: float) -> socket.socket:
        import redis  # noqa: PLC0415 - only flows of this kind need it

        connection: Any = redis.Connection(  # type: ignore[no-untyped-call]
            host=self.guest_address, port=PORT, socket_timeout=timeout_s, protocol=2, lib_name=None, lib_version=None
        )
        connection.connect()
        self._client = connection
        sock = getattr(connection, "_sock", None)
        if not isinstance(sock, socket.socket):
            raise ProbeError("redis-py does not show its socket; the pinned version does")
        return sock

    def ask(self, number: int) -> tuple[int, bool]:
        if number % 2 == 0:
            value = number.to_bytes(8, "little") + self._filler
            self._client.send_command("SET", self._key, value)
            good = self._client.read_response() == b"OK"
            self._value = value
            return len(value), good
        self._client.send_command("GET", self._key)
        return len(self._key), self._client.read_response() == self._value

    def shut(self) -> None:
        if self._client is not None:
            self._client.disconnect()

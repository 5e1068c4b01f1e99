"""http and redis from the guest: requests made and answers read by Python's http.client and by redis-py.

A library that waits in a call cannot be moved, but one that is handed bytes can: here its socket is a stand-in that
takes what the library sends and has what the server said so far. So all there is to move is those bytes, and the
library reads them again where the guest goes on.

The libraries are imported by :meth:`~OutboundFlow.prepare`, which a skeleton calls while its guest still runs
elsewhere: that takes tens to hundreds of milliseconds.
"""

from __future__ import annotations

import importlib
import io
import json
import zlib
from collections.abc import Mapping
from typing import Any

from bench.errors import ProbeError
from bench.flows.spec import filler
from bench.guest.clients.request import RequestFlow
from bench.guest.services.base import pack, unpack
from bench.records import STATUS_CORRUPT

MOST_BYTES = 1 << 20


class StandIn:
    """What a library takes for its socket."""

    def __init__(self, said: bytes = b"") -> None:
        self.asked = bytearray()
        self._said = io.BytesIO(said)

    def sendall(self, data: bytes) -> None:
        self.asked += data

    def recv(self, count: int) -> bytes:
        """:raises TimeoutError: there is no more yet."""
        data = self._said.read(count)
        if not data:
            raise TimeoutError
        return data

    def makefile(self, _mode: str, *_args: Any) -> io.BytesIO:
        return self._said

    def settimeout(self, _timeout: float | None) -> None: ...

    def shutdown(self, _how: int) -> None: ...

    def close(self) -> None: ...

    @property
    def all_read(self) -> bool:
        return self._said.tell() == len(self._said.getbuffer())


class HttpFlow(RequestFlow):
    """Pages and uploads in turn."""

    kind = "http"
    port = 80

    @classmethod
    def prepare(cls) -> None:
        importlib.import_module("http.client")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._body = filler(self.spec.name)[: self.spec.size]
        self._page: bytes | None = None

    def content(self, number: int) -> bytes:
        import http.client  # noqa: PLC0415

        client = http.client.HTTPConnection(self.spec.address, self.port)
        wire = StandIn()
        client.sock = wire
        if number % 2:
            client.request("POST", "/upload", self._body, {"Content-Type": "application/octet-stream"})
        else:
            client.request("GET", "/")
        return bytes(wire.asked)

    def judge(self, said: bytes) -> int | None:
        import http.client  # noqa: PLC0415

        if b"\r\n\r\n" not in said:
            return None
        answer = http.client.HTTPResponse(StandIn(said), method="POST" if self.count % 2 else "GET")  # type: ignore[arg-type]
        try:
            answer.begin()
            body = answer.read()
        except http.client.IncompleteRead:
            return None
        except (http.client.HTTPException, ValueError) as error:
            raise ProbeError(f"http.client does not understand the answer: {error!r}") from error
        good = answer.status == 200
        if self.count % 2:
            good = good and json.loads(body) == {"bytes": len(self._body), "crc32": zlib.crc32(self._body)}
        else:
            self._page = self._page or body
            good = good and body == self._page
        return 0 if good else STATUS_CORRUPT

    def state(self) -> dict[str, Any]:
        return {**super().state(), "page": None if self._page is None else pack(self._page)}

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self._page = None if state["page"] is None else unpack(state["page"])


class RedisFlow(RequestFlow):
    """SET and GET in turn; a GET must give what was set last."""

    kind = "redis"
    port = 6379

    @classmethod
    def prepare(cls) -> None:
        importlib.import_module("redis")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._key = f"flow:{self.spec.name}"
        self._filler = filler(self.spec.name)[: self.spec.size]
        self._set = -1  # the number of the last SET that was acknowledged

    def _connection(self, wire: StandIn) -> Any:
        import redis  # noqa: PLC0415

        connection: Any = redis.Connection(protocol=2)  # type: ignore[no-untyped-call]
        connection._sock = wire
        connection._parser.on_connect(connection)
        return connection

    def content(self, number: int) -> bytes:
        words = ("GET", self._key) if number % 2 else ("SET", self._key, self._value(number))
        return b"".join(self._connection(StandIn()).pack_command(*words))

    def _value(self, number: int) -> bytes:
        return number.to_bytes(8, "little") + self._filler

    def judge(self, said: bytes) -> int | None:
        import redis  # noqa: PLC0415

        wire = StandIn(said)
        connection = self._connection(wire)  # it disconnects its parser when it goes
        try:
            answer = connection._parser.read_response(disable_decoding=True)
        except redis.TimeoutError:
            return None
        except redis.RedisError as error:
            raise ProbeError(f"redis-py does not understand the answer: {error!r}") from error
        if not wire.all_read:
            return STATUS_CORRUPT
        if self.count % 2 == 0:
            self._set = self.count if answer == b"OK" else self._set
            return 0 if answer == b"OK" else STATUS_CORRUPT
        # One that was lost on its way may have been done or not.
        possible = {self._value(number) for number in range(max(0, self._set), self.count, 2)}
        return 0 if answer in possible or (answer is None and self._set < 0) else STATUS_CORRUPT

    def state(self) -> dict[str, Any]:
        return {**super().state(), "set": self._set}

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self._set = int(state["set"])

"""http: requests by Python's ``http.client`` on one kept-alive connection, *think* between them.

In turn the guest's page ``/``, which must stay the same, and a POST of ``size`` seeded bytes to ``/upload``, whose
answer must name their number and CRC-32.
"""

from __future__ import annotations

import http.client
import json
import socket
import zlib
from typing import Any, Final

from bench.flows.spec import filler
from bench.probe.flows.library import LibraryFlow

PORT: Final = 80
MOST_BYTES: Final = 1 << 16


class HttpFlow(LibraryFlow):
    """See the module."""

    kind = "http"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._client: http.client.HTTPConnection | None = None
        self._page: bytes | None = None
        self._body = filler(self.spec.name)[: self.spec.size]

    def open(self, timeout_s: float) -> socket.socket:
        self._client = client = http.client.HTTPConnection(self.guest_address, PORT, timeout=timeout_s)
        client.connect()
        sock: socket.socket = client.sock
        return sock

    def ask(self, number: int) -> tuple[int, bool]:
        client = self._client
        assert client is not None
        if number % 2:
            client.request("POST", "/upload", self._body, {"Content-Type": "application/octet-stream"})
            answer = client.getresponse()
            said = json.loads(answer.read(MOST_BYTES))
            good = answer.status == 200 and said == {"bytes": len(self._body), "crc32": zlib.crc32(self._body)}
            return len(self._body), good
        client.request("GET", "/")
        answer = client.getresponse()
        page = answer.read(MOST_BYTES)
        answer.read()
        self._page = self._page or page
        return 0, answer.status == 200 and page == self._page

    def shut(self) -> None:
        if self._client is not None:
            self._client.close()

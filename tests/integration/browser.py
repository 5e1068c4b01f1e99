"""Chromium without a window, driven by its DevTools protocol (https://chromedevtools.github.io/devtools-protocol)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import WebSocketClientConnection, websocket_connect

from bench.clock import NS_PER_S, Deadline

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
WHOLE_NS = 90 * NS_PER_S


class Browser:
    """One page.

    :ivar complaints: what the console said above "info", exceptions, and refused or failed loads.
    :ivar requests: every URL that the page asked for.
    """

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self._socket = socket
        self._number = 0
        self.complaints: list[str] = []
        self.requests: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.write_message(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = await self._next()
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                return dict(message["result"])

    async def _next(self) -> dict[str, Any]:
        raw = await self._socket.read_message()
        assert raw is not None, "the browser is gone"
        message: dict[str, Any] = json.loads(raw)
        parameters = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"])[:500])
        elif message.get("method") == "Runtime.consoleAPICalled" and parameters["type"] in (
            "error",
            "warning",
            "assert",
        ):
            self.complaints.append(str(parameters["args"])[:500])
        elif message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] != "info":
            self.complaints.append(parameters["entry"]["text"])
        elif message.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"][:200])
        return message

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def show(self, page: Path, width: int, *, dark: bool = False) -> None:
        """Open *page* in a window of *width*, tall enough for all of it, and wait until every figure is drawn."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        await self._size(width, 900)
        await self.call("Page.navigate", url=page.resolve().as_uri())
        await self._until("document.documentElement.dataset.ready === 'yes'")
        for _ in range(2):  # drawing what came into view may make the page longer
            await self._size(width, min(16_000, int(await self.evaluate("document.documentElement.scrollHeight"))))
            await self._until(
                "[...document.querySelectorAll('.plot')].every(place => place.querySelector('.main-svg')"
                " || place.getBoundingClientRect().top > innerHeight + 300)"
            )

    async def _size(self, width: int, height: int) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    async def _until(self, expression: str) -> None:
        deadline = Deadline(WHOLE_NS)
        while not await self.evaluate(f"new Promise(done => requestAnimationFrame(() => done({expression})))"):
            assert not deadline.expired, (expression, self.complaints)

    async def screenshot(self, path: Path) -> None:
        found = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    async def print(self, path: Path) -> None:
        found = await self.call("Page.printToPDF", printBackground=True)
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.asynccontextmanager
async def browser(directory: Path) -> AsyncIterator[Browser]:
    """A browser with a profile of its own below *directory*; gone with the context."""
    assert CHROMIUM is not None
    profile = directory / "profile"
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port_file, deadline = profile / "DevToolsActivePort", Deadline(WHOLE_NS)
        while not (port_file.exists() and port_file.read_text().count("\n")):
            assert process.poll() is None, "the browser ended"
            assert not deadline.expired, "the browser does not listen"
            await asyncio.sleep(0.02)  # another program writes the file; there is nothing to wait on
        port = int(port_file.read_text().split()[0])
        targets = json.loads((await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/json/list")).body)
        address = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
        socket = await websocket_connect(address, max_message_size=1 << 28)
        yield Browser(socket)
        socket.close()
    finally:
        process.terminate()
        process.wait(30)

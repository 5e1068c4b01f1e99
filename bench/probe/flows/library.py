"""What the flows over a real client library share: the library blocks, so it has a thread of its own.

The thread waits in the kernel nearly all the time; it writes its records itself, one request after the other, and never
touches the loop. Its errors are the library's: the flow notes them by name and, with ``retry``, has the library make a
new connection.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from abc import abstractmethod
from collections import deque
from typing import Any, Final

from bench.clock import NS_PER_MS, NS_PER_S, now_ns
from bench.flows.spec import GRACE_NS, error_name
from bench.flows.tcp_info import tcp_info
from bench.flows.tcp_samples import TcpSamples
from bench.probe.flows.base import Flow
from bench.probe.flows.tcp import RECONNECT_NS
from bench.records import STATUS_CORRUPT

_LOOK_NS: Final = 20 * NS_PER_MS


class LibraryFlow(Flow):
    """Subclasses: :meth:`open`, :meth:`ask`, :meth:`shut`, all called in the thread."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.samples = TcpSamples()
        self.sock: socket.socket | None = None
        self.reconnects = 0
        self._thread = threading.Thread(target=self._work, name=self.spec.name, daemon=True)
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._notes: deque[tuple[str, dict[str, Any]]] = deque()  # for the loop, which alone writes events

    @abstractmethod
    def open(self, timeout_s: float) -> socket.socket:
        """Have the library connect. :returns: its socket."""

    @abstractmethod
    def ask(self, number: int) -> tuple[int, bool]:
        """One request and its answer. :returns: bytes of the request, and whether the answer was right."""

    @abstractmethod
    def shut(self) -> None:
        """Have the library close."""

    def start(self) -> None:
        self._thread.start()
        self._watch()

    def _watch(self) -> None:
        """In the loop: pass on what the thread notes; has it ended?"""
        while self._notes:
            name, data = self._notes.popleft()
            self.event(name, **data)
        if self._thread.is_alive():
            if not self.done:
                self._at(now_ns() + _LOOK_NS, self._watch)
        elif self._error is not None:
            self.fail(self._error)
        else:
            self.finish()

    def _work(self) -> None:
        try:
            while self._once():
                self._stop.wait(RECONNECT_NS / NS_PER_S)
        except Exception as error:
            if not self._stop.is_set():
                self._error = error

    def _once(self) -> bool:
        """One connection until it ends. :returns: whether another one is to be made."""
        try:
            self._connection()
        except Exception as error:
            if self._stop.is_set() or not self.spec.retry:
                raise
            self.reconnects += 1
            self._notes.append(("flow_reconnects", {"error": error_name(error), "number": self.reconnects}))
        return not self._stop.is_set()

    def _connection(self) -> None:
        self.sock = sock = self.open(self.spec.timeout_ns / NS_PER_S)
        try:
            self.spec.tcp.apply(sock)
            self.local_port = sock.getsockname()[1]
            self._notes.append(("flow_started", {"local_port": self.local_port}))
            while not self._stop.is_set():
                number = self.records.append(now_ns(), 0, 0, 0)
                _size, good = self.ask(number)
                received_ns = now_ns()
                self.records.answer(number, received_ns)
                if not good:
                    self.records.flag(number, STATUS_CORRUPT)
                self.last_reply_ns = received_ns
                self._stop.wait(self.spec.think_ns / NS_PER_S)
        finally:
            with contextlib.suppress(OSError):
                self.retransmits = (self.retransmits or 0) + tcp_info(sock).retransmits
            self.sock = None
            with contextlib.suppress(Exception):
                self.shut()

    def look(self) -> None:
        """Sample what the kernel says of the connection."""
        sock = self.sock
        if sock is not None:
            with contextlib.suppress(OSError):  # the thread may close it at any time
                self.samples.look(sock)

    def stop(self) -> None:
        if self.stopping or self.done:
            return
        self.stopping = True
        self._stop.set()
        self._at(now_ns() + GRACE_NS, self._give_up)

    def _give_up(self) -> None:
        """A library that waits for an answer: its socket's end wakes it."""
        sock = self.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.finish()

    def release(self) -> None:
        self._stop.set()

    def extra(self) -> dict[str, Any]:
        return {"reconnects": self.reconnects}

"""The clients of guest tests: verified flows against the guest, in the client's namespace, one thread each.

``guest_flows.py ADDRESS SECONDS``; prints one JSON object at the end: flow -> {count, error, worst_ms}.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from bench.flows.pattern import PERIOD_BYTES, matches, pattern_slice

TIMEOUT_S = 30.0
PACE_S = 0.001  # bulk flows leave some CPU time to the guest: both share two cores


class Flow(threading.Thread):
    def __init__(self, name: str, work: Callable[[Flow], None], address: str, end_s: float) -> None:
        super().__init__(name=name, daemon=True)
        self.work, self.address, self.end_s = work, address, end_s
        self.count = 0
        self.worst_s = 0.0
        self.error = ""

    def run(self) -> None:
        try:
            self.work(self)
        except Exception as error:  # every failure is a result
            self.error = f"{error!r} after {self.count}"

    @property
    def on(self) -> bool:
        return time.monotonic() < self.end_s

    @contextlib.contextmanager
    def timed(self) -> Any:
        begin = time.monotonic()
        yield
        self.worst_s = max(self.worst_s, time.monotonic() - begin)

    def connect(self, port: int) -> socket.socket:
        sock = socket.create_connection((self.address, port), TIMEOUT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock


def exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise EOFError(f"end of file after {len(data)} of {count} bytes")
        data += part
    return data


def expect(what: bool, message: str) -> None:
    if not what:
        raise ValueError(message)


def request(flow: Flow) -> None:
    with flow.connect(7) as sock:
        while flow.on:
            data = flow.count.to_bytes(8, "big") * 8
            with flow.timed():
                sock.sendall(data)
                expect(exactly(sock, len(data)) == data, "another answer")
            flow.count += 1
            time.sleep(0.001)


def idle(flow: Flow) -> None:
    with flow.connect(7) as sock:
        sock.sendall(b"before")
        expect(exactly(sock, 6) == b"before", "another answer")
        time.sleep(max(0.0, flow.end_s - time.monotonic()))
        sock.sendall(b"after")
        expect(exactly(sock, 5) == b"after", "another answer")
        flow.count = 1


def download(flow: Flow, pace_s: float = PACE_S, size: int = 1 << 17) -> None:
    with flow.connect(19) as sock:
        while flow.on:
            with flow.timed():
                data = sock.recv(size)
            expect(bool(data), "end of file")
            expect(matches(data, flow.count), f"corruption at {flow.count}")
            flow.count += len(data)
            time.sleep(pace_s)
        sock.shutdown(socket.SHUT_WR)  # the guest ends the pattern; all that it sent must be right
        while data := sock.recv(size):
            expect(matches(data, flow.count), f"corruption at {flow.count}")
            flow.count += len(data)


def slow_download(flow: Flow) -> None:
    download(flow, 0.02, 8192)


def upload(flow: Flow) -> None:
    with flow.connect(9) as sock:
        while flow.on:
            flow.count += sock.send(pattern_slice(flow.count, random.choice((1, 777, 65536))))
            time.sleep(PACE_S)


def echo_bulk(flow: Flow, pace_s: float = PACE_S) -> None:
    """Everything comes back in order; the client ends its half first and still gets the rest."""
    with flow.connect(7) as sock:
        sent = 0

        def send() -> None:
            nonlocal sent
            with contextlib.suppress(OSError):
                while flow.on:
                    sent += sock.send(pattern_slice(sent, 65536))
                    time.sleep(PACE_S)
                sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        while data := sock.recv(1 << 16):
            expect(matches(data, flow.count), f"corruption at {flow.count}")
            flow.count += len(data)
            time.sleep(pace_s)
        sender.join(TIMEOUT_S)
        expect(flow.count == sent, f"{sent} bytes sent and {flow.count} came back")


def echo_slow(flow: Flow) -> None:
    """Both queues of both sides are full most of the time."""
    echo_bulk(flow, 0.01)


def half_close(flow: Flow) -> None:
    while flow.on:
        with flow.connect(7) as sock:
            count = random.randrange(1, 200_000)
            data = bytes(pattern_slice(0, count))
            thread = threading.Thread(target=sock.sendall, args=(data,), daemon=True)
            thread.start()
            first = exactly(sock, min(1000, count))
            thread.join(TIMEOUT_S)
            sock.shutdown(socket.SHUT_WR)
            time.sleep(0.02)  # a half-closed connection, for a migration to meet
            rest = b"".join(iter(lambda: sock.recv(4096), b""))
            expect(first + rest == data, "another answer")
        flow.count += 1


def new_connections(flow: Flow) -> None:
    while flow.on:
        with flow.timed(), flow.connect(7) as sock:
            data = flow.count.to_bytes(8, "big")
            sock.sendall(data)
            expect(exactly(sock, 8) == data, "another answer")
        flow.count += 1
        time.sleep(0.003)


def http(flow: Flow) -> None:
    with flow.connect(80) as sock:
        while flow.on:
            with flow.timed():
                sock.sendall(b"GET /page/1 HTTP/1.1\r\nHost: guest\r\n\r\n")
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += exactly(sock, 1)
                expect(head.startswith(b"HTTP/1.1 200 "), head[:80].decode())
                exactly(sock, 4096)
            flow.count += 1
            time.sleep(0.002)


def http_stream(flow: Flow) -> None:
    """Paced by the guest: its timers must go on at the destination."""
    with flow.connect(80) as sock:
        count = int(max(1.0, flow.end_s - time.monotonic())) * 2_000_000
        sock.sendall(b"GET /stream?rate=2000000&bytes=%d HTTP/1.1\r\nHost: guest\r\n\r\n" % count)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += exactly(sock, 1)
        expect(head.startswith(b"HTTP/1.1 200 "), head[:80].decode())
        while flow.count < count:
            with flow.timed():
                data = sock.recv(1 << 16)
            expect(bool(data) and matches(data, flow.count % PERIOD_BYTES), f"corruption at {flow.count}")
            flow.count += len(data)


def redis(flow: Flow) -> None:
    with flow.connect(6379) as sock:
        while flow.on:
            value = b"%08d" % flow.count
            with flow.timed():
                sock.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$8\r\n%b\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n" % value)
                expect(exactly(sock, 19) == b"+OK\r\n$8\r\n%b\r\n" % value, "another answer")
            flow.count += 1
            time.sleep(0.002)


def udp(flow: Flow) -> None:
    """Counts answers; UDP may lose, but not answer wrongly."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.5)
        sock.connect((flow.address, 7))
        number = 0
        while flow.on:
            number += 1
            sock.send(number.to_bytes(8, "big"))
            with contextlib.suppress(TimeoutError), flow.timed():
                while int.from_bytes(sock.recv(100), "big") != number:
                    pass
                flow.count += 1
            time.sleep(0.001)


FLOWS = {
    "request": request,
    "request2": request,
    "idle": idle,
    "download": download,
    "slow_download": slow_download,
    "upload": upload,
    "echo_bulk": echo_bulk,
    "echo_slow": echo_slow,
    "half_close": half_close,
    "new_connections": new_connections,
    "http": http,
    "http_stream": http_stream,
    "redis": redis,
    "udp": udp,
}


def main() -> None:
    address, seconds = sys.argv[1], float(sys.argv[2])
    chosen = sys.argv[3].split(",") if len(sys.argv) > 3 else list(FLOWS)
    end_s = time.monotonic() + seconds
    flows = [Flow(name, FLOWS[name], address, end_s) for name in chosen]
    for flow in flows:
        flow.start()
    for flow in flows:
        flow.join(seconds + 2 * TIMEOUT_S)
        if flow.is_alive():
            flow.error = f"hangs after {flow.count}"
    print(
        json.dumps(
            {
                flow.name: {"count": flow.count, "error": flow.error, "worst_ms": round(flow.worst_s * 1e3, 1)}
                for flow in flows
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()

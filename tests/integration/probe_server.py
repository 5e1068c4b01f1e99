"""A stand-in for the guest's services in one process: echo and chargen and the two HTTP paths of bulk flows.

Run as a script in a network namespace; prints ``ready`` when it listens and ends when its standard input does. It uses
nothing of the bench but the pattern, so that the probes are tested against something that was written apart from them.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import sys
import time
import zlib

from bench.guest.services.pattern import chargen_slice

TICK_S = 0.001


class Connection:
    """One TCP connection of any service."""

    def __init__(self, sock: socket.socket, port: int) -> None:
        self.sock, self.port = sock, port
        self.out = bytearray()
        self.inp = bytearray()
        self.offset = 0
        self.rate: int | None = 0 if port == 19 else None
        self.start = time.monotonic()
        self.upload: list[int] | None = None

    def readable(self) -> bool:
        data = self.sock.recv(1 << 18)
        if not data:
            return False
        if self.port == 7:
            self.out += data
        elif self.port == 80:
            self.inp += data
            self.http()
        return True

    def http(self) -> None:
        if self.upload is None:
            head, end, rest = bytes(self.inp).partition(b"\r\n\r\n")
            if not end:
                return
            self.inp = bytearray(rest)
            match = re.match(rb"GET /stream\?rate=(\d+)&bytes=(\d+) ", head)
            if match:
                self.rate = int(match[1])
                self.out += b"HTTP/1.1 200 OK\r\nContent-Length: %b\r\n\r\n" % match[2]
                self.start = time.monotonic()
                return
            assert head.startswith(b"POST /upload ")
            self.upload = [0, 0]
        while True:
            line, end, _rest = bytes(self.inp[:64]).partition(b"\r\n")
            if not end:
                return
            count = int(line, 16)
            whole = len(line) + 2 + count + 2
            if len(self.inp) < whole:
                return
            content = self.inp[len(line) + 2 : whole - 2]
            del self.inp[:whole]
            if not count:
                body = json.dumps({"bytes": self.upload[0], "crc32": self.upload[1]}).encode()
                self.out += b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
                return
            self.upload = [self.upload[0] + count, zlib.crc32(content, self.upload[1])]

    def flush(self) -> bool:
        """Send what is due; False when the connection is broken."""
        try:
            if self.rate is not None:
                due = 1 << 16 if not self.rate else int((time.monotonic() - self.start) * self.rate) - self.offset
                due = min(due, (1 << 17) - len(self.out))
                if due > 0:
                    self.out += chargen_slice(self.offset, due)
                    self.offset += due
            if self.out:
                del self.out[: self.sock.send(self.out)]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


def main(address: str) -> None:
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    for port in (7, 19, 80):
        listener = socket.create_server((address, port))
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((address, 7))
    udp.setblocking(False)
    selector.register(udp, selectors.EVENT_READ)
    connections: dict[socket.socket, Connection] = {}
    print("ready", flush=True)
    while True:
        for key, _events in selector.select(TICK_S):
            thing = key.fileobj
            if thing is sys.stdin:
                return
            assert isinstance(thing, socket.socket)
            if thing is udp:
                data, peer = udp.recvfrom(65536)
                udp.sendto(data, peer)
            elif thing in connections:
                try:
                    alive = connections[thing].readable()
                except OSError:
                    alive = False
                if not alive:
                    selector.unregister(thing)
                    del connections[thing]
                    thing.close()
            else:
                sock, _peer = thing.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connections[sock] = Connection(sock, thing.getsockname()[1])
                selector.register(sock, selectors.EVENT_READ)
        for connection in list(connections.values()):
            if not connection.flush():
                selector.unregister(connection.sock)
                del connections[connection.sock]
                connection.sock.close()


if __name__ == "__main__":
    main(sys.argv[1])

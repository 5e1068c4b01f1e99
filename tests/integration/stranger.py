"""Strangers at a migration's door: garbage, half a frame, silence, one after the other, until standard input closes."""

import contextlib
import select
import socket
import sys

VOLLEY = [
    b"",
    b"",
    b"GET / HTTP/1.0\r\n\r\n",
    b"\0" * 4096,
    b"\x16\x03\x01\x02\x00\x01",
    b"SSH-2.0-stranger\r\n",
    b"\x01\x01",
]
HELD = 40  # connections that stay open


def main() -> None:
    address, port = sys.argv[1], int(sys.argv[2])
    held: list[socket.socket] = []
    done = 0
    while True:
        for said in VOLLEY:
            with contextlib.suppress(OSError):
                held.append(socket.create_connection((address, port), 1))
                held[-1].sendall(said)
            done += 1
        if done == len(VOLLEY):
            print("there", flush=True)
        while len(held) > HELD:
            held.pop(0).close()
        if select.select([sys.stdin], [], [], 0.02)[0]:
            return


main()

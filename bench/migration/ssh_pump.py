"""One tunnel: ``python -m bench.migration.ssh_pump LINK DATA CONTROL COUNTERS`` (numbers of inherited descriptors).

LINK is a TCP connection to the sshd, DATA the engine's stream. CONTROL brings one line of JSON, {key, host_key,
forward: [address, port]}, and takes one, {} or {error}. Then bytes go both ways until either end closes. COUNTERS is
:data:`bench.migration.ssh.COUNTERS`. Nothing is queued here: ``Channel.send`` returns when its packet was written to
LINK.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import mmap
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

import paramiko

COUNTERS: Final = struct.Struct("=QQ")
READ_BYTES: Final = 128 << 10
WINDOW_BYTES: Final = 16 << 20  # what the sshd may send us before we have read it
STEP_S: Final = 15.0
CIPHERS: Final = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr")
USER: Final = "root"


class _Refused(Exception):
    """No tunnel; ``str()`` says why."""


def open_tunnel(link: socket.socket, order: Mapping[str, Any]) -> tuple[paramiko.Transport, paramiko.Channel]:
    """Exchange keys, check the host's, authenticate, and have the sshd connect to the destination engine.

    :raises _Refused: nothing but the handshake was sent by then.
    """
    transport = paramiko.Transport(link, default_window_size=WINDOW_BYTES)
    options = transport.get_security_options()
    options.ciphers = tuple(name for name in CIPHERS if name in options.ciphers)
    options.key_types = ("ssh-ed25519",)
    try:
        transport.start_client(timeout=STEP_S)
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise _Refused(f"no key exchange: {error}") from error
    found = transport.get_remote_server_key()
    if f"{found.get_name()} {found.get_base64()}" != order["host_key"]:
        raise _Refused(f"the host key {found.fingerprint} is not the one made for this migration; nothing was sent")
    try:
        key = paramiko.Ed25519Key.from_private_key(io.StringIO(order["key"]))
        transport.auth_publickey(USER, key)
        address, port = order["forward"]
        channel = transport.open_channel("direct-tcpip", (address, port), (address, 0), timeout=STEP_S)
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise _Refused(f"{type(error).__name__}: {error}") from error
    return transport, channel


def pump(channel: paramiko.Channel, data: socket.socket, counters: mmap.mmap) -> None:
    """Carry bytes both ways until either end closes."""

    def inwards() -> None:
        with contextlib.suppress(OSError, EOFError):
            while part := channel.recv(READ_BYTES):
                data.sendall(part)
        with contextlib.suppress(OSError):
            data.shutdown(socket.SHUT_WR)

    reader = threading.Thread(target=inwards, daemon=True)
    reader.start()
    written = 0
    buffer = bytearray(READ_BYTES)
    view = memoryview(buffer)
    with contextlib.suppress(OSError, EOFError):
        while count := data.recv_into(buffer):
            done = 0
            while done < count:
                sent = channel.send(view[done:count].tobytes())
                if not sent:
                    return
                done += sent
                written += sent
                COUNTERS.pack_into(counters, 0, written, time.process_time_ns())
        channel.shutdown_write()


def main() -> int:
    """:returns: the exit status: 1 when there was no tunnel."""
    link_fd, data_fd, control_fd, counters_fd = (int(text) for text in sys.argv[1:5])
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    link, data, control = (socket.socket(fileno=fd) for fd in (link_fd, data_fd, control_fd))
    counters = mmap.mmap(counters_fd, COUNTERS.size)
    order = json.loads(control.makefile("rb").readline(1 << 16))
    try:
        transport, channel = open_tunnel(link, order)
    except _Refused as refused:
        control.sendall(json.dumps({"error": str(refused)}).encode() + b"\n")
        return 1
    control.sendall(b"{}\n")
    control.close()
    pump(channel, data, counters)
    channel.close()
    transport.close()
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # paramiko's threads have nothing left to say

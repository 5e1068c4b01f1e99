"""The relay carries bytes both ways, for several connections, and says when nobody answers."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from bench.errors import ControllerError
from bench.host.relay import Relay, split


@pytest.fixture
def echo() -> str:
    """A TCP server that answers in capitals. :returns: its address."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(4096):
                connection.sendall(data.upper())

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"tcp:127.0.0.1:{server.getsockname()[1]}"
    server.close()


def test_bytes_cross_for_every_switch(tmp_path: Path, echo: str) -> None:
    relay = Relay(tmp_path / "relay.sock", echo, tmp_path / "relay.log")
    relay.start()
    try:
        ends = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(3)]
        for number, end in enumerate(ends):
            end.settimeout(10)
            end.connect(str(relay.path))
            end.sendall(b"hello %d" % number)
            assert end.recv(100) == b"HELLO %d" % number
        ends[0].close()
        ends[1].sendall(b"still here")
        assert ends[1].recv(100) == b"STILL HERE"
        for end in ends:
            end.close()
    finally:
        relay.stop()
    relay.stop()


def test_a_controller_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        address = f"tcp:127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ControllerError, match="no controller answers"):
            Relay(tmp_path / "relay.sock", address, tmp_path / "relay.log").start()
    assert split(address)[0] == "127.0.0.1"

"""A port that is reserved for a listener is not given to a connection that asks for any."""

from __future__ import annotations

import contextlib
import socket

import pytest
from guest_lab import Namespace

from bench.errors import MigrationError
from bench.host.kernel import entered_netns, reserve_ports, set_sysctls
from bench.migration.transport import listen

pytestmark = pytest.mark.root

HOME = "127.0.0.1"
WANTED, OTHER = 50000, 50001


def connect(stack: contextlib.ExitStack, pid: int, ports: str) -> int:
    """To a server there. :returns: which of the *ports* the kernel took."""
    assert not set_sysctls({"net.ipv4.ip_local_port_range": ports}, pid)
    server = stack.enter_context(socket.create_server((HOME, 5000)))
    client = stack.enter_context(socket.create_connection((HOME, 5000), 10))
    stack.enter_context(server.accept()[0])
    return int(client.getsockname()[1])


def test_what_connects_takes_no_reserved_port() -> None:
    with contextlib.ExitStack() as stack:
        pid = Namespace(stack).pid
        assert reserve_ports(WANTED, 1, pid)
        with entered_netns(pid):
            assert connect(stack, pid, f"{WANTED} {OTHER}") == OTHER
            stack.enter_context(listen(HOME, WANTED))


def test_a_connection_that_has_the_port_keeps_a_migration_from_listening_there() -> None:
    """Why they are reserved."""
    with contextlib.ExitStack() as stack:
        pid = Namespace(stack).pid
        with entered_netns(pid):
            assert connect(stack, pid, f"{WANTED} {WANTED}") == WANTED
            with pytest.raises(MigrationError, match="Address already in use"):
                listen(HOME, WANTED)

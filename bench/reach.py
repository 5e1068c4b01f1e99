"""Whether hosts reach each other, asked before anything depends on it: under a controller that is not ours nobody knows
when its flows are there, and a migration's first connection would end in "No route to host" three seconds later.

A connection to a port where nobody listens is refused by the other host's kernel (RFC 9293 section 3.5.2), which it can
only be when address resolution, the question and the answer all get through. No process is needed for that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Final

from bench.clock import NS_PER_MS, NS_PER_S, Deadline
from bench.errors import ControllerError
from bench.host.kernel import entered_netns
from bench.units import format_duration

WAIT_NS: Final = 15 * NS_PER_S
_TRY_NS: Final = 500 * NS_PER_MS
AGAIN_NS: Final = 50 * NS_PER_MS
"""From one try to the next at least: where there is no route, or a port is shut, a connection fails at once."""
_NOBODY: Final = 1  # tcpmux (RFC 1078), which no host of a testbed serves

Pair = tuple[str, str]


def wait_reachable(
    hosts: Mapping[str, tuple[int, str]], pairs: Sequence[Pair], who: str, wait_ns: int = WAIT_NS
) -> None:
    """Until every pair has reached each other.

    :param hosts: name -> a process in its namespace, and its IPv4 address.
    :param pairs: (from, to).
    :param who: controls the network, for the message.
    :raises ControllerError: one does not within *wait_ns*: which, and what was heard.
    """
    deadline = Deadline(wait_ns)
    missing = dict.fromkeys(pairs, "")
    while missing:
        again = Deadline(AGAIN_NS)
        missing = _try({pair: (hosts[pair[0]][0], hosts[pair[1]][1]) for pair in missing})
        if missing and deadline.expired:
            here, there = first = next(pair for pair in pairs if pair in missing)
            more = f"; {len(missing)} of {len(pairs)} pairs do not" if len(pairs) > 1 else ""
            raise ControllerError(
                f"{here} does not reach {there} ({hosts[there][1]}) through the network that {who} controls: "
                f"{missing[first]}, tried for {format_duration(wait_ns)}{more}",
                "see whether it serves every switch (broadcasts of ARP, and frames in both directions)",
            )
        if missing:
            time.sleep(again.remaining_s)  # nothing tells when a network has become ready


def _try(wanted: Mapping[Pair, tuple[int, str]]) -> dict[Pair, str]:
    """One connection for each at the same time. :returns: those that were not answered, and what was heard."""
    missing: dict[Pair, str] = {}
    with contextlib.ExitStack() as stack:
        waiting: dict[int, tuple[Pair, socket.socket]] = {}
        poll = select.poll()
        for pair, (pid, address) in wanted.items():
            with entered_netns(pid):
                sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            stack.enter_context(sock)
            number = sock.connect_ex((address, _NOBODY))
            if number == errno.EINPROGRESS:
                waiting[sock.fileno()] = pair, sock
                poll.register(sock, select.POLLOUT)
            elif not _reached(number):
                missing[pair] = _named(number)
        deadline = Deadline(_TRY_NS)
        while waiting and not deadline.expired:
            for fd, _events in poll.poll(deadline.remaining_s * 1000):
                pair, sock = waiting.pop(fd)
                poll.unregister(fd)
                number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not _reached(number):
                    missing[pair] = _named(number)
        missing.update((pair, "no answer") for pair, _sock in waiting.values())
    return missing


def _reached(number: int) -> bool:
    return number in (0, errno.ECONNREFUSED)


def _named(number: int) -> str:
    """The kernel's word for it, such as ``No route to host``: nobody answered address resolution."""
    return os.strerror(number)

"""A station of the survival laboratory: many ends of connections in one process and one network namespace.

``python -m bench.survival.peer --channel-fd N``. It moves to a network namespace of its own at once and serves, in this
order: ``prepare`` {interface, role, retries2, probes} (the interface is there by then; loads the blackout),
``listen`` {ends} or ``connect`` {address, port, ends}, ``schedule`` {outages: [[number, begin_ns, end_ns]]},
(which also has the ends of pattern ``connect`` connect, each in its outage), ``end`` {numbers} (nothing more is to be
learnt of these), ``report`` {} -> {ends, dropped}.
Events up the channel: ``cell_done`` {number}. It ends with its channel.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import signal
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.clock import NS_PER_MS
from bench.errors import BenchError, GuestError
from bench.host.channel import Channel, ChannelClosed
from bench.host.kernel import CLONE_NEWNET, set_interface_up, set_sysctls, unshare
from bench.host.timer import set_timer_slack_ns
from bench.link.blackout import FIRST_PORT, Blackout
from bench.probe.loop import READABLE, Loop
from bench.survival.endpoint import Endpoint, EndSpec
from bench.timeline import Event

PORT: Final = 7
BACKLOG: Final = 4096
CONNECT_AFTER_NS: Final = 5 * NS_PER_MS  # into its outage, a connection that is to be made then is begun
_NUMBER: Final = struct.Struct("<I")


class Peer:
    """The commands of the module's docstring."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._loop = Loop()
        self._ends: dict[int, Endpoint] = {}
        self._specs: dict[int, EndSpec] = {}
        self._blackout: Blackout | None = None
        self._listener: socket.socket | None = None
        self._address = ("", 0)

    def run(self) -> None:
        """Serve until the channel ends."""
        self._loop.watch(self._channel.fileno(), READABLE, self._readable, _raise)
        with contextlib.suppress(ChannelClosed):
            self._loop.run()
        for end in self._ends.values():
            end.end()

    def _readable(self, _events: int) -> None:
        for message in self._channel.receive_ready():
            number = int(message.get("id", 0))
            try:
                command = getattr(self, f"_do_{message.get('command')}", None)
                if command is None:
                    raise GuestError(f"unknown command {str(message.get('command'))[:80]!r}")
                self._channel.send_reply(number, command(message.get("args", {})))
            except (BenchError, OSError) as error:
                self._channel.send_error(number, str(error))

    def _do_prepare(self, args: Mapping[str, Any]) -> dict[str, Any]:
        set_sysctls(
            {
                "net.ipv4.tcp_retries2": args["retries2"],
                "net.ipv4.tcp_early_retrans": 3 if args["probes"] else 0,
                # What one connection of a cell learnt must not change the next one's timers.
                "net.ipv4.tcp_no_metrics_save": 1,
            }
        )
        self._blackout = Blackout(args["interface"], "destination" if args["role"] == "client" else "source")
        return {
            "syn_retries": _sysctl("tcp_syn_retries", 6),
            "syn_linear_timeouts": _sysctl("tcp_syn_linear_timeouts", 0),
        }

    def _do_listen(self, args: Mapping[str, Any]) -> dict[str, Any]:
        self._learn(args)
        self._listener = sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", PORT))
        sock.listen(BACKLOG)
        sock.setblocking(False)
        self._loop.watch(sock.fileno(), READABLE, self._accept, _raise)
        return {}

    def _do_connect(self, args: Mapping[str, Any]) -> dict[str, Any]:
        self._learn(args)
        self._address = (args["address"], PORT)
        for spec in self._specs.values():
            if spec.pattern != "connect":
                self._connect(spec)
        return {}

    def _learn(self, args: Mapping[str, Any]) -> None:
        self._specs = {raw["number"]: EndSpec.from_json(raw) for raw in args["ends"]}

    def _connect(self, spec: EndSpec) -> None:
        end = self._ends[spec.number] = Endpoint(spec, self._loop, self._done)
        end.connect(*self._address, FIRST_PORT + spec.number)

    def _accept(self, _events: int) -> None:
        assert self._listener is not None
        sock, _peer = self._listener.accept()
        sock.setblocking(False)
        self._loop.watch(sock.fileno(), READABLE, lambda _ready: self._introduced(sock), lambda _error: None)

    def _introduced(self, sock: socket.socket) -> None:
        """The first bytes say which cell it is; a connection whose first bytes are none of ours is closed."""
        self._loop.unwatch(sock.fileno())
        data = b""
        with contextlib.suppress(OSError):
            data = sock.recv(1 << 16)
        spec = self._specs.get(_NUMBER.unpack_from(data)[0]) if len(data) >= _NUMBER.size else None
        if spec is None or spec.number in self._ends:
            sock.close()
            return
        end = self._ends[spec.number] = Endpoint(spec, self._loop, self._done)
        end.accept(sock, data[_NUMBER.size :])

    def _do_schedule(self, args: Mapping[str, Any]) -> dict[str, Any]:
        assert self._blackout is not None
        for number, begin_ns, end_ns in args["outages"]:
            spec = self._specs[number]
            self._blackout.schedule(FIRST_PORT + number, begin_ns, end_ns)
            if number in self._ends:
                self._ends[number].expect(begin_ns, end_ns)
            elif spec.pattern == "connect" and spec.first:
                self._loop.at(begin_ns + CONNECT_AFTER_NS, functools.partial(self._connect, spec), _raise)
        return {"open": sorted(number for number, end in self._ends.items() if not end.done)}

    def _do_end(self, args: Mapping[str, Any]) -> dict[str, Any]:
        for number in args["numbers"]:
            if number in self._ends:
                self._ends[number].end()
        return {}

    def _do_report(self, _args: Mapping[str, Any]) -> dict[str, Any]:
        assert self._blackout is not None
        dropped = {number: self._blackout.dropped(FIRST_PORT + number) for number in self._specs}
        return {
            "ends": [end.report() for end in self._ends.values()],
            "dropped": [[number, item.frames, list(item.bursts_ns)] for number, item in dropped.items()],
        }

    def _done(self, end: Endpoint) -> None:
        self._channel.send_event(Event.now("survival.peer", "cell_done", number=end.spec.number))


def _sysctl(name: str, otherwise: int) -> int:
    try:
        return int(Path("/proc/sys/net/ipv4", name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return otherwise


def _raise(error: Exception) -> None:
    raise error


def main(argv: Sequence[str] | None = None) -> int:
    """The station's process."""
    parser = argparse.ArgumentParser(prog="bench.survival.peer")
    parser.add_argument("--channel-fd", type=int, required=True)
    options = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the lab's to handle
    unshare(CLONE_NEWNET)
    set_interface_up("lo")
    set_timer_slack_ns(1)
    channel = Channel.from_fd(options.channel_fd, "lab")
    channel.send_event(Event.now("survival.peer", "ready"))
    Peer(channel).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())

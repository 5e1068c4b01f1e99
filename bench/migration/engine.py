"""What both engine processes share: their channel to the runner, their events, and how they begin and end.

An engine serves one migration. It ends when its channel reaches end of file or on SIGTERM; what it was doing then is
undone by the guests' dead man's switches, not by it, because an engine can be killed at any instant anyway.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.clock import Deadline, now_ns
from bench.errors import HostError, MigrationError
from bench.host.channel import Channel, ChannelClosed, Message
from bench.timeline import Event, EventWriter


class RunnerGone(Exception):
    """The channel to the runner reached its end in the middle of a migration."""


class Reporter:
    """Events to the file and up the channel; progress goes up the channel only, being no fact for the timeline.

    A runner that is gone is noticed where the channel is read, so it is no error here.
    """

    def __init__(self, path: Path, source: str, channel: Channel) -> None:
        self._source = source
        self._channel = channel
        self._writer = EventWriter(path, source, also=self._upwards)

    def __call__(self, name: str, t_ns: int | None = None, **data: Any) -> Event:
        return self._writer(name, t_ns, **data)

    def progress(self, name: str, **data: Any) -> None:
        self._upwards(Event(now_ns(), self._source, name, data))

    def _upwards(self, event: Event) -> None:
        with contextlib.suppress(ChannelClosed):
            self._channel.send_event(event)

    def close(self) -> None:
        self._writer.close()


class Engine:
    """One engine process.

    :param name: ``source`` or ``destination``.
    """

    name = ""

    def __init__(self, channel: Channel, report: Reporter) -> None:
        self.channel = channel
        self.report = report

    def run(self) -> None:
        """Serve the one migration, then wait for the end of the channel."""
        raise NotImplementedError

    def first_command(self, wanted: str) -> tuple[int, Mapping[str, Any]]:
        """Wait for the command that starts this engine; any other is refused. :returns: its id and arguments."""
        while True:
            message = self.channel.receive()
            if message.get("command") == wanted:
                return int(message.get("id", 0)), arguments(message)
            self.refuse(message, f"send '{wanted}' first")

    def refuse(self, message: Message, why: str) -> None:
        self.channel.send_error(int(message.get("id", 0)), why)

    def drain(self, on_message: Callable[[Message], None]) -> None:
        """Serve the channel until its end of file."""
        while True:
            on_message(self.channel.receive())


def arguments(message: Message) -> Mapping[str, Any]:
    """The arguments of a command. :raises HostError: when they are no object."""
    args = message.get("args", {})
    if not isinstance(args, dict):
        raise HostError("a command's args are no object")
    return args


def want(args: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    """A needed argument of a type. :raises MigrationError: when it is missing or of another type."""
    value = args.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise MigrationError(f"{where}: {key} must be of type {kind.__name__}, not {str(value)[:80]!r}")
    return value


def reason_of(error: BaseException) -> str:
    """One line for ``reason``: the message of an error that explains itself, else its type as well."""
    return str(getattr(error, "message", "") or f"{type(error).__name__}: {error}")[:1000]


def log(text: str) -> None:
    """A line for the engine's log file."""
    sys.stderr.write(f"{time.monotonic():.6f} {text}\n")


def engine_main(build: Callable[[Channel, Reporter], Engine], name: str) -> int:
    """``main`` of an engine process: arguments, log, channel, events.

    :param name: ``source`` or ``destination``; its events come from ``engine.<name>``.
    """
    parser = argparse.ArgumentParser(prog=f"bench.migration.{name}")
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    options = parser.parse_args()
    sys.stderr = options.log.open("a", encoding="utf-8", buffering=1)
    channel = Channel.from_fd(options.channel_fd, "runner")
    report = Reporter(options.events, f"engine.{name}", channel)
    try:
        build(channel, report).run()
    except (ChannelClosed, RunnerGone):
        return 0
    except Exception:
        traceback.print_exc(file=sys.stderr)
        return 1
    finally:
        report.close()
    return 0


def remaining(at_ns: int) -> Deadline:
    """A deadline at a point of CLOCK_MONOTONIC."""
    return Deadline(max(0, at_ns - now_ns()))

"""A storage server: ``python -m bench.storage.server --channel-fd N --events FILE --name HOST``.

Started in the network namespace of the storage host (or, for local disks, of a hypervisor). The command ``serve``
{address, port, directory, disks: [:class:`DiskSpec`], rate_bytes_per_s, mend} -> {disks: {name: size_bytes}, port,
pids} makes or checks the images, starts a qemu-nbd for each on a Unix socket, and puts the fence
(:mod:`bench.storage.fence`) on *address*:*port*. Then ``stats`` -> {guests: {guest: {holder, generation, ...}}, pids}
until its channel ends. A qemu-nbd that dies is started again, after its image was mended.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bench.clock import NS_PER_S, Deadline
from bench.errors import BenchError, StorageError
from bench.host.channel import Channel, ChannelClosed, Message
from bench.host.kernel import set_parent_death_signal
from bench.storage import images
from bench.storage.fence import READ_AHEAD_BYTES, Fence
from bench.storage.images import FORMATS, DiskSpec, LoopDevice
from bench.timeline import EventWriter

START_NS: Final = 10 * NS_PER_S
BACKLOG: Final = 64


class ImageServer:
    """One qemu-nbd, on a Unix socket, started again when it dies."""

    def __init__(self, spec: DiskSpec, path: Path, socket_path: Path) -> None:
        self.spec = spec
        self.path = path
        self.socket_path = socket_path
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it and wait until it listens. :raises StorageError: when it ends instead."""
        self.socket_path.unlink(missing_ok=True)
        raw = self.spec.kind == "pass-through"
        deadline = Deadline(START_NS)
        while True:
            self.process = await asyncio.create_subprocess_exec(
                "qemu-nbd",
                "--persistent",
                "--shared=0",
                f"--socket={self.socket_path}",
                f"--format={'raw' if raw else FORMATS[self.spec.format]}",
                "--cache=writeback",
                str(self.path),
                stdin=asyncio.subprocess.DEVNULL,
                preexec_fn=functools.partial(set_parent_death_signal, signal.SIGKILL),
            )
            while self.process.returncode is None and not _listens(self.socket_path):
                if deadline.expired:
                    self.process.kill()
                    raise StorageError(f"qemu-nbd of {self.path} does not listen within {START_NS / NS_PER_S:g} s")
                with contextlib.suppress(asyncio.TimeoutError):  # nothing tells when it listens
                    await asyncio.wait_for(asyncio.shield(self.process.wait()), 0.005)
            if self.process.returncode is None:
                return
            # Its predecessor may still be on its way out, and hold the image's lock.
            if deadline.expired or self.process.returncode < 0:
                raise StorageError(f"qemu-nbd of {self.path} ended with {self.process.returncode}; see the log")
            await asyncio.sleep(0.1)

    async def keep(self, log: Any) -> None:
        """Start it again whenever it ends."""
        while True:
            assert self.process is not None
            status = await self.process.wait()
            log(f"qemu-nbd of {self.path} ended with {status}")
            try:
                if self.spec.kind != "pass-through":
                    await asyncio.get_running_loop().run_in_executor(None, images.mend, self.path, self.spec.format)
                await self.start()
            except BenchError as error:
                log(error.message)
                await asyncio.sleep(1)  # the next try may find the lock free

    def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


class Server:
    """The process: prepared by ``serve``, then runs on asyncio until its channel ends."""

    def __init__(self, channel: Channel, events: EventWriter) -> None:
        self._channel = channel
        self._events = events
        self._devices: list[LoopDevice] = []
        self._held: list[int] = []
        self._servers: list[ImageServer] = []
        self._fence: Fence

    def run(self) -> None:
        """Until the channel's end of file."""
        message = self._channel.receive()
        number, args = int(message.get("id", 0)), message.get("args", {})
        try:
            if message.get("command") != "serve" or not isinstance(args, dict):
                raise StorageError("send 'serve' first")
            self._prepare(args)
        except (BenchError, OSError, KeyError, TypeError, ValueError) as error:
            self._channel.send_error(number, error.message if isinstance(error, BenchError) else repr(error))
            return
        asyncio.run(self._serve(number, args))

    def _prepare(self, args: Mapping[str, Any]) -> None:
        """Images and devices, before anything listens. :raises StorageError: what is wrong with which."""
        directory = Path(str(args["directory"]))
        directory.mkdir(mode=0o700, exist_ok=True, parents=True)
        self._sizes: dict[str, int] = {}
        seen: dict[tuple[int, int], DiskSpec] = {}
        for raw in args["disks"]:
            spec = DiskSpec.from_json(raw)
            path = spec.path
            if path is None:
                path = directory / f"{spec.guest}.{spec.name}.{spec.format}"
                if not path.exists():
                    images.make(path, spec.format, spec.size_bytes)
                elif args.get("mend"):
                    images.mend(path, spec.format)
                size_bytes = spec.size_bytes
                if spec.kind == "pass-through":
                    device = LoopDevice(path, directory)
                    self._devices.append(device)
                    path = device.path
            else:
                if args.get("mend") and spec.kind != "pass-through":
                    images.mend(path, spec.format)
                size_bytes = images.check_existing(path, spec.kind, spec.format)
            other = seen.setdefault(images.identity(path), spec)
            if other is not spec:
                raise StorageError(f"{path}: used by {other.guest}/{other.name} and by {spec.guest}/{spec.name}")
            if spec.kind == "pass-through" and spec.path is not None:
                self._held.append(images.reserve(path))  # until this process ends
            self._sizes[f"{spec.guest}/{spec.name}"] = size_bytes
            self._servers.append(ImageServer(spec, path, directory / f"{spec.guest}.{spec.name}.sock"))

    async def _serve(self, number: int, args: Mapping[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        keepers: list[asyncio.Task[None]] = []
        try:
            for server in self._servers:
                await server.start()
            backends = {(one.spec.guest, one.spec.name): one.socket_path for one in self._servers}
            self._fence = Fence(
                backends, Path(str(args["directory"])), self._events, int(args.get("rate_bytes_per_s", 0))
            )
            listener = await asyncio.start_server(
                self._accepted, str(args["address"]), int(args["port"]), limit=READ_AHEAD_BYTES, backlog=BACKLOG
            )
        except (BenchError, OSError) as error:
            self._channel.send_error(number, error.message if isinstance(error, BenchError) else str(error))
            self._stop()
            return
        keepers = [asyncio.ensure_future(server.keep(_log)) for server in self._servers]
        port = listener.sockets[0].getsockname()[1]
        self._channel.send_reply(number, {"disks": self._sizes, "port": port, "pids": self._pids()})
        loop.add_reader(self._channel.fileno(), self._command, ended)
        loop.add_signal_handler(signal.SIGTERM, _end, ended)
        await ended
        for keeper in keepers:
            keeper.cancel()
        listener.close()
        self._stop()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await self._fence.serve(reader, writer)

    def _pids(self) -> dict[str, int]:
        return {
            f"{one.spec.guest}/{one.spec.name}": one.process.pid for one in self._servers if one.process is not None
        }

    def _command(self, ended: asyncio.Future[None]) -> None:
        try:
            messages = self._channel.receive_ready()
        except ChannelClosed:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            _end(ended)
            return
        for message in messages:
            self._answer(message)

    def _answer(self, message: Message) -> None:
        number = int(message.get("id", 0))
        if message.get("command") != "stats":
            self._channel.send_error(number, "unknown command")
            return
        value = {
            guest: {**grant.to_json(), **asdict(self._fence.counters[guest])}
            for guest, grant in self._fence.grants.items()
        }
        self._channel.send_reply(number, {"guests": value, "pids": self._pids()})

    def _stop(self) -> None:
        for server in self._servers:
            server.stop()
        for device in self._devices:
            device.close()


def _end(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


def _log(text: str) -> None:
    sys.stderr.write(text + "\n")


def main() -> int:
    """The process."""
    parser = argparse.ArgumentParser(prog="bench.storage.server")
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--name", required=True)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the runner decides what stops when
    channel = Channel.from_fd(options.channel_fd, "runner")
    events = EventWriter(options.events, f"storage.{options.name}")
    try:
        Server(channel, events).run()
    except ChannelClosed:
        return 0
    except Exception:
        traceback.print_exc(file=sys.stderr)
        return 1
    finally:
        events.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

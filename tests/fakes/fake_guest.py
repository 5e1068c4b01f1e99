"""A guest process that does only what a migration needs of it: memory that is written, a lease, a life of its own.

The same control socket as ``bench.guest.process``, in one process, without a network. Faults are ordered by its
environment: ``FAKE_GUEST_FAULT`` = load-fails | load-hangs | take-hangs-after-claim | pause-fails | dies-in-round |
deaf (nobody can connect).
Its device state is a JSON object with the writer's counter and a check sum, so that a test sees it arrive.
"""

import argparse
import json
import os
import select
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np

from bench.clock import now_ns
from bench.host.channel import Channel, ChannelClosed
from bench.host.kernel import set_parent_death_signal
from bench.host.lease import Lease
from bench.memory.image import GuestMemory
from bench.memory.uffd import arm_write_tracking
from bench.timeline import EventWriter


class Writer(threading.Thread):
    """Writes pages at a rate, in a seeded order; stops between two writes."""

    def __init__(self, memory: GuestMemory, rate_pages: int, span_pages: int, counter: int) -> None:
        super().__init__(daemon=True)
        self.memory = memory
        self.rate = rate_pages
        self.span = max(1, span_pages)
        self.counter = counter
        self.halt = threading.Event()

    def run(self) -> None:
        begin_ns, first = now_ns(), self.counter
        while not self.halt.wait(0.001):
            due = first + (now_ns() - begin_ns) * self.rate // 10**9
            while self.counter < due and not self.halt.is_set():
                self.counter += 1
                self.memory.words[(self.counter * 7919) % self.span, self.counter % 512] = self.counter

    def stop(self) -> None:
        self.halt.set()
        if self.is_alive():
            self.join()


class FakeGuest:
    def __init__(self, socket_path: str, events: str) -> None:
        self.fault = os.environ.get("FAKE_GUEST_FAULT", "")
        self.report = EventWriter(Path(events), "guest.fake")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(socket_path)
        self.listener.listen(5)
        self.channels: list[Channel] = []
        self.state = "new"
        self.pauser: Channel | None = None
        self.creator: Channel | None = None
        self.tracker: Channel | None = None
        self.writer: Writer | None = None
        self.tracking = None
        self.counter = 0
        self.door = True
        self.taken = False

    def serve(self) -> None:
        while True:
            for ready in select.select([self.listener, *self.channels], [], [])[0]:
                if ready is self.listener:
                    self.channels.append(Channel(self.listener.accept()[0], "engine"))
                    continue
                try:
                    for message in ready.receive_ready():
                        self.command(ready, message)
                except ChannelClosed:
                    self.channels.remove(ready)
                    self.closed(ready)

    def closed(self, channel: Channel) -> None:
        if channel is self.pauser:
            self.pauser = None
            if not self.resume():
                self.leave()
        if channel is self.tracker:
            self.do_track({"enable": False})
            self.door = True
        if channel is self.creator and self.state in ("skeleton", "loaded"):
            self.leave()

    def leave(self) -> None:
        self.report("stopped")
        sys.stderr.flush()
        os._exit(0)

    def command(self, channel: Channel, message: dict) -> None:
        name, args = message["command"], message.get("args", {})
        try:
            if name == "configure":
                self.creator = channel
            if name == "pause":
                self.pauser = channel
            if name == "track":
                self.tracker = channel
            value, fds = getattr(self, "do_" + name)(args)
        except Exception as error:
            channel.send_error(message["id"], f"{type(error).__name__}: {error}")
            return
        channel.send_reply(message["id"], value, fds)
        if name == "quit":
            self.leave()

    def run_writer(self) -> None:
        workload = self.config["workload"]
        self.writer = Writer(
            self.memory,
            workload["rate_bytes_per_s"] // 4096,
            workload["working_set_bytes"] // 4096,
            self.counter,
        )
        self.writer.start()
        self.state = "running"

    def halt_writer(self) -> None:
        if self.writer is not None:
            self.writer.stop()
            self.counter = self.writer.counter
            self.writer = None

    def resume(self) -> bool:
        if self.state == "running":
            return True
        lease = Lease(self.lease.path)
        if not lease.claim(self.me, self.me, self.generation):
            return False
        self.pauser = None
        self.run_writer()
        self.report("rolled_back")
        return True

    def do_configure(self, args):
        self.config = args
        self.me = args["lease"]["me"]
        self.lease = Lease(args["lease"]["path"])
        fds = self.creator.take_fds(len(self.creator.fds))
        self.memory = GuestMemory.from_fd(fds[0]) if fds else GuestMemory.create(args["memory_bytes"])
        self.memory.populate()
        if args["skeleton"]:
            self.state = "skeleton"
            set_parent_death_signal(0)
        else:
            self.memory.fill(args["content"], args["seed"])
        return {"pid": os.getpid()}, ()

    def do_start(self, _args):
        state = self.lease.read()
        assert self.lease.claim(self.me, state.owner, state.generation)
        self.run_writer()
        return {}, ()

    def do_memory(self, _args):
        writers = [{"pid": os.getpid(), "base": self.memory.base}]
        return {"bytes": self.memory.size_bytes, "writers": writers}, (self.memory.fd,)

    def do_track(self, args):
        if self.tracking is not None:
            self.tracking.disarm()
            self.tracking = None
        if args["enable"] and args["method"] == "pagemap-scan":
            self.tracking = arm_write_tracking(self.memory.base, self.memory.size_bytes)
        if args["enable"] and self.fault == "dies-in-round":
            threading.Timer(0.3, os._exit, (1,)).start()
        return {"writers": [{"pid": os.getpid(), "base": self.memory.base}]}, ()

    def do_close_door(self, _args):
        self.door = False
        return {"embryonic": 0}, ()

    def do_open_door(self, _args):
        self.door = True
        return {}, ()

    def do_pause(self, _args):
        if self.fault == "pause-fails":
            raise RuntimeError("ordered to fail")
        begin_ns = now_ns()
        self.halt_writer()
        self.state = "paused"
        state = self.lease.read()
        self.generation = state.generation
        blob = json.dumps({"counter": self.counter, "sum": int(self.memory.words.sum(dtype=np.uint64))}).encode()
        fd = os.memfd_create("blob")
        os.write(fd, blob)
        keys = ("pause_begin_ns", "vcpus_stopped_ns", "net_cut_ns", "dumped_ns")
        times = dict(zip(keys, (begin_ns, now_ns(), now_ns(), now_ns()), strict=True))
        value = {"device_bytes": len(blob), "connections": 0, "times": times, "embryonic": 0}
        return {**value, "owner": state.owner, "generation": state.generation}, (fd,)

    def do_resume(self, _args):
        return {"resumed": self.resume(), "owner": self.lease.read().owner}, ()

    def do_load(self, _args):
        if self.fault == "load-fails":
            raise RuntimeError("ordered to fail")
        if self.fault == "load-hangs":
            time.sleep(600)
        fd = self.creator.take_fds(1)[0]
        blob = json.loads(os.pread(fd, 1 << 20, 0))
        os.close(fd)
        self.counter, self.sum = blob["counter"], blob["sum"]
        self.state = "loaded"
        return {"connections": 0, "loaded_ns": now_ns()}, ()

    def do_take(self, args):
        assert int(self.memory.words.sum(dtype=np.uint64)) == self.sum, "memory differs"
        expect = args["expect"]
        if not self.lease.claim(self.me, expect["owner"], expect["generation"]):
            return {
                "taken": False,
                "owner": self.lease.read().owner,
                **dict.fromkeys(("ownership_ns", "resumed_ns", "port_wired_ns", "announce_ns"), 0),
            }, ()
        self.taken = True
        self.run_writer()
        if self.fault == "take-hangs-after-claim":
            time.sleep(600)
        stamps = dict.fromkeys(("ownership_ns", "resumed_ns", "port_wired_ns", "announce_ns"), now_ns())
        return {"taken": True, "owner": self.me, **stamps}, ()

    def do_quit(self, _args):
        self.halt_writer()
        return {}, ()

    def do_stats(self, _args):
        return {
            "state": self.state,
            "door": self.door,
            "tracking": self.tracking is not None,
            "pages_written": self.writer.counter if self.writer else self.counter,
        }, ()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    for name in ("--socket", "--events", "--log"):
        parser.add_argument(name, required=True)
    options = parser.parse_args(arguments)
    sys.stderr = open(options.log, "a", buffering=1)  # noqa: SIM115, PTH123
    if os.environ.get("FAKE_GUEST_FAULT") == "deaf":
        Path(options.socket).write_text(str(os.getpid()), encoding="utf-8")  # no socket: nobody can connect
        time.sleep(600)
    FakeGuest(options.socket, options.events).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())

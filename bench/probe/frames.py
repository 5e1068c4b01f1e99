"""The frame watcher: what crosses every switch port of a run, seen by one tcpdump on all interfaces at once.

tcpdump writes the first bytes of every frame that concerns a guest to a bounded file; after the run the file becomes
:class:`Frames`, stamped with CLOCK_MONOTONIC. The kernel stamps frames with CLOCK_REALTIME; the offset between the two
clocks is measured at the start and at the end. (Both are slewed alike, so the offset is constant unless somebody *set*
the clock, which becomes a reason not to trust the run.)

A frame that comes from a host is stamped when it arrives at the switch port's veth, direction *in*; one that leaves
towards a host when it is handed to the port, direction *out*. On the emulated network both are the cable's near end.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

import numpy as np

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, now_ns
from bench.errors import ProbeError
from bench.probe.pcap import SNAP_BYTES, parse_frames
from bench.records import FRAME, StructuredArray, ip_to_int, mac_to_int

MAX_FRAMES: Final = 4_000_000
MAX_CLOCK_STEP_NS: Final = 100_000
RING_KIB: Final = 64 << 10
_START_LIMIT_NS: Final = 10 * NS_PER_S
_STOP_LIMIT_NS: Final = 5 * NS_PER_S
_ASK_INTERVAL_NS: Final = 50 * NS_PER_MS
_MAX_STDERR_BYTES: Final = 1 << 20
_COUNTS: Final = re.compile(
    r"(\d+) packets? captured\D+?(\d+) packets? received by filter\D+?(\d+) packets? dropped by kernel"
)


@dataclass(frozen=True)
class Frames:
    """What the watcher saw.

    :ivar records: :data:`bench.records.FRAME`, ordered by time.
    :ivar interfaces: names; ``records["interface"]`` indexes it.
    :ivar dropped: frames that the kernel could not keep for tcpdump.
    :ivar reasons: why these records should not be trusted; empty when nothing speaks against them.
    """

    records: StructuredArray = field(default_factory=lambda: np.zeros(0, FRAME))
    interfaces: tuple[str, ...] = ()
    dropped: int = 0
    reasons: tuple[str, ...] = ()

    def at(self, interface: str, direction: int | None = None) -> StructuredArray:
        """The records of one interface (none when it was never seen), of one direction when given."""
        if interface not in self.interfaces:
            return self.records[:0]
        chosen = self.records["interface"] == self.interfaces.index(interface)
        if direction is not None:
            chosen &= self.records["direction"] == direction
        found: StructuredArray = self.records[chosen]
        return found


def realtime_offset_ns() -> int:
    """CLOCK_REALTIME less CLOCK_MONOTONIC, from the tightest of several readings."""
    best_width, best = 1 << 62, 0
    for _ in range(32):
        before = now_ns()
        real = time.time_ns()
        after = now_ns()
        if after - before < best_width:
            best_width, best = after - before, real - (before + after) // 2
    return best


class FrameWatcher:
    """One capture of this process's network namespace: start it before the guest runs, stop it after the last flow.

    :param path: where tcpdump writes; removed by whoever owns the run directory.
    :param guest_addresses: IPv4 addresses of the guests; IP frames from or to them are kept, and all ARP and RARP.
    :param guest_macs: MAC addresses of the guests, to know their announcements.
    :param max_frames: where the capture ends by itself, which becomes a reason not to trust it.
    """

    def __init__(
        self,
        path: Path,
        guest_addresses: Sequence[str],
        guest_macs: Sequence[str],
        *,
        max_frames: int = MAX_FRAMES,
    ) -> None:
        for address in guest_addresses:
            ip_to_int(address)
        for mac in guest_macs:
            mac_to_int(mac)
        self._path = path
        self._addresses = tuple(guest_addresses)
        self._macs = tuple(guest_macs)
        self._max_frames = max_frames
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr = ""
        self._offset_ns = 0
        self._names: dict[int, str] = {}
        self._frames: Frames | None = None

    def _argv(self) -> list[str]:
        hosts = [word for address in self._addresses for word in ("or", "host", address)]
        return [
            *("tcpdump", "-i", "any", "-y", "LINUX_SLL2", "--time-stamp-precision=nano", "-nn", "-Z", "root"),
            *("-s", str(SNAP_BYTES), "-B", str(RING_KIB), "-c", str(self._max_frames), "-w", str(self._path)),
            # A frame that leaves with its 802.1Q tag is one of 0x8100 to the kernel's filter, and what it holds to
            # libpcap's own, which filters what came before the kernel's was in place.
            *("arp", "or", "rarp", "or", "(", "icmp6", "and", "ip6[40]=136", ")", "or", "ether", "proto", "0x8100"),
            *hosts,
        ]

    def start(self, deadline: Deadline | None = None) -> None:
        """Returns once tcpdump listens. :raises ProbeError: when it does not."""
        if self._process is not None:
            raise ProbeError("the frame watcher was started already")
        deadline = deadline or Deadline(_START_LIMIT_NS)
        self._note_names()
        self._offset_ns = realtime_offset_ns()
        self._process = start_tcpdump(self._argv())
        try:
            self._stderr = wait_listening(self._process, deadline)
        except BaseException:
            self.close()
            raise

    def _note_names(self) -> None:
        """Which name each interface index has; asked at both ends of the run because ports may come and go."""
        self._names.update(socket.if_nameindex())

    def stop(self, deadline: Deadline | None = None) -> Frames:
        """End the capture after everything so far is in it; a second call returns the same frames.

        :raises ProbeError: when it was not started, died, or wrote no capture.
        """
        if self._frames is not None:
            return self._frames
        process = self._process
        if process is None:
            raise ProbeError("the frame watcher was not started")
        try:
            self._note_names()
            status, stderr = end_tcpdump(process, self._stderr, deadline or Deadline(_STOP_LIMIT_NS))
        finally:
            self.close()
        end_offset_ns = realtime_offset_ns()
        counts = _COUNTS.findall(stderr)
        if status not in (0, -signal.SIGINT) and not counts:
            raise ProbeError(f"tcpdump ended with status {status}: {stderr[-500:].strip()}")
        self._frames = self._collect(counts, end_offset_ns)
        return self._frames

    def _collect(self, counts: Sequence[tuple[str, str, str]], end_offset_ns: int) -> Frames:
        reasons = []
        dropped = int(counts[-1][2]) if counts else 0
        if not counts:
            reasons.append("frames: tcpdump did not say how many frames the kernel dropped")
        if dropped:
            reasons.append(
                f"frames: the kernel dropped {dropped} of {counts[-1][1]} frames that the watcher should see"
            )
        step = end_offset_ns - self._offset_ns
        if abs(step) > MAX_CLOCK_STEP_NS:
            reasons.append(f"frames: the system's clock was set during the run (by {step} ns)")
        records, indexes = parse_frames(
            read_bounded(self._path, 24 + self._max_frames * (16 + SNAP_BYTES)), self._addresses, self._macs
        )
        if len(records) >= self._max_frames:
            reasons.append(f"frames: the watcher stopped at its limit of {self._max_frames} frames")
        records["t_ns"] -= self._offset_ns
        known, records["interface"] = np.unique(indexes, return_inverse=True)
        names = tuple(self._names.get(int(index), f"#{index}") for index in known)
        records = records[np.argsort(records["t_ns"], kind="stable")]
        return Frames(records, names, dropped, tuple(reasons))

    def close(self) -> None:
        """End tcpdump whatever it does. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()


def start_tcpdump(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    """:raises ProbeError: when it is not installed."""
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError as error:
        raise ProbeError(f"{argv[0]}: {error.strerror}", "install the package tcpdump") from error
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    return process


def _read_text(stream: IO[bytes] | None, deadline: Deadline) -> str:
    """What comes next on a non-blocking stream, "" at its end or at the deadline."""
    if stream is None or not select.select([stream], [], [], deadline.remaining_s)[0]:
        return ""
    with contextlib.suppress(BlockingIOError):
        return os.read(stream.fileno(), 1 << 16).decode(errors="replace")
    return ""


def wait_listening(process: subprocess.Popen[bytes], deadline: Deadline) -> str:
    """Wait until tcpdump says on standard error that it listens; returns what it said.

    :raises ProbeError: when it ends or does not say so in time.
    """
    text = ""
    while "listening on " not in text:
        more = _read_text(process.stderr, deadline)
        if not more:
            status = process.poll()
            what = "does not listen" if status is None else f"ended with status {status}"
            raise ProbeError(f"tcpdump {what}: {text[-500:].strip()}")
        text += more
    return text


def end_tcpdump(process: subprocess.Popen[bytes], text: str, deadline: Deadline) -> tuple[int, str]:
    """Let tcpdump take what the kernel holds for it, then end it; returns its status and its standard error.

    The kernel hands frames over in blocks, up to a second late, and SIGINT loses what is not handed over. So tcpdump
    is first asked for its counts (SIGUSR1), until it has captured all that the filter had received at the first answer.
    """
    wanted: int | None = None
    done = 0
    while process.poll() is None and not deadline.expired:
        seen = len(_COUNTS.findall(text))
        process.send_signal(signal.SIGUSR1)
        answer = Deadline(min(NS_PER_S, deadline.remaining_ns))
        while len(_COUNTS.findall(text)) == seen and not answer.expired and len(text) < _MAX_STDERR_BYTES:
            more = _read_text(process.stderr, answer)
            if not more:
                break
            text += more
        found = _COUNTS.findall(text)
        if len(found) == seen:
            break
        captured, received, dropped = (int(number) for number in found[-1])
        wanted = received if wanted is None else wanted
        done = captured + dropped
        if done >= wanted:
            break
        time.sleep(_ASK_INTERVAL_NS / NS_PER_S)  # nothing announces a handed-over block to a third process
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    final = Deadline(_STOP_LIMIT_NS)
    try:
        status = process.wait(final.remaining_s)
    except subprocess.TimeoutExpired:
        process.kill()
        status = process.wait()
    while len(text) < _MAX_STDERR_BYTES and (more := _read_text(process.stderr, Deadline(0))):
        text += more
    return status, text


def read_bounded(path: Path, limit: int) -> bytes:
    """:raises ProbeError: when the file is missing or larger than *limit* bytes."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ProbeError(f"{path}: {error.strerror}") from error
    if len(data) > limit:
        raise ProbeError(f"{path}: more than {limit} bytes")
    return data

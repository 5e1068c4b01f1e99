"""Whole frames of the guests' ports as pcapng, one file for each port, for a look with Wireshark.

tcpdump writes classic pcap while the run lasts; :meth:`Captures.stop` turns each file into pcapng (IETF draft
"pcapng", https://www.ietf.org/archive/id/draft-ietf-opsawg-pcapng-03.html) that names its interface. Time stamps are
the calendar's (CLOCK_REALTIME) in ns, because that is what readers of captures expect.
"""

from __future__ import annotations

import contextlib
import resource
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from bench.clock import NS_PER_S, Deadline
from bench.errors import BenchError, ProbeError
from bench.host.commands import in_netns
from bench.probe.frames import end_tcpdump, start_tcpdump, wait_listening

MAX_CAPTURE_BYTES: Final = 2 << 30
_START_LIMIT_NS: Final = 10 * NS_PER_S
_STOP_LIMIT_NS: Final = 5 * NS_PER_S
_FILE_HEADER: Final = struct.Struct("=IHHiIII")
_RECORD: Final = struct.Struct("=IIII")
_MAGIC_NS: Final = 0xA1B23C4D
_MAX_FRAME_BYTES: Final = 1 << 18

_SECTION_BLOCK: Final = 0x0A0D0D0A
_INTERFACE_BLOCK: Final = 1
_PACKET_BLOCK: Final = 6
_BYTE_ORDER: Final = 0x1A2B3C4D
_OPTION_IF_NAME: Final = 2
_OPTION_IF_TSRESOL: Final = 9


@dataclass(frozen=True, slots=True)
class CapturePort:
    """One port to capture.

    :param name: the file's name without ending, such as ``g1@h1`` (guest g1's port in hypervisor h1).
    :param interface: the interface's name in its namespace.
    :param netns_pid: a process in that network namespace; None for this process's.
    :param only: a pcap-filter(7) expression as words; empty for every frame.
    """

    name: str
    interface: str
    netns_pid: int | None = None
    only: tuple[str, ...] = ()


class Captures:
    """The captures of one run; each at most *max_bytes*, where it ends by itself (a reason in :attr:`reasons`)."""

    def __init__(self, directory: Path, *, max_bytes: int = MAX_CAPTURE_BYTES) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._running: dict[str, tuple[CapturePort, subprocess.Popen[bytes], str]] = {}
        self.reasons: list[str] = []

    def start(self, port: CapturePort, deadline: Deadline | None = None) -> None:
        """Returns once it listens; the interface must exist. :raises ProbeError: when it does not start."""
        if "/" in port.name or port.name in self._running:
            raise ProbeError(f"no second capture, and none with a path: {port.name!r}")
        argv = ["tcpdump", "-i", port.interface, "--time-stamp-precision=nano", "-nn", "-Z", "root", "-B", "16384"]
        process = start_tcpdump(in_netns([*argv, "-w", str(self._raw(port)), *port.only], port.netns_pid))
        self._running[port.name] = (port, process, "")
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (self._max_bytes, self._max_bytes))
        try:
            said = wait_listening(process, deadline or Deadline(_START_LIMIT_NS))
        except BaseException:
            del self._running[port.name]
            _end(process)
            raise
        self._running[port.name] = (port, process, said)

    def _raw(self, port: CapturePort) -> Path:
        return self._directory / f".{port.name}.pcap"

    def stop(self) -> list[Path]:
        """End all captures; returns the pcapng files. Idempotent; what one capture does wrong is a reason, no error."""
        written = []
        while self._running:
            _name, (port, process, said) = self._running.popitem()
            try:
                status, _text = end_tcpdump(process, said, Deadline(_STOP_LIMIT_NS))
                if status:
                    self.reasons.append(f"capture {port.name}: tcpdump ended early with status {status}")
                written.append(self._convert(port))
            except (BenchError, OSError) as error:
                self.reasons.append(f"capture {port.name}: {error}")
            finally:
                _end(process)
                self._raw(port).unlink(missing_ok=True)
        return sorted(written)

    def _convert(self, port: CapturePort) -> Path:
        path = self._directory / f"{port.name}.pcapng"
        with self._raw(port).open("rb") as source, path.open("wb") as target:
            pcap_to_pcapng(source, target, port.name)
        return path


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    if process.stderr is not None:
        with contextlib.suppress(OSError):
            process.stderr.close()


def _block(kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = len(body) + 12
    return struct.pack("=II", kind, length) + body + struct.pack("=I", length)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("=HH", code, len(value)) + value + bytes(-len(value) % 4)


def pcap_to_pcapng(source: IO[bytes], target: IO[bytes], interface: str) -> int:
    """Copy a classic pcap with ns stamps, in this machine's byte order, to pcapng; returns the number of frames.

    An incomplete last frame is left out. :raises ProbeError: when *source* is no such file.
    """
    header = source.read(_FILE_HEADER.size)
    if len(header) < _FILE_HEADER.size:
        raise ProbeError("the capture has no file header")
    magic, _major, _minor, _zone, _accuracy, snap, linktype = _FILE_HEADER.unpack(header)
    if magic != _MAGIC_NS:
        raise ProbeError(f"the capture has magic {magic:#x}, not that of pcap in ns")
    target.write(_block(_SECTION_BLOCK, struct.pack("=IHHq", _BYTE_ORDER, 1, 0, -1)))
    options = _option(_OPTION_IF_NAME, interface.encode()) + _option(_OPTION_IF_TSRESOL, b"\x09") + _option(0, b"")
    target.write(_block(_INTERFACE_BLOCK, struct.pack("=HHI", linktype & 0xFFFF, 0, snap) + options))
    count = 0
    while len(head := source.read(_RECORD.size)) == _RECORD.size:
        seconds, nanoseconds, captured, original = _RECORD.unpack(head)
        if captured > _MAX_FRAME_BYTES:
            raise ProbeError(f"the capture is broken: a frame of {captured} bytes")
        data = source.read(captured)
        if len(data) < captured:
            break
        stamp = seconds * NS_PER_S + nanoseconds
        fields = struct.pack("=IIIII", 0, stamp >> 32, stamp & 0xFFFFFFFF, captured, original)
        target.write(_block(_PACKET_BLOCK, fields + data))
        count += 1
    return count

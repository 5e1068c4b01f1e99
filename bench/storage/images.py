"""Disk images and devices: made for a run, or checked before they are used.

Formats are those of qemu-img: ``raw``, ``qcow2``, ``vhd`` (which qemu calls vpc) and ``vhdx``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.clock import NS_PER_S, Deadline
from bench.errors import CommandError, MachineError, StorageError
from bench.host.commands import run

COMMAND_NS: Final = 60 * NS_PER_S
FORMATS: Final[Mapping[str, str]] = {"raw": "raw", "qcow2": "qcow2", "vhd": "vpc", "vhdx": "vhdx"}
CHECKED: Final = ("qcow2", "vhdx")
"""Formats that `qemu-img check` knows."""
_CHECK_BYTES: Final = 64 << 20  # of what it says: a line for each cluster that is wrong
_LEAKS: Final = 3  # its exit status: leaked clusters alone, see qemu-img(1)
SPARE_BYTES: Final = 16 << 20  # left free beside a new image
KINDS: Final = ("shared", "pass-through", "local")

# linux/loop.h
_LOOP_SET_FD, _LOOP_CLR_FD, _LOOP_SET_STATUS64, _LOOP_CTL_GET_FREE = 0x4C00, 0x4C01, 0x4C04, 0x4C82
_LOOP_INFO64: Final = struct.Struct("5Q4I64s64s32s2Q")
_AUTOCLEAR: Final = 4
_LOOP_MAJOR: Final = 7


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """One disk of a guest.

    :param kind: one of :data:`KINDS`.
    :param format: one of :data:`FORMATS`; ``raw`` for pass-through.
    :param path: an image or block device that is there; None: one is made.
    :param size_bytes: of one to be made; 0 with *path*.
    """

    guest: str
    name: str
    kind: str
    format: str
    size_bytes: int
    path: Path | None = None

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> DiskSpec:
        """:raises StorageError: naming what is missing or wrong."""
        try:
            path = raw.get("path")
            spec = cls(
                str(raw["guest"]),
                str(raw["name"]),
                str(raw["kind"]),
                str(raw["format"]),
                int(raw["size_bytes"]),
                None if path is None else Path(str(path)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"disk: {type(error).__name__}: {error}") from error
        if spec.kind not in KINDS or spec.format not in FORMATS:
            raise StorageError(f"disk {spec.name}: kind {spec.kind!r}, format {spec.format!r}")
        return spec

    def to_json(self) -> dict[str, Any]:
        return {
            "guest": self.guest,
            "name": self.name,
            "kind": self.kind,
            "format": self.format,
            "size_bytes": self.size_bytes,
            "path": None if self.path is None else str(self.path),
        }


def require_tools() -> None:
    """:raises MachineError: when qemu-nbd or libnbd is missing."""
    for tool in ("qemu-img", "qemu-nbd"):
        if shutil.which(tool) is None:
            raise MachineError(f"disks need {tool}, which is not installed", "`make setup` installs it (qemu-utils)")
    try:
        import nbd  # noqa: F401, PLC0415 - only scenarios with disks need it
    except ImportError:
        raise MachineError("disks need libnbd's Python binding", "`make setup` installs it (python3-libnbd)") from None


def inspect(path: Path) -> dict[str, Any]:
    """What qemu-img says of an image. :raises StorageError: when it cannot be read."""
    try:
        answer = run(["qemu-img", "info", "--force-share", "--output=json", str(path)], deadline=Deadline(COMMAND_NS))
        found = json.loads(answer.stdout)
    except (CommandError, ValueError) as error:
        raise StorageError(f"{path}: qemu-img cannot read it: {error}") from error
    return found if isinstance(found, dict) else {}


def identity(path: Path) -> tuple[int, int]:
    """The same for every name of one image (links of both kinds) or device. :raises OSError: there is none."""
    found = path.stat()
    return (0, found.st_rdev) if stat.S_ISBLK(found.st_mode) else (found.st_dev, found.st_ino)


def check_existing(path: Path, kind: str, wanted: str) -> int:
    """An image or device that is to be used. :returns: its virtual size in bytes.

    :raises StorageError: it is missing, of another format, in use, broken, or no block device for a pass-through disk.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}", "name an image that is there, or give a size") from error
    if kind == "pass-through":
        fd = reserve(path)
        try:
            return os.lseek(fd, 0, os.SEEK_END)
        finally:
            os.close(fd)
    if not stat.S_ISREG(mode):
        raise StorageError(f"{path}: no regular file, which an image is", 'use kind = "pass-through" for a device')
    found = inspect(path)
    actual = str(found.get("format"))
    if actual != FORMATS[wanted]:
        named = next((ours for ours, theirs in FORMATS.items() if theirs == actual), actual)
        raise StorageError(f"{path}: the image is {named}, not {wanted}", f'use format = "{named}"')
    if found.get("backing-filename"):
        raise StorageError(f"{path}: the image has a backing file, which does not move with it", "flatten it")
    _require_free(path, actual)
    _require_whole(path, wanted)
    return int(found["virtual-size"])


def reserve(path: Path) -> int:
    """A block device for its caller alone, as long as the descriptor that is returned is open: whoever else asks so is
    refused then, this way or by mounting it.

    :raises StorageError: it is no block device, or mounted or held.
    """
    try:
        if not stat.S_ISBLK(path.stat().st_mode):
            raise StorageError(f"{path}: no block device, which a pass-through disk is", 'use kind = "shared"')
        return os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)  # open(2): of block devices alone, without O_CREAT
    except OSError as error:
        remedy = "a device that is neither mounted nor another run's" if error.errno == errno.EBUSY else ""
        raise StorageError(f"{path}: the device is in use or refused: {error.strerror}", remedy) from error


def _require_free(path: Path, qemu_format: str) -> None:
    """:raises StorageError: another process has the image."""
    try:
        # The image server takes the same lock: it says now whether another one has the image.
        run(["qemu-io", "-f", qemu_format, "-c", "quit", str(path)], deadline=Deadline(COMMAND_NS))
    except CommandError as error:
        if "lock" in error.message:
            raise StorageError(
                f"{path}: the image is in use by another guest, which holds qemu's lock on it",
                "an image that nobody else uses",
            ) from error
        raise StorageError(f"{path}: the image cannot be opened to write: {error}") from error


def _require_whole(path: Path, wanted: str) -> None:
    """:raises StorageError: its own tables say that it is broken; clusters that nobody uses any more are no matter."""
    if wanted not in CHECKED:
        return
    command = ["qemu-img", "check", "-q", "-f", FORMATS[wanted], str(path)]
    try:
        status = run(command, deadline=Deadline(COMMAND_NS), check=False, max_output_bytes=_CHECK_BYTES).status
    except CommandError as error:
        raise StorageError(f"{path}: the image cannot be checked: {error.message}") from error
    if status not in (0, _LEAKS):
        raise StorageError(
            f"{path}: the image is broken: `qemu-img check` finds errors in it",
            "an image that passes `qemu-img check`, which can repair some",
        )


def make(path: Path, wanted: str, size_bytes: int) -> None:
    """Make an empty image. :raises StorageError: no space, or refused; nothing is left then."""
    free = shutil.disk_usage(path.parent).free
    if free < size_bytes + SPARE_BYTES:
        raise StorageError(
            f"{path.parent}: no space for an image of {size_bytes >> 20} MiB: {free >> 20} MiB are free",
            "make the disk smaller",
        )
    options = ["-o", "force_size=on"] if wanted == "vhd" else []
    try:
        run(
            ["qemu-img", "create", "-q", "-f", FORMATS[wanted], *options, str(path), str(size_bytes)],
            deadline=Deadline(COMMAND_NS),
        )
    except CommandError as error:
        path.unlink(missing_ok=True)
        raise StorageError(f"{path}: the image cannot be made: {error}") from error


def mend(path: Path, wanted: str) -> None:
    """After its server was killed: give back what that had set aside. :raises StorageError: the image is broken."""
    if wanted not in CHECKED:
        return
    try:
        run(
            [
                "qemu-img",
                "check",
                "-q",
                "-f",
                FORMATS[wanted],
                "-r",
                "leaks" if wanted == "qcow2" else "all",
                str(path),
            ],
            deadline=Deadline(COMMAND_NS),
        )
    except CommandError as error:
        raise StorageError(f"{path}: the image is broken: {error}") from error


class LoopDevice:
    """A block device made of a file: what a pass-through disk is on a machine without spare ones.

    Goes by itself when this process and everybody who opened the device are gone (autoclear).
    """

    def __init__(self, backing: Path, nodes: Path) -> None:
        """:param nodes: a directory for a device node where /dev has none.

        :raises StorageError: when the kernel gives none.
        """
        self._fd = -1
        try:
            with contextlib.ExitStack() as stack:
                control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
                stack.callback(os.close, control)
                file = os.open(backing, os.O_RDWR | os.O_CLOEXEC)
                stack.callback(os.close, file)
                for attempt in range(8):
                    number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
                    self.path = _node(number, nodes)
                    self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
                    try:
                        fcntl.ioctl(self._fd, _LOOP_SET_FD, file)
                        break
                    except OSError:  # somebody else was faster
                        os.close(self._fd)
                        self._fd = -1
                        if attempt == 7:
                            raise
                name = os.fsencode(str(backing))[:63]
                info = _LOOP_INFO64.pack(0, 0, 0, 0, 0, number, 0, 0, _AUTOCLEAR, name, b"", b"", 0, 0)
                fcntl.ioctl(self._fd, _LOOP_SET_STATUS64, info)
        except OSError as error:
            self.close()
            raise StorageError(f"no loop device for {backing}: {error.strerror}") from error

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _node(number: int, nodes: Path) -> Path:
    path = Path(f"/dev/loop{number}")
    if path.exists():
        return path
    path = nodes / f"loop{number}"
    if not path.exists():
        os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(_LOOP_MAJOR, number))
    return path

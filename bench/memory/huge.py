"""Guest memory in huge pages: a file of a tmpfs of its own that allocates them, mounted nowhere.

A memfd gets huge pages only where the administrator set ``shmem_enabled`` for the whole machine; an instance of tmpfs
has a setting of its own (``huge=always``). What tracks writes (userfaultfd) works on 4 KiB, so while a guest is tracked
the kernel maps its memory by 4 KiB, as KVM does for a guest whose writes are logged: huge pages make the guest faster
before a migration, and the first writes in one dearer. Afterwards khugepaged puts them together again in its own time.

Pages reserved beforehand (MAP_HUGETLB) are no way: the kernel tracks and installs those as a whole only, so that one
write of a guest would be 2 MiB to send.

Sources: tmpfs(5), fsopen(2), Documentation/admin-guide/mm/transhuge.rst; madvise(2) for MADV_COLLAPSE (Linux 6.1).
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

from bench.errors import GuestError

HUGE_BYTES: Final = 2 << 20
_SETTINGS: Final = Path("/sys/kernel/mm/transparent_hugepage")
_MADV_COLLAPSE: Final = 25
# the same on all architectures
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 1, 6
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_REMEDY: Final = (
    "take guest.huge_pages out, or use a kernel with transparent huge pages for shared memory (`bench doctor`)"
)

_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: int | bytes | None) -> int:
    """:raises OSError: as the kernel says."""
    words = [ctypes.c_char_p(word) if isinstance(word, bytes) else ctypes.c_long(word or 0) for word in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def open_huge(size_bytes: int) -> int:
    """A file of zeros whose memory comes in huge pages; the descriptor is the caller's.

    :raises GuestError: when this kernel has none, or may not be asked for them.
    """
    if not _SETTINGS.is_dir():
        raise GuestError("this kernel has no transparent huge pages", _REMEDY)
    if "[deny]" in _read(_SETTINGS / "shmem_enabled"):
        raise GuestError("huge pages for shared memory are switched off (shmem_enabled is deny)", _REMEDY)
    fds: list[int] = []
    try:
        fds.append(_call(_SYS_FSOPEN, b"tmpfs", _FSOPEN_CLOEXEC))
        for key, value in ((b"huge", b"always"), (b"size", b"0")):  # 0: as much as there is
            _call(_SYS_FSCONFIG, fds[0], _FSCONFIG_SET_STRING, key, value, 0)
        _call(_SYS_FSCONFIG, fds[0], _FSCONFIG_CMD_CREATE, None, None, 0)
        fds.append(_call(_SYS_FSMOUNT, fds[0], _FSMOUNT_CLOEXEC, 0))
        file = os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=fds[1])
        try:
            os.ftruncate(file, size_bytes)
        except OSError:
            os.close(file)
            raise
    except OSError as error:
        raise GuestError(f"no memory in huge pages: {error.strerror}", _REMEDY) from error
    finally:
        for fd in fds:
            os.close(fd)
    return file


def collapse(address: int, length: int) -> None:
    """Have the kernel put what is mapped there into huge pages now, as far as it can."""
    _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), _MADV_COLLAPSE)


def mapped_bytes(pid: int, address: int) -> int:
    """How much of a process' mapping that begins at *address* is mapped by huge pages. 0 when there is none."""
    inside = False
    for line in _read(Path(f"/proc/{pid}/smaps")).splitlines():
        head = line.split(" ", 1)[0]
        if not head.endswith(":"):
            inside = head.startswith(f"{address:x}-")
        elif inside and head == "ShmemPmdMapped:":
            return int(line.split()[1]) << 10
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""

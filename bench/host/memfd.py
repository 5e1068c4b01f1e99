"""Anonymous files in memory."""

from __future__ import annotations

import os


def memfd_of(name: str, parts: list[bytes]) -> tuple[int, int]:
    """:returns: a memfd with *parts* one after the other, at offset 0, and its size."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.writelines(parts)
            size = file.tell()
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd, size

"""Compressing pages: zstd (RFC 8878) and lz4 blocks, each library imported only when it is asked for.

What is compressed is a whole batch of pages (up to 1 MiB), which compresses better than page by page. The receiver
knows how large the result must be, and gives a decompressor no room for more.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Final, Protocol

from bench.errors import MigrationError, WireError

NONE: Final = "none"
LEVELS: Final = {"zstd": (1, 19), "lz4": (1, 12)}
"""Names, and the lowest and highest level of each. lz4's level 1 is its fast mode, the others its high compression."""
DEFAULT_LEVEL: Final = 1  # as QEMU's multifd-zstd-level
MAX_THREADS: Final = 16
_ZSTD_JOB_BYTES: Final = 512 << 10  # the least that the library gives a thread


class Codec(Protocol):
    """One compression, ready to use."""

    name: str

    def compress(self, data: memoryview) -> bytes: ...

    def decompress(self, data: bytes | bytearray | memoryview, size_bytes: int) -> bytes:
        """:raises WireError: when *data* is not what gives exactly *size_bytes*; nothing larger is allocated."""
        ...


class Zstd:
    """:param threads: of the library, beside the engine's own; 0 for none."""

    name = "zstd"

    def __init__(self, level: int = DEFAULT_LEVEL, threads: int = 0) -> None:
        self._zstd = _library("zstandard")
        options = {"threads": threads, "job_size": _ZSTD_JOB_BYTES} if threads else {}
        parameters = self._zstd.ZstdCompressionParameters.from_level(level, source_size=1 << 20, **options)
        self._compressor = self._zstd.ZstdCompressor(compression_params=parameters)
        self._decompressor = self._zstd.ZstdDecompressor()

    def compress(self, data: memoryview) -> bytes:
        packed: bytes = self._compressor.compress(data)
        return packed

    def decompress(self, data: bytes | bytearray | memoryview, size_bytes: int) -> bytes:
        try:
            # The library allocates what the frame's header says: look at that first.
            told = self._zstd.get_frame_parameters(data).content_size
            if told != size_bytes:
                raise WireError(f"PACKED frame that says it holds {told} bytes instead of {size_bytes}")
            pages: bytes = self._decompressor.decompress(data, max_output_size=size_bytes, allow_extra_data=False)
        except self._zstd.ZstdError as error:
            raise WireError(f"PACKED frame that is not zstd: {error}") from error
        return _exactly(pages, size_bytes)


class Lz4:
    """lz4's block format, without a size of its own in front."""

    name = "lz4"

    def __init__(self, level: int = DEFAULT_LEVEL) -> None:
        self._block = _library("lz4.block")
        self._mode = {"mode": "default"} if level <= 1 else {"mode": "high_compression", "compression": level}

    def compress(self, data: memoryview) -> bytes:
        packed: bytes = self._block.compress(data, store_size=False, **self._mode)
        return packed

    def decompress(self, data: bytes | bytearray | memoryview, size_bytes: int) -> bytes:
        try:
            pages: bytes = self._block.decompress(data, uncompressed_size=size_bytes)
        except self._block.LZ4BlockError as error:
            raise WireError(f"PACKED frame that is not lz4: {error}") from error
        return _exactly(pages, size_bytes)


def load_codec(name: str, level: int = DEFAULT_LEVEL, threads: int = 0) -> Codec | None:
    """The compression of that name; None for :data:`NONE`.

    :raises MigrationError: when there is none of that name, its library is missing, or level or threads are out of
        bounds.
    """
    if name == NONE:
        return None
    if name not in LEVELS:
        raise MigrationError(f"compression {name[:40]!r} is unknown", f"use one of {', '.join((NONE, *LEVELS))}")
    low, high = LEVELS[name]
    if not low <= level <= high:
        raise MigrationError(f"{name} has no compression level {level}", f"use {low} to {high}")
    if not 0 <= threads <= (MAX_THREADS if name == "zstd" else 0):
        raise MigrationError(f"{name} cannot compress with {threads} threads of its own")
    return Zstd(level, threads) if name == "zstd" else Lz4(level)


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise MigrationError(f"the library {package} is missing", f"pip install {package}") from error


def _exactly(pages: bytes, size_bytes: int) -> bytes:
    if len(pages) != size_bytes:
        raise WireError(f"PACKED frame of {len(pages)} bytes instead of {size_bytes}")
    return pages

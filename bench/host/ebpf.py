"""Just enough of eBPF to write a small classifier by hand: an assembler, maps, and loading, without a compiler.

Sources: bpf(2), linux/bpf.h, Documentation/bpf/standardization/instruction-set.rst. Only little-endian hosts are
served, as the rest of the bench is.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import Final

from bench.errors import MachineError

# enum bpf_cmd, bpf_map_type, bpf_prog_type
_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _PROG_LOAD = 0, 1, 2, 5
_MAP_ARRAY: Final = 2
_PROG_SCHED_CLS: Final = 3
_SYSCALL: Final = {"x86_64": 321, "aarch64": 280}
_LOG_BYTES: Final = 1 << 18
_ATTR_BYTES: Final = 144

# helpers (enum bpf_func_id)
MAP_LOOKUP_ELEM: Final = 1
KTIME_GET_NS: Final = 5
SKB_LOAD_BYTES: Final = 26

# registers
R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = range(11)

# sizes of loads and stores
BYTE, HALF, WORD, DOUBLE = 0x10, 0x08, 0x00, 0x18

# jump conditions
JEQ, JGT, JGE, JNE, JLT, JLE = 0x10, 0x20, 0x30, 0x50, 0xA0, 0xB0

# operations
ADD, SUB, AND, LSH, RSH = 0x00, 0x10, 0x50, 0x60, 0x70

_libc = ctypes.CDLL(None, use_errno=True)


class Assembler:
    """Collects instructions; jumps name labels that :meth:`label` sets later (forwards only, as the verifier wants)."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int, int]] = []  # opcode, dst, src, offset, immediate
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []

    def _emit(self, opcode: int, dst: int = 0, src: int = 0, offset: int = 0, immediate: int = 0) -> None:
        self._code.append((opcode, dst, src, offset, immediate))

    def move(self, dst: int, src: int) -> None:
        self._emit(0xBF, dst, src)

    def set(self, dst: int, value: int) -> None:
        self._emit(0xB7, dst, immediate=value)

    def compute(self, operation: int, dst: int, value: int) -> None:
        """``dst = dst OP value``."""
        self._emit(0x07 | operation, dst, immediate=value)

    def compute_register(self, operation: int, dst: int, src: int) -> None:
        """``dst = dst OP src``."""
        self._emit(0x0F | operation, dst, src)

    def to_host16(self, dst: int) -> None:
        """Network order of 16 bits to this host's."""
        self._emit(0xDC, dst, immediate=16)

    def load(self, size: int, dst: int, src: int, offset: int) -> None:
        """``dst = *(size *)(src + offset)``."""
        self._emit(0x61 | size, dst, src, offset)

    def store(self, size: int, dst: int, offset: int, src: int) -> None:
        """``*(size *)(dst + offset) = src``."""
        self._emit(0x63 | size, dst, src, offset)

    def load_map(self, dst: int, map_fd: int) -> None:
        """The map as a pointer: BPF_PSEUDO_MAP_FD, two instruction slots."""
        self._emit(0x18, dst, 1, 0, map_fd)
        self._emit(0)

    def call(self, helper: int) -> None:
        self._emit(0x85, immediate=helper)

    def jump(self, label: str) -> None:
        self._jumps.append((len(self._code), label))
        self._emit(0x05)

    def jump_if(self, condition: int, register: int, value: int, label: str) -> None:
        """Unsigned comparison with an immediate."""
        self._jumps.append((len(self._code), label))
        self._emit(0x05 | condition, register, immediate=value)

    def jump_if_register(self, condition: int, first: int, second: int, label: str) -> None:
        self._jumps.append((len(self._code), label))
        self._emit(0x0D | condition, first, second)

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def exit(self) -> None:
        self._emit(0x95)

    def assemble(self) -> bytes:
        """:raises KeyError: for a jump to a label that was never set."""
        code = list(self._code)
        for at, label in self._jumps:
            opcode, dst, src, _offset, immediate = code[at]
            code[at] = (opcode, dst, src, self._labels[label] - at - 1, immediate)
        return b"".join(struct.pack("<BBhi", op, src << 4 | dst, offset, value) for op, dst, src, offset, value in code)


def _bpf(command: int, attributes: bytes) -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(f"the number of bpf(2) on {platform.machine()} is unknown here")
    buffer = ctypes.create_string_buffer(attributes.ljust(_ATTR_BYTES, b"\0"), _ATTR_BYTES)
    result: int = _libc.syscall(ctypes.c_long(number), ctypes.c_int(command), buffer, ctypes.c_uint(_ATTR_BYTES))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"bpf: {os.strerror(error)}")
    return result


class ArrayMap:
    """BPF_MAP_TYPE_ARRAY: *entries* values of *value_bytes*, by index. Close it when the program that uses it is gone.

    :raises MachineError: when the kernel refuses.
    """

    def __init__(self, value_bytes: int, entries: int) -> None:
        self.value_bytes = value_bytes
        self.entries = entries
        try:
            self.fd = _bpf(_MAP_CREATE, struct.pack("=IIIII", _MAP_ARRAY, 4, value_bytes, entries, 0))
        except OSError as error:
            raise _refused(error) from error

    def _attributes(self, index: int, value: ctypes.Array[ctypes.c_char]) -> bytes:
        self._key = ctypes.c_uint32(index)
        return struct.pack("=IIQQQ", self.fd, 0, ctypes.addressof(self._key), ctypes.addressof(value), 0)

    def __getitem__(self, index: int) -> bytes:
        """:raises OSError: for an index beyond the entries."""
        value = ctypes.create_string_buffer(self.value_bytes)
        _bpf(_MAP_LOOKUP, self._attributes(index, value))
        return value.raw

    def __setitem__(self, index: int, value: bytes) -> None:
        """:raises OSError: for an index beyond the entries."""
        if len(value) != self.value_bytes:
            raise ValueError(f"a value of {self.value_bytes} bytes, not {len(value)}")
        buffer = ctypes.create_string_buffer(value, self.value_bytes)
        _bpf(_MAP_UPDATE, self._attributes(index, buffer))

    def close(self) -> None:
        """Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def load_classifier(code: bytes, name: str) -> int:
    """Load a program for tc's bpf classifier. :returns: its descriptor, the caller's to close.

    :raises MachineError: when the kernel has no bpf(2) for us, or its verifier refuses (with the end of its log).
    """
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(_LOG_BYTES)
    where = (ctypes.addressof(instructions), ctypes.addressof(licence))
    attributes = struct.pack("=IIQQ", _PROG_SCHED_CLS, len(code) // 8, *where)
    attributes += struct.pack("=IIQII", 1, _LOG_BYTES, ctypes.addressof(log), 0, 0) + name.encode()[:15].ljust(
        16, b"\0"
    )
    try:
        return _bpf(_PROG_LOAD, attributes)
    except OSError as error:
        raise _refused(error, log.value.decode(errors="replace")[-400:].strip()) from error


def _refused(error: OSError, log: str = "") -> MachineError:
    return MachineError(
        f"the kernel loads no eBPF program: {error.strerror or error}" + (f": {log}" if log else ""),
        "run as root with CAP_BPF or CAP_SYS_ADMIN (docker run --privileged) on a kernel with CONFIG_BPF_SYSCALL",
    )

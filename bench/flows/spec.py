"""What a flow is told to be, checked: for the client agent that runs it, or for the guest that does."""

from __future__ import annotations

import errno
import os
import random
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from bench.clock import NS_PER_S
from bench.errors import ProbeError
from bench.flows.tcp_options import TcpOptions

FILLER_BYTES: Final = 1 << 17
GRACE_NS: Final = NS_PER_S
"""How long after its stop a flow waits for the answers that are still outstanding; then they are lost."""
APPLICATION_TIMEOUT: Final = "application timeout"
"""What a flow died of when its client gave up, not the kernel."""

_NAME: Final = re.compile(r"^[A-Za-z0-9_.-]{1,32}$")


@dataclass(frozen=True, slots=True)
class FlowSpec:
    """One flow as the agent was told it; units in the names, ``rate_bps`` in bit/s with 0 for "as fast as it goes".

    :param address: of the other end (the guest, or the server that a guest talks to); empty for the agent's default.
    """

    name: str
    kind: str
    interval_ns: int = 1_000_000
    think_ns: int = 1_000_000
    size: int = 64
    rate_bps: int = 0
    timeout_ns: int = 60 * NS_PER_S
    command: tuple[str, ...] = ()
    address: str = ""
    tcp: TcpOptions = field(default_factory=TcpOptions)
    retry: bool = False

    @classmethod
    def from_json(cls, raw: object) -> FlowSpec:
        """:raises ProbeError: naming the member that is missing or wrong."""
        if not isinstance(raw, Mapping):
            raise ProbeError(f"a flow must be an object, not {type(raw).__name__}")
        name, kind, command = raw.get("name"), raw.get("kind"), raw.get("command", ())
        if not isinstance(name, str) or not _NAME.match(name):
            raise ProbeError(f"a flow's name must be 1 to 32 letters, digits or _.-, not {str(name)[:80]!r}")
        if not isinstance(kind, str):
            raise ProbeError(f"flow {name}: kind must be text")
        if not isinstance(command, list | tuple) or not all(isinstance(word, str) for word in command):
            raise ProbeError(f"flow {name}: command must be a list of words")
        address = raw.get("address", "")
        if not isinstance(address, str):
            raise ProbeError(f"flow {name}: address must be text")
        retry = raw.get("retry", False)
        if not isinstance(retry, bool):
            raise ProbeError(f"flow {name}: retry must be true or false")
        options = TcpOptions.from_json(raw.get("tcp", {}), name)
        limits = {
            "interval_ns": (10_000, 3600 * NS_PER_S),
            "think_ns": (0, 3600 * NS_PER_S),
            "size": (16, 65536),
            "rate_bps": (0, 10**12),
            "timeout_ns": (1_000_000, 3600 * NS_PER_S),
        }
        numbers: dict[str, int] = {}
        for key, (least, most) in limits.items():
            value = raw.get(key)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ProbeError(f"flow {name}: {key} must be a whole number from {least} to {most}, not {value!r}")
            numbers[key] = value
        return cls(
            name=name,
            kind=kind,
            command=tuple(command),
            address=address,
            tcp=options,
            retry=retry,
            **numbers,
        )

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` reads."""
        return asdict(self)


def filler(name: str) -> bytes:
    """Pseudo-random content, the same for every flow of this name."""
    return random.Random(zlib.crc32(name.encode())).randbytes(FILLER_BYTES)


def error_name(error: Exception) -> str:
    """``"ECONNRESET"`` for an OSError, :data:`APPLICATION_TIMEOUT` where a client or its library lost patience (the
    kernel's own is ``"ETIMEDOUT"``), the class's name for others.
    """
    if type(error).__name__ == "TimeoutError" and getattr(error, "errno", None) is None:  # Python's, or a library's
        return APPLICATION_TIMEOUT
    if isinstance(error, OSError) and error.errno is not None:
        return errno.errorcode.get(error.errno, os.strerror(error.errno))
    return type(error).__name__

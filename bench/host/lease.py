"""Who runs the guest: exactly one hypervisor, whatever is cut and whenever.

The lease is the management plane's arbiter: a small file that both hypervisors of an emulated bench can reach, as two
real ones reach a cluster's lock service. It holds an owner and a generation. Both guests, the paused one that wants to
roll back and the loaded one that wants to run, must first move the *same* generation to the next one; the file lock
lets one of them through. So a link that is cut at the worst instant leaves exactly one guest running, never two and
never none.

The file is one JSON object padded with spaces to :data:`RECORD_BYTES`, replaced by one ``pwrite``. An empty or absent
file is a lease that nobody ever held: owner ``""``, generation 0. It need not survive a power cut, so it is never
synced.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.errors import HostError

RECORD_BYTES = 128
MAX_OWNER_BYTES = 32


@dataclass(frozen=True, slots=True)
class LeaseState:
    """What a lease says.

    :param owner: the hypervisor that may run the guest; ``""`` while nobody ever claimed it.
    :param generation: how often it was claimed.
    """

    owner: str
    generation: int


class Lease:
    """One guest's lease.

    :param path: the file; it need not exist.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def read(self) -> LeaseState:
        """:raises HostError: when the file cannot be read or is no lease."""
        try:
            with self._locked(os.O_RDONLY, fcntl.LOCK_SH) as fd:
                return self._parse(os.pread(fd, RECORD_BYTES + 1, 0))
        except FileNotFoundError:
            return LeaseState("", 0)

    def claim(self, me: str, expect_owner: str, expect_generation: int | None = None) -> bool:
        """Become the owner if the lease still says what is expected: an atomic compare-and-swap.

        The generation grows with every successful claim, also with one by the present owner, so that a claim that
        was prepared before it fails afterwards.

        :param me: the new owner, 1 to :data:`MAX_OWNER_BYTES` bytes of printable ASCII.
        :param expect_owner: who must hold the lease now; ``""`` for nobody yet.
        :param expect_generation: which generation it must be; None for any.
        :returns: False, and nothing has changed, when the lease says something else.
        :raises HostError: when the file cannot be locked or written, or is no lease.
        """
        if not (me.isascii() and me.isprintable() and 0 < len(me) <= MAX_OWNER_BYTES):
            raise HostError(f"a lease owner must be 1 to {MAX_OWNER_BYTES} printable ASCII characters: {me!r}")
        with self._locked(os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX) as fd:
            state = self._parse(os.pread(fd, RECORD_BYTES + 1, 0))
            if state.owner != expect_owner or expect_generation not in (None, state.generation):
                return False
            record = json.dumps({"owner": me, "generation": state.generation + 1}).encode().ljust(RECORD_BYTES)
            if os.pwrite(fd, record, 0) != len(record):
                raise HostError(f"{self.path}: the lease was written in part")
            return True

    @contextmanager
    def _locked(self, flags: int, operation: int) -> Iterator[int]:
        try:
            fd = os.open(self.path, flags | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, operation)  # held for microseconds by whoever has it; released by close
                yield fd
            finally:
                os.close(fd)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise HostError(f"{self.path}: lease: {error.strerror}") from error

    def _parse(self, data: bytes) -> LeaseState:
        if not data:
            return LeaseState("", 0)
        try:
            raw = json.loads(data) if len(data) <= RECORD_BYTES else None
        except ValueError:
            raw = None
        if not (
            isinstance(raw, dict)
            and isinstance(raw.get("owner"), str)
            and isinstance(raw.get("generation"), int)
            and raw["generation"] >= 0
        ):
            raise HostError(f"{self.path}: not a lease")
        return LeaseState(raw["owner"], raw["generation"])

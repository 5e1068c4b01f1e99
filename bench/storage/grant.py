"""Who may write a guest's disks: one holder, in one generation. Pure, but for the file that keeps it.

A grant covers all disks that a guest has on one storage server. Every change is a compare-and-swap on the generation,
so whoever prepared one before another happened is refused. This follows the guest's lease
(:mod:`bench.host.lease`), which stays the one ownership point: the destination raises the generation just before it
claims the lease, and a source that got the lease back raises it again.

As a SCSI persistent reservation of the type "exclusive access" (SPC-4, 5.12): whoever is not the holder can neither
write nor read.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.errors import StorageError

MAX_FILE_BYTES = 4096


@dataclass(slots=True)
class Grant:
    """What the storage side knows about who may use a guest's disks.

    :param holder: the hypervisor; ``""`` while nobody ever had them.
    :param released: the holder let go: not even its own requests are served, until the generation is raised.
    """

    guest: str
    holder: str = ""
    generation: int = 0
    released: bool = False

    def serves(self, holder: str, generation: int) -> bool:
        """Whether a request of this holder and generation may be carried out now."""
        return not self.released and holder == self.holder and generation == self.generation

    def release(self, holder: str, generation: int) -> None:
        """The holder lets go. Idempotent. :raises StorageError: when it is not the holder (any more)."""
        if (holder, generation) != (self.holder, self.generation):
            raise StorageError(
                f"{holder} cannot release the disks of {self.guest} in generation {generation}: {self.describe()}"
            )
        self.released = True

    def raise_to(self, holder: str, expected: int, at_least: int = 0) -> None:
        """*holder* gets the disks if the generation is still *expected*; from now on all before it are refused.

        :param at_least: of the new generation: a copy's must not be behind the disk's that it is made of.
        :raises StorageError: when it is not.
        """
        if expected != self.generation:
            raise StorageError(
                f"{holder} cannot take the disks of {self.guest} from generation {expected}: {self.describe()}"
            )
        self.holder, self.generation, self.released = holder, max(expected + 1, at_least), False

    def describe(self) -> str:
        state = ", released" if self.released else ""
        return f"{self.holder or 'nobody'} holds them in generation {self.generation}{state}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class GrantFile:
    """Keeps a grant across the death of its server: written, and on disk, before anybody is told of a change."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self, guest: str) -> Grant:
        """The grant, or a new one. :raises StorageError: when the file is none of this guest's."""
        try:
            with self.path.open("rb") as file:
                raw = json.loads(file.read(MAX_FILE_BYTES))
            grant = Grant(str(raw["guest"]), str(raw["holder"]), int(raw["generation"]), bool(raw["released"]))
        except FileNotFoundError:
            return Grant(guest)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{self.path}: no grant: {error}") from error
        if grant.guest != guest:
            raise StorageError(f"{self.path}: the grant of guest {grant.guest}, not of {guest}")
        return grant

    def save(self, grant: Grant) -> None:
        """:raises StorageError: when it cannot be written; the file is as it was then."""
        fresh = self.path.with_suffix(".new")
        try:
            with fresh.open("wb") as file:
                file.write(json.dumps(grant.to_json()).encode())
                file.flush()
                os.fdatasync(file.fileno())
            fresh.replace(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise StorageError(f"{self.path}: {error.strerror}") from error

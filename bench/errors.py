"""The errors that the bench raises, and nothing else.

::

    BenchError                    something a user can act on: what failed, and the remedy
    +-- ScenarioError             a scenario file or option is wrong (file, key, given, allowed)
    +-- MachineError              this machine lacks what was asked for (root, a package, memory)
    +-- CommandError              an external command failed or missed its deadline
    +-- DeadlineError             a condition did not come true in time
    +-- HostError                 namespaces, Open vSwitch, ledger, child processes
    +-- LinkError                 an impairment could not be applied, or calibration missed its tolerance
    +-- MemoryTrackingError       userfaultfd, pagemap
    +-- StorageError              a disk, its image, its server or the right to write it
    |   +-- DiskError             an image or device that was asked for cannot be had: missing, in use, broken, no space
    +-- GuestError                a guest refused or failed a command
    +-- MigrationError            a migration could not be started (one that fails is a *result*)
    |   +-- WireError             a peer sent something that the wire format does not allow
    +-- ControllerError           the OpenFlow controller did not start or died
    +-- ProbeError                a probe could not watch what it was asked to
    +-- ResultError               a result directory is broken, too large or of another schema

Only :mod:`bench.cli` turns an error into an exit code; ``exit_code`` says which.
"""

from __future__ import annotations

import errno


class BenchError(Exception):
    """Root of every error that is shown to a user as one message without a traceback.

    :param message: what failed, where and why, in one sentence.
    :param remedy: what the user can do about it; empty when there is nothing to do.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}" if self.remedy else self.message


class ScenarioError(BenchError):
    """A scenario file, a ``--set`` or another user input is wrong.

    :param where: the file name or option that held the value.
    :param key: the dotted key.
    :param given: what was given.
    :param allowed: what is allowed, as one readable phrase.
    """

    exit_code = 2

    def __init__(self, where: str, key: str, given: object, allowed: str) -> None:
        shown = repr(given)
        if len(shown) > 200:
            shown = shown[:200] + "..."
        at = f"{where}: {key}" if key else where
        super().__init__(f"{at}: got {shown}; allowed: {allowed}")
        self.where = where
        self.key = key
        self.given = given
        self.allowed = allowed


class MachineError(BenchError):
    """This machine lacks something that was asked for."""

    exit_code = 2


class CommandError(BenchError):
    """An external command failed, could not be started or missed its deadline."""


class DeadlineError(BenchError):
    """A condition did not come true before its deadline."""


class HostError(BenchError):
    """The machine underneath: namespaces, Open vSwitch daemons, ledger, child processes."""


class LinkError(BenchError):
    """A link impairment could not be applied or its calibration missed the tolerance."""


class MemoryTrackingError(BenchError):
    """userfaultfd or pagemap refused to do what dirty tracking needs."""


class StorageError(BenchError):
    """A disk image, the server of it, or the right to write it."""


class DiskError(StorageError):
    """A disk that was asked for cannot be had, and nothing has used it yet."""

    exit_code = 2


class GuestError(BenchError):
    """A guest refused or failed a command."""


class MigrationError(BenchError):
    """A migration could not be started or driven. A migration that fails is a result, not this."""


class WireError(MigrationError):
    """A migration peer sent bytes that the wire format does not allow."""


class ControllerError(BenchError):
    """The OpenFlow controller did not start, did not connect or died."""


class ProbeError(BenchError):
    """A probe could not watch what it was asked to."""


class ResultError(BenchError):
    """A result directory is broken, too large, or of a schema this version cannot read."""

    exit_code = 2


def of_full_disk(error: OSError) -> HostError | None:
    """What a disk without room is to a user; None for any other error of the system."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    which = error.filename2 or error.filename or "a file"  # the second is a copy's destination
    return HostError(f"cannot write {which}: {error.strerror}", "make room there, or name another -o")

"""The directory that a run writes its result into: never over another result, and gone when there was no run."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import shutil
from pathlib import Path

from bench.errors import ScenarioError

RUNS = Path("runs")
RESULT = "result.json"
LEAST_FREE_BYTES = 8 << 20  # a short run's result takes some MiB
SURVIVAL = "survival.json"  # of a survival map


class OutputDirectory:
    """A directory that was made for a run, or that was there and empty.

    :ivar path: the directory.
    """

    def __init__(self, path: Path, *, new: bool = False) -> None:
        """:param new: it must not be there yet.

        :raises ScenarioError: it cannot be made, or holds something already.
        :raises FileExistsError: with *new*.
        """
        self.path = path
        self._made: list[Path] = []
        try:
            self._made = [place for place in (path, *path.parents) if not place.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(exist_ok=not new)
            occupied = any(path.iterdir())
        except OSError as error:
            if new and isinstance(error, FileExistsError):
                raise
            raise ScenarioError("-o", "", str(path), f"a directory that can be made ({error.strerror})") from None
        free = shutil.disk_usage(path).free
        if free < LEAST_FREE_BYTES and not occupied:
            self.take_back()
            wanted = f"a place with at least {LEAST_FREE_BYTES >> 20} MiB of room ({free >> 10} KiB are free)"
            raise ScenarioError("-o", "", str(path), wanted)
        if occupied:
            raise ScenarioError("-o", "", str(path), "a new or an empty directory, so that no result is overwritten")

    @classmethod
    def choose(cls, wanted: Path | None, scenario: Path) -> OutputDirectory:
        """*wanted*, or runs/<time>-<scenario>. :raises ScenarioError: as above."""
        if wanted is not None:
            return cls(wanted)
        stamp = datetime.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        for number in itertools.count(1):
            suffix = f"-{number}" if number > 1 else ""
            with contextlib.suppress(FileExistsError):  # another run began in the same second
                return cls(RUNS / f"{stamp}-{scenario.stem}{suffix}", new=True)
        raise AssertionError("unreachable")

    @property
    def empty(self) -> bool:
        return not any(self.path.iterdir())

    @property
    def has_result(self) -> bool:
        return any((self.path / name).exists() for name in (RESULT, SURVIVAL))

    def take_back(self) -> None:
        """Remove what is in it, which is all of this run, and the directories that were made for it."""
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        for place in self._made:
            with contextlib.suppress(OSError):  # another run's result may lie in it by now
                place.rmdir()

    def hand_to_user(self) -> None:
        """Under sudo what was made belongs to the user who called it."""
        uid, gid = os.environ.get("SUDO_UID"), os.environ.get("SUDO_GID")
        if not (uid and gid and uid.isdecimal() and gid.isdecimal()):
            return
        for path in {*self._made, self.path, *self.path.rglob("*")}:
            os.chown(path, int(uid), int(gid), follow_symlinks=False)

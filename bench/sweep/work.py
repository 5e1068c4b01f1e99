"""One run of a sweep: a process of its own, with its own names, daemons and ledger. A Dask worker executes it too."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.clock import NS_PER_S
from bench.errors import ResultError
from bench.output import RESULT

MAX_PACKED_BYTES: Final = 2 << 30
MAX_OUTPUT_BYTES: Final = 1 << 16
_ENTRY: Final = (
    "import os, signal, sys; from bench.host.kernel import set_parent_death_signal; "
    "set_parent_death_signal(signal.SIGKILL); os.getppid() == {parent} or sys.exit(1); "
    "from bench.cli import main; main()"
)
STOP_CODES: Final = tuple(128 + signum for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
"""Exit codes of a run that was told to end. One that broke down (SIGSEGV, SIGKILL) says nothing about the others."""
GRACE_S: Final = 60.0
"""How long a run that is told to end may take for its clean-up."""


@dataclass(frozen=True)
class Done:
    """How a run ended. ``error``: why there is no result; ``output``: the end of what it said; ``stopped``: somebody
    told it to end, which means the others too, and nothing of it is left.
    """

    code: int
    error: str
    output: str
    packed: bytes = b""
    stopped: bool = False


def command(scenario: Path, settings: Sequence[str], output: Path) -> list[str]:
    """``bench run`` of this very installation, which is killed when this process ends."""
    sets = [word for setting in settings for word in ("--set", setting)]
    return [sys.executable, "-c", _ENTRY.format(parent=os.getpid()), "run", str(scenario), *sets, "-o", str(output)]


def run_here(scenario: Path, settings: Sequence[str], output: Path, timeout_ns: int) -> Done:
    """Run it and wait. The run is in this process group: Ctrl-C reaches it too. It ends with this process, at once when
    that is killed, or it would go on beside the next one. A result cut short would count as one: it is removed, and
    where the run was stopped all else, too.

    :raises KeyboardInterrupt: after the run has ended, of which nothing is left.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command(scenario, settings, output), stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
        )
        timed_out = False
        try:
            try:
                code = process.wait(timeout_ns / NS_PER_S)
            except subprocess.TimeoutExpired:
                timed_out = True
                code = _end(process)
        except BaseException:
            _end(process)
            shutil.rmtree(output, ignore_errors=True)
            raise
        said.seek(max(0, said.seek(0, os.SEEK_END) - MAX_OUTPUT_BYTES))
        text = said.read().decode(errors="replace")
    if timed_out:
        (output / RESULT).unlink(missing_ok=True)
        return Done(code, f"no result within {timeout_ns // NS_PER_S} s, which is its timeout", text)
    if code in STOP_CODES:
        shutil.rmtree(output, ignore_errors=True)
        return Done(code, "stopped", text, stopped=True)
    return Done(code, "" if (output / RESULT).exists() else _why(text, code), text)


def _end(process: subprocess.Popen[bytes]) -> int:
    """SIGTERM, with time for its clean-up; SIGKILL when that is over: its ledger lets `bench clean` do the rest."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _why(text: str, code: int) -> str:
    said = [line for line in text.splitlines() if line.startswith("bench: ")]
    return said[-1].removeprefix("bench: ")[:500] if said else f"exit code {code}"


def run_packed(scenario_text: str, name: str, settings: Sequence[str], timeout_ns: int) -> Done:
    """Run on this machine on behalf of another one: a scenario as text in, a packed result directory out."""
    with tempfile.TemporaryDirectory(prefix="bench-sweep-") as place:
        scenario, output = Path(place) / f"{name}.toml", Path(place) / "result"
        scenario.write_text(scenario_text, encoding="utf-8")
        done = run_here(scenario, settings, output, timeout_ns)
        if done.error:
            return done
        return Done(done.code, "", done.output, pack(output))


def pack(directory: Path) -> bytes:
    """A directory as a compressed tar."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz", compresslevel=1) as archive:
        archive.add(directory, arcname=".")
    return data.getvalue()


def unpack(data: bytes, directory: Path) -> None:
    """Into a new directory: plain files and directories below it alone, whatever the archive says.

    :raises ResultError: it is no archive, too large, or holds anything else.
    """
    directory.mkdir(parents=True)
    total = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            for member in archive:
                target = (directory / member.name).resolve()
                if not target.is_relative_to(directory.resolve()) or not (member.isfile() or member.isdir()):
                    raise ResultError(
                        f"{directory}: the packed result holds {member.name[:100]!r}, no plain file in it"
                    )
                total += member.size
                if total > MAX_PACKED_BYTES:
                    raise ResultError(f"{directory}: the packed result is larger than {MAX_PACKED_BYTES >> 30} GiB")
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                source = archive.extractfile(member)
                if source is not None:
                    with target.open("wb") as file:
                        shutil.copyfileobj(source, file)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ResultError(f"{directory}: the packed result is broken: {error}") from None

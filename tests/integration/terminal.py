"""A program on a terminal of its own (pty(7)), typed at and read as a person would."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import struct
import termios
from collections.abc import Sequence
from fcntl import ioctl
from pathlib import Path

from bench.clock import NS_PER_S, Deadline

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\x07|\r")
MAX_SEEN = 1 << 20


class Terminal:
    """A context manager; what is still running at its end is killed.

    :ivar seen: everything that came, without control sequences.
    """

    def __init__(self, argv: Sequence[str | Path], cwd: Path) -> None:
        self.seen = ""
        self._at = 0
        self._status: int | None = None
        self._pid, self._fd = pty.fork()
        if not self._pid:
            try:
                os.chdir(cwd)
                os.environ.update(TERM="xterm", COLUMNS="200", LINES="50")
                os.execv(argv[0], [str(word) for word in argv])
            finally:
                os._exit(127)
        ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._status = os.waitpid(self._pid, 0)[1]
        os.close(self._fd)

    def type(self, text: str) -> None:
        """Keys; ``\\n`` is Enter, ``\\t`` Tab, ``\\x03`` Ctrl-C."""
        os.write(self._fd, text.encode())

    def expect(self, text: str, seconds: int = 60) -> str:
        """Wait until *text* comes after what was expected last. :returns: what came until then.

        :raises AssertionError: it did not come.
        """
        deadline = Deadline(seconds * NS_PER_S)
        while (found := self.seen.find(text, self._at)) < 0:
            assert not deadline.expired, f"{text!r} did not come: {self.seen[self._at :][-2000:]!r}"
            assert self._read(deadline), f"the program ended before {text!r}: {self.seen[self._at :][-2000:]!r}"
        came = self.seen[self._at : found]
        self._at = found + len(text)
        return came

    def end(self, seconds: int = 60) -> int:
        """Wait until the program ends. :returns: its exit status."""
        deadline = Deadline(seconds * NS_PER_S)
        while self._read(deadline):
            assert not deadline.expired, f"it does not end: {self.seen[-2000:]!r}"
        self._status = os.waitpid(self._pid, 0)[1]
        return os.waitstatus_to_exitcode(self._status)

    def _read(self, deadline: Deadline) -> bool:
        """False when nothing more will come."""
        if not select.select([self._fd], [], [], min(1.0, deadline.remaining_s))[0]:
            return True
        try:
            data = os.read(self._fd, 1 << 16)
        except OSError:  # the other end is closed (EIO)
            return False
        self.seen = self.seen + _CONTROL.sub("", data.decode(errors="replace"))
        assert len(self.seen) < MAX_SEEN
        return bool(data)

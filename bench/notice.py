"""Whether a run was asked to stop."""

from __future__ import annotations

from bench.host.sandbox import exit_status


class Notice:
    """The first Ctrl-C, SIGTERM or SIGHUP of a run, which still ends in a result.

    :ivar reason: how the result says it; empty while there was none.
    :ivar exit_code: of the run; 0 while there was none.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.exit_code = 0

    def __bool__(self) -> bool:
        return bool(self.reason)

    def note(self, notice: KeyboardInterrupt) -> None:
        self.reason = f"interrupted by {str(notice) or 'SIGINT'}"
        self.exit_code = exit_status(notice)

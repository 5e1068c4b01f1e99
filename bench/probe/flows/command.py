"""command: any program on the client host, in its own process group; its exit status and output are kept.

``{guest}`` in an argument becomes the guest's address. Output (both streams) goes to ``<flow>.out``, at most
:data:`MAX_OUTPUT_BYTES`; what is beyond is read and dropped, so that the program never blocks on it. A program that
still runs at the flow's stop gets SIGTERM, then SIGKILL; that is no failure. One that ended by itself with a status
other than 0 is: ``alive`` false, ``error`` its status.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import IO, Any, Final

from bench.clock import NS_PER_S
from bench.probe.flows.base import Flow
from bench.probe.loop import READABLE

MAX_OUTPUT_BYTES: Final = 4 << 20
TERMINATE_NS: Final = 2 * NS_PER_S


class CommandFlow(Flow):
    """See the module."""

    kind = "command"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._output_path = self.directory / f"{self.spec.name}.out"
        self._output: IO[bytes] | None = None
        self._written = 0
        self._dropped = 0
        self._exit_status: int | None = None

    def start(self) -> None:
        argv = [word.replace("{guest}", self.guest_address) for word in self.spec.command]
        try:
            self._output = self._output_path.open("wb", buffering=0)
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._pidfd = os.pidfd_open(self._process.pid)
        except (OSError, ValueError) as error:
            self.fail(error)
            return
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self.loop.watch(self._process.stdout.fileno(), READABLE, self._readable, self.fail)
        self.loop.watch(self._pidfd, READABLE, self._exited, self.fail)
        self.event("flow_started", argv=argv, pid=self._process.pid)

    def _readable(self, _events: int) -> None:
        process = self._process
        if process is None or process.stdout is None:
            return
        try:
            data = os.read(process.stdout.fileno(), 1 << 16)
        except BlockingIOError:
            return
        if not data:
            self.loop.unwatch(process.stdout.fileno())
            return
        kept = data[: MAX_OUTPUT_BYTES - self._written]
        if kept and self._output is not None:
            self._output.write(kept)
        self._written += len(kept)
        self._dropped += len(data) - len(kept)

    def _exited(self, _events: int) -> None:
        process = self._process
        if process is None:
            return
        self._signal(signal.SIGKILL)  # what it left running in its group, while its own pid is still reserved
        process.wait()
        self._exit_status = process.returncode
        self.event("command_ended", exit_status=process.returncode, stopped=self.stopping)
        self._drain()
        if process.returncode and not self.stopping:
            self.fail(f"exit status {process.returncode}")
        else:
            self.finish()

    def _drain(self) -> None:
        """Take what the program wrote last; its descendants may keep the pipe open, so only what is there now."""
        process = self._process
        while process is not None and process.stdout is not None:
            before = self._written + self._dropped
            self._readable(READABLE)
            if self._written + self._dropped == before:
                return

    def stop(self) -> None:
        if self.stopping or self.done:
            return
        self.stopping = True
        self._signal(signal.SIGTERM)
        self._finish_after(TERMINATE_NS)

    def _signal(self, number: signal.Signals) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            # Not reaped yet, so the pid, and the process group of the same number, is still the program's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)

    def release(self) -> None:
        process = self._process
        if process is not None:
            self._signal(signal.SIGKILL)
            process.wait()  # SIGKILL was sent, or it has ended
            if self._exit_status is None:
                self._exit_status = process.returncode
            if process.stdout is not None:
                self.loop.unwatch(process.stdout.fileno())
                process.stdout.close()
        if self._pidfd >= 0:
            self.loop.unwatch(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if self._output is not None:
            self._output.close()

    def extra(self) -> dict[str, Any]:
        return {
            "exit_status": self._exit_status,
            "output": str(self._output_path),
            "output_bytes": self._written,
            "output_dropped_bytes": self._dropped,
        }

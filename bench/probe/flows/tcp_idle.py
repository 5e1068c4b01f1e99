"""tcp-idle: a connection on which nothing is said, as a database pool or a terminal holds them, with keepalive.

One request when it stands, then silence until the flow's stop, which asks once more: whether the connection still
works is only known then, or when a keepalive probe's end tells. See ``tcp.keepalive``.
"""

from __future__ import annotations

from bench.clock import now_ns
from bench.flows.spec import APPLICATION_TIMEOUT, GRACE_NS
from bench.probe.flows.tcp_request import TcpRequestFlow


class TcpIdleFlow(TcpRequestFlow):
    """See the module."""

    kind = "tcp-idle"

    def connected(self) -> None:
        self._ask()

    def _answered(self, received_ns: int) -> None:
        number, self._outstanding = self._outstanding, -1
        self._verify(number, received_ns)
        if self.stopping:
            self.finish()

    def stop(self) -> None:
        if self.stopping or self.done:
            return
        if self._outstanding < 0 and self._connected:
            self._ask()
        self.stopping = True
        self._at(now_ns() + GRACE_NS, self._gave_no_answer)

    def _gave_no_answer(self) -> None:
        if not self.done:
            self.fail(APPLICATION_TIMEOUT)

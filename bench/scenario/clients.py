"""The flows from client hosts to the guest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from bench import units
from bench.scenario.cards import MAX_MORE_CARDS
from bench.scenario.values import FROM_LIST, BitRate, DurationNs, NodeName, Spec, parse_keepalive, quantity


class TcpSpec(Spec):
    """What a flow wants of its connection; left out is the kernel's default.

    ``congestion``: a congestion control of this kernel. ``user_timeout``: TCP_USER_TIMEOUT. ``keepalive``:
    idle/interval/count, such as ``"1s/1s/5"``. ``rto_min``: the least retransmission timeout (Linux 6.16).
    ``retries2``: ``tcp_retries2`` of the client host, on which its flows must agree. ``syn_retries``: TCP_SYNCNT.
    ``nagle``: small segments wait for an acknowledgement. ``guest_rto_min``: ``rto_min`` of the guest's end of a flow
    to it.
    """

    congestion: Annotated[str, Field(pattern=r"^[a-z0-9_]{0,15}$")] = ""
    user_timeout: DurationNs = 0
    keepalive: str = ""
    rto_min: DurationNs = 0
    retries2: Annotated[int, Field(ge=0, le=30)] = 0
    syn_retries: Annotated[int, Field(ge=0, le=127)] = 0
    nagle: bool = False
    guest_rto_min: DurationNs = 0

    @field_validator("keepalive")
    @classmethod
    def _keepalive(cls, value: str) -> str:
        if value:
            parse_keepalive(value)
        return value

    @field_validator("user_timeout")
    @classmethod
    def _user_timeout(cls, value: int) -> int:
        if value and not 10**6 <= value <= 3600 * 10**9:
            raise ValueError("'0s', or a duration from '1ms' to '3600s'")
        return value

    @field_validator("rto_min", "guest_rto_min")
    @classmethod
    def _rto_min(cls, value: int) -> int:
        if value and not 10**6 <= value <= 10**9:
            raise ValueError("'0s', or a duration from '1ms' to '1s'")
        return value


TCP_KINDS = ("tcp-request", "tcp-download", "tcp-upload", "tcp-connect", "tcp-idle", "http", "redis")
RETRYING_KINDS = ("tcp-request", "http", "redis")
GUEST_KINDS = (*TCP_KINDS, "udp-echo", "udp-stream")
"""What a guest runs itself, as a client of a server outside."""


class ClientSpec(Spec):
    """One flow from a client host to the guest, or (``direction``) from the guest to a server on that host.

    Kinds: ``udp-echo`` (probe of ``size`` bytes every ``interval``), ``udp-stream`` (one-way datagrams of ``size``
    bytes, at a ``rate`` or every ``interval``; the receiver verifies them), ``tcp-request`` (request/response on one
    connection, ``think`` between), ``tcp-download`` and ``tcp-upload`` (bulk with verified content; ``rate`` 0 is
    as fast as it goes), ``tcp-connect`` (a new connection for each request, every ``interval``), ``tcp-idle`` (one
    that is silent until the run ends; see ``tcp.keepalive``), ``http`` (by Python's http.client) and ``redis`` (by
    redis-py), ``command`` (any program on the client host; its exit status and output are kept). A flow without an
    answer for ``timeout`` is dead; with ``retry`` its client connects anew.
    ``guest``: by name; by default the first one. ``card``: the number of the guest's card that it talks to, from 0.
    ``family``: over IPv4 or IPv6.
    """

    kind: Literal[
        "udp-echo",
        "udp-stream",
        "tcp-request",
        "tcp-download",
        "tcp-upload",
        "tcp-connect",
        "tcp-idle",
        "http",
        "redis",
        "command",
    ]
    host: NodeName | None = None
    guest: NodeName | None = None
    card: Annotated[int, Field(ge=0, le=MAX_MORE_CARDS)] = 0
    family: Literal["ipv4", "ipv6"] = "ipv4"
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,32}$")] | None = None
    direction: Literal["to-guest", "from-guest"] = "to-guest"
    interval: DurationNs = 1_000_000
    think: DurationNs = 1_000_000
    size: Annotated[int, quantity(units.parse_bytes), Field(ge=16, le=65536)] = 64
    rate: BitRate = 0
    timeout: DurationNs = 60 * 10**9
    retry: bool = False
    tcp: TcpSpec = TcpSpec()
    command: Annotated[tuple[str, ...], FROM_LIST] = ()

    @model_validator(mode="after")
    def _complete(self) -> ClientSpec:
        if (self.kind == "command") != bool(self.command):
            raise ValueError("a command (a list of words) with kind 'command' and only there")
        if self.kind == "udp-echo" and (self.interval < 100_000 or self.size > 1400):
            raise ValueError("an interval of at least '100us' and a size up to '1400B' for udp-echo")
        if self.kind == "udp-stream" and not (24 <= self.size <= 1400 and 0 <= self.rate <= 1_000_000_000):
            raise ValueError("a size from '24B' to '1400B' and a rate up to '1Gbit' for udp-stream")
        if self.tcp.guest_rto_min and (self.direction == "from-guest" or self.kind == "tcp-connect" or self.retry):
            raise ValueError("tcp.guest_rto_min only of flows to the guest with one connection (rto_min: the client's)")
        if self.direction == "from-guest" and self.kind not in GUEST_KINDS:
            raise ValueError(f"direction 'from-guest' only with kind {', '.join(GUEST_KINDS)}")
        if self.tcp != TcpSpec() and self.kind not in TCP_KINDS:
            raise ValueError(f"tcp options only with kind {', '.join(TCP_KINDS)}")
        if self.retry and self.kind not in RETRYING_KINDS:
            raise ValueError(f"retry only with kind {', '.join(RETRYING_KINDS)}")
        return self

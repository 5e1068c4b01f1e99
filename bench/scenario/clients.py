"""The flows from client hosts to the guest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bench import units
from bench.scenario.values import FROM_LIST, BitRate, DurationNs, NodeName, Spec, quantity


class ClientSpec(Spec):
    """One flow from a client host to the guest.

    Kinds: ``udp-echo`` (probe of ``size`` bytes every ``interval``), ``tcp-request`` (request/response on one
    connection, ``think`` between), ``tcp-download`` and ``tcp-upload`` (bulk with verified content; ``rate`` 0 is
    as fast as it goes), ``command`` (any program on the client host; its exit status and output are kept).
    ``guest``: by name; by default the first one.
    """

    kind: Literal["udp-echo", "tcp-request", "tcp-download", "tcp-upload", "command"]
    host: NodeName | None = None
    guest: NodeName | None = None
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,32}$")] | None = None
    interval: DurationNs = 1_000_000
    think: DurationNs = 1_000_000
    size: Annotated[int, quantity(units.parse_bytes), Field(ge=16, le=65536)] = 64
    rate: BitRate = 0
    timeout: DurationNs = 60 * 10**9
    command: Annotated[tuple[str, ...], FROM_LIST] = ()

    @model_validator(mode="after")
    def _complete(self) -> ClientSpec:
        if (self.kind == "command") != bool(self.command):
            raise ValueError("a command (a list of words) with kind 'command' and only there")
        if self.kind == "udp-echo" and (self.interval < 100_000 or self.size > 1400):
            raise ValueError("an interval of at least '100us' and a size up to '1400B' for udp-echo")
        return self

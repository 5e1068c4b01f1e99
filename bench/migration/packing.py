"""A page sender that squeezes pages before it sends them: deltas of what was sent before, compression of the rest.

Both work on a copy of the pages: the guest writes them meanwhile, and neither a compressor nor the memory of what was
sent may see two different pages in one. What does not become smaller is sent plain.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bench.memory.bitmap import Pages
from bench.memory.image import GuestMemory, Words
from bench.migration import delta, wire
from bench.migration.compression import Codec, load_codec
from bench.migration.cost import Meter
from bench.migration.levers import Levers
from bench.migration.outlet import Outlet
from bench.migration.pages import PageSender, Sent
from bench.migration.pieces import Part, bytes_of
from bench.migration.transport import Connection, Pacer
from bench.migration.wire import Kind

Flags = npt.NDArray[np.bool_]

_SAMPLED_WORDS: Final = slice(3, None, 64)  # 8 of a page's 512
_MANY_VALUES: Final = 32  # of 64: random bytes hit 40, text about 10


def make_sender(outlet: Outlet | Connection, memory: GuestMemory, pacer: Pacer, levers: Levers) -> PageSender:
    """The sender that these levers need.

    :raises MigrationError: when a library is missing.
    """
    codec = load_codec(levers.compression, levers.compression_level, levers.compression_threads)
    if codec is None and not levers.delta_cache_bytes:
        return PageSender(outlet, memory, pacer, levers.zero_pages)
    return PackingSender(outlet, memory, pacer, levers, codec)


def looks_random(rows: Words) -> Flags:
    """Which pages most likely do not compress, by 64 bytes of each; shape (pages,).

    Bytes are sorted into 64 kinds by their upper 6 bits. A wrong guess costs some compression, never correctness.
    """
    sample = np.ascontiguousarray(rows[:, _SAMPLED_WORDS]).view(np.uint8)
    kinds = np.bitwise_or.reduce(np.uint64(1) << (sample >> 2).astype(np.uint64), axis=1)
    count = np.unpackbits(kinds.view(np.uint8).reshape(len(rows), 8), axis=1).sum(axis=1)
    random: Flags = count >= _MANY_VALUES
    return random


class PackingSender(PageSender):
    """See this module. Pages are only sent as deltas inside of rounds from the second on."""

    def __init__(
        self, outlet: Outlet | Connection, memory: GuestMemory, pacer: Pacer, levers: Levers, codec: Codec | None
    ) -> None:
        super().__init__(outlet, memory, pacer, levers.zero_pages)
        self._levers = levers
        self._codec = codec
        self._cache: delta.DeltaCache | None = None
        if levers.delta_cache_bytes:
            self._cache = delta.DeltaCache(levers.delta_cache_bytes, memory.page_count)
        self._round = 0
        self._plain_bytes = self._wire_bytes = 0  # of the last round, zero pages left out
        self._packing_meter, self._delta_meter = Meter(), Meter()
        self._packed = {"pages": 0, "plain_pages": 0, "input_bytes": 0, "output_bytes": 0}
        self._deltas = {"pages": 0, "hits": 0, "misses": 0, "overflows": 0, "input_bytes": 0, "output_bytes": 0}

    def begin_round(self, number: int) -> None:
        self._round = number
        self._plain_bytes = self._wire_bytes = 0

    def end_round(self) -> None:
        self._round = 0

    def batch_pages(self, pages: int) -> int:
        packed = pages * self._plain_bytes // self._wire_bytes if self._ratio else pages
        return max(1, min(wire.MAX_FRAME_PAGES, packed))

    def expected_bytes(self, pages: int) -> int:
        plain = super().expected_bytes(pages)
        return plain * self._wire_bytes // self._plain_bytes if self._ratio else plain

    @property
    def _ratio(self) -> bool:
        """Whether this round, or the last one, said anything about how much smaller pages become."""
        return self._plain_bytes >= 1 << 20 and self._wire_bytes > 0

    def cost(self) -> dict[str, Any]:
        cost = super().cost()
        if self._codec is not None:
            saved = self._packed["input_bytes"] - self._packed["output_bytes"]
            how = {
                "codec": self._codec.name,
                "level": self._levers.compression_level,
                "threads": self._levers.compression_threads,
            }
            cost["compression"] = {**how, **self._packed, "saved_bytes": saved, **self._packing_meter.to_json()}
        if self._cache is not None:
            tried = self._deltas["hits"] + self._deltas["misses"]
            cost["delta"] = {
                "cache_bytes": self._cache.size_bytes,
                **self._deltas,
                "refused": self._cache.refused,
                "hit_rate": self._deltas["hits"] / tried if tried else None,
                "saved_bytes": self._deltas["input_bytes"] - self._deltas["output_bytes"],
                **self._delta_meter.to_json(),
            }
        return cost

    def send(self, pages: Pages, totals: Sent) -> None:
        rows = self._gather(pages)
        zero = self._zeros(rows)
        zeros = int(np.count_nonzero(zero))
        parts: list[Part] = []
        if zeros:
            parts.append(self._encode_zero(pages[zero]))
            if self._cache is not None:
                self._cache.forget(pages[zero])
            pages, rows = pages[~zero], rows[~zero]
        zero_bytes = bytes_of(parts)
        count = len(pages)
        if count:
            parts += self._squeeze(pages, rows)
        sent = self.outlet.send(parts, count + zeros)
        self._plain_bytes += count * wire.PAGE_BYTES
        self._wire_bytes += sent - zero_bytes
        self._account(totals, count + zeros, zeros, sent)

    def _squeeze(self, pages: Pages, rows: Words) -> list[Part]:
        parts: list[Part] = []
        if self._cache is not None:
            with self._delta_meter:
                left = self._delta(self._cache, pages, rows, parts)
            pages, rows = pages[left], rows[left]
        if len(pages) and self._codec is not None:
            with self._packing_meter:
                random = looks_random(rows)
                for group in (random, ~random):
                    if group.any():
                        self._compress(self._codec, pages[group], rows[group], parts)
        elif len(pages):
            parts += _plain(pages, rows)
        return parts

    def _delta(self, cache: delta.DeltaCache, pages: Pages, rows: Words, parts: list[Part]) -> Flags:
        """Encode what the destination has an older copy of, and remember the rest. :returns: which pages are left."""
        left = np.ones(len(pages), dtype=np.bool_)
        if self._round >= 2:
            held = cache.held(pages)
            hits = np.flatnonzero(held)
            self._deltas["hits"] += len(hits)
            self._deltas["misses"] += len(pages) - len(hits)
            if len(hits):
                changed = rows[hits] != cache.rows(pages[hits])
                small = delta.sizes(changed) < wire.PAGE_BYTES
                self._deltas["overflows"] += len(hits) - int(np.count_nonzero(small))
                chosen = hits[small]
                if len(chosen):
                    payload = delta.encode(changed[small], rows[chosen])
                    head = wire.encode_squeezed(Kind.DELTA, pages[chosen].astype(np.uint32), len(payload))
                    parts += [head, payload]
                    left[chosen] = False
                    self._deltas["pages"] += len(chosen)
                    self._deltas["input_bytes"] += len(chosen) * wire.PAGE_BYTES
                    self._deltas["output_bytes"] += len(head) + len(payload)
        if self._round:
            cache.store(pages, rows, self._round)
        else:
            cache.forget(pages)
        return left

    def _compress(self, codec: Codec, pages: Pages, rows: Words, parts: list[Part]) -> None:
        """These pages as one PACKED frame, or plain when that is no larger."""
        packed = codec.compress(rows.data.cast("B"))
        if len(packed) >= rows.nbytes:
            parts += _plain(pages, rows)
            self._packed["plain_pages"] += len(pages)
            return
        head = wire.encode_squeezed(Kind.PACKED, pages.astype(np.uint32), len(packed))
        parts += [head, packed]
        self._packed["pages"] += len(pages)
        self._packed["input_bytes"] += rows.nbytes
        self._packed["output_bytes"] += len(head) + len(packed)


def _plain(pages: Pages, rows: Words) -> list[Part]:
    return [wire.encode_pages(pages.astype(np.uint32)), rows.data]

"""Guest pages between memory and the wire, without an object per page.

Sending: neighbours that all hold data leave as the memfd's own pages, which nobody copies (:class:`Stretch`), or
straight from its mapping when they are few; scattered pages are gathered by numpy into one buffer first (an iovec of
single pages is a third slower); zero pages travel as runs of numbers. A page that the guest writes before it has left
is dirty again, so whatever of it arrived, torn or newer than it should be, is replaced; what is sent while the guest
stands still does not change.

Receiving: runs go straight into the guest's memory, scattered pages through one buffer; each page is then hashed as it
is read back from memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from bench.clock import Deadline, now_ns
from bench.errors import WireError
from bench.memory.bitmap import Pages
from bench.memory.hashes import BLOCK_PAGES, PageHashes
from bench.memory.image import WORDS_PER_PAGE, GuestMemory, Words
from bench.memory.zero import zero_pages
from bench.migration import delta, wire
from bench.migration.compression import Codec
from bench.migration.cost import Meter
from bench.migration.outlet import OneStream, Outlet, new_scratch
from bench.migration.pieces import Part, Stretch
from bench.migration.transport import Connection, Pacer
from bench.migration.wire import Frame, Kind

Flags: TypeAlias = npt.NDArray[np.bool_]

STRETCH_PAGES: Final = 16  # copying fewer costs less than the further system calls
PLACED_PAGES: Final = 256  # of a run, read and then hashed


@dataclass(slots=True)
class Sent:
    """Running totals of a round. ``pages`` includes ``zero_pages``; bytes are those written to the connection."""

    pages: int = 0
    zero_pages: int = 0
    sent_bytes: int = 0


class PageSender:
    """Sends pages of one memory.

    :param outlet: where they leave; a connection is one stream.
    :param pacer: keeps to the bandwidth limit; replace it (rate 0) for the final copy.
    :param find_zeros: whether zero pages are looked for; without it they are sent as any other.
    """

    def __init__(self, outlet: Outlet | Connection, memory: GuestMemory, pacer: Pacer, find_zeros: bool = True) -> None:
        self.outlet: Outlet = OneStream(outlet) if isinstance(outlet, Connection) else outlet
        self.pacer = pacer
        self.find_zeros = find_zeros
        self._words = memory.words
        self._fd = memory.fd
        self._zero_meter = Meter()
        self._zero_pages = 0
        self._zero_bytes = 0
        self._limit_bps = pacer.rate_bps
        self._paced_ns = 0

    # what a subclass may do otherwise

    def begin_round(self, number: int) -> None:
        """What is sent from now on belongs to this round (from 1) of a pre-copy, the final copy included."""

    def end_round(self) -> None:
        """What is sent from now on belongs to no round."""

    def batch_pages(self, pages: int) -> int:
        """How many pages take as long on the link as *pages* plain ones do, and :meth:`send` takes at once."""
        return pages

    def expected_bytes(self, pages: int) -> int:
        """What so many dirty pages will take on the wire, as far as can be said."""
        return pages * wire.PAGE_BYTES

    def cost(self) -> dict[str, Any]:
        """What each lever of this sender saved and took, JSON-able: see :mod:`bench.migration.cost`."""
        cost = self.outlet.cost()
        if self._limit_bps:
            cost["max_bandwidth"] = {"limit_bps": self._limit_bps, "time_ns": self._paced_ns}
        if not self.find_zeros:
            return cost
        saved = self._zero_pages * wire.PAGE_BYTES - self._zero_bytes
        cost["zero_pages"] = {"pages": self._zero_pages, "saved_bytes": saved, **self._zero_meter.to_json()}
        return cost

    def send(self, pages: Pages, totals: Sent) -> None:
        """Send up to :data:`wire.MAX_RUN_PAGES` pages (rising numbers), and wait as the pacer says.

        :raises PeerLost: when the link or the peer is gone.
        """
        count = len(pages)
        first = int(pages[0])
        if int(pages[-1]) - first + 1 == count:
            zero = self._zeros(self._words[first : first + count])
            if count <= wire.MAX_FRAME_PAGES or not zero.any():
                self._send_frames(pages, zero, totals)
                return
        else:
            zero = None
        for begin in range(0, count, wire.MAX_FRAME_PAGES):
            part = slice(begin, begin + wire.MAX_FRAME_PAGES)
            self._send_frames(pages[part], None if zero is None else zero[part], totals)

    def _send_frames(self, pages: Pages, zero: Flags | None, totals: Sent) -> None:
        """Send pages that fit a frame of their kind. :param zero: which of them are zero, if that is known already."""
        count = len(pages)
        first = int(pages[0])
        neighbours = int(pages[-1]) - first + 1 == count
        rows = self._words[first : first + count] if neighbours else self._gather(pages)
        if zero is None:
            zero = self._zeros(rows)
        zeros = int(np.count_nonzero(zero))
        if not zeros:
            head = wire.encode_run(first, count) if neighbours else wire.encode_pages(pages.astype(np.uint32))
            body = self._stretch(first, rows) if neighbours and count >= STRETCH_PAGES else rows.data
            sent = self.outlet.send([head, body], count)
        else:
            parts: list[Part] = [self._encode_zero(pages[zero])]
            full = pages[~zero]
            if len(full):
                parts += [wire.encode_pages(full.astype(np.uint32)), self._gather(full).data]
            sent = self.outlet.send(parts, count)
        self._account(totals, count, zeros, sent)

    def _account(self, totals: Sent, count: int, zeros: int, sent: int) -> None:
        """*sent* bytes for *count* pages, *zeros* of them zero, have just been written: wait as the pacer says."""
        totals.pages += count
        totals.zero_pages += zeros
        totals.sent_bytes += sent
        due_ns = self.pacer.sent(sent, now_ns())
        begin_ns = now_ns()
        if due_ns > begin_ns:
            self.outlet.pause(Deadline(due_ns - begin_ns))
            self._paced_ns += now_ns() - begin_ns

    def _zeros(self, rows: Words) -> Flags:
        if not self.find_zeros:
            return np.zeros(len(rows), dtype=np.bool_)
        with self._zero_meter:
            return zero_pages(rows)

    def _encode_zero(self, pages: Pages) -> bytes:
        frame = wire.encode_zero(wire.runs_of(pages))
        self._zero_pages += len(pages)
        self._zero_bytes += len(frame)
        return frame

    def _stretch(self, first: int, rows: Words) -> Stretch:
        return Stretch(self._fd, first * wire.PAGE_BYTES, rows.data.cast("B"))

    def _gather(self, pages: Pages) -> Words:
        into = self.outlet.scratch()[: len(pages)]
        np.take(self._words, pages, axis=0, out=into, mode="clip")  # "clip": without it numpy copies twice
        return into


def new_hashes(page_count: int, postcopy: str) -> PageHashes:
    """What both sides of a migration hash memory with.

    :param postcopy: :attr:`Order.post_copy`: where pages may come one by one while the guest runs, each is hashed by
        itself, before the guest has it.
    """
    return PageHashes(page_count, BLOCK_PAGES if postcopy == "never" else 1)


class PageReceiver:
    """Places pages in the skeleton's memory.

    :param hashes: updated with what was placed; None when nothing is verified. Fresh memory is all zero pages.
    :param codec: what PACKED frames are compressed with; None when the source never sends any.
    :ivar page_count: of the memory.
    :ivar unpacking: what PACKED and DELTA frames cost this side.
    """

    def __init__(
        self, connection: Connection, memory: GuestMemory, hashes: PageHashes | None, codec: Codec | None = None
    ) -> None:
        self.unpacking = Meter()
        self.page_count = memory.page_count
        self._codec = codec
        self._connection = connection
        self._memory = memory
        self._hashes = hashes
        self._written = np.zeros(memory.page_count, dtype=np.bool_)
        self._scratch = new_scratch()
        self._round_pages = 0

    def place(self, frame: Frame) -> None:
        """Read the payload of a RUN, PAGES, ZERO, PACKED or DELTA frame and put it where it belongs."""
        payload = self.room(frame, self._scratch)
        if frame.kind is not Kind.RUN:
            self._connection.read_into(payload)
            self.settle(frame, payload)
            return
        for begin in range(0, frame.count, PLACED_PAGES):  # hashed while it is in the cache
            count = min(PLACED_PAGES, frame.count - begin)
            self._connection.read_into(payload[begin * wire.PAGE_BYTES : (begin + count) * wire.PAGE_BYTES])
            self._settle_run(frame.value + begin, count)

    def room(self, frame: Frame, scratch: Words) -> memoryview:
        """Where the payload of such a frame is to be read into.

        :param scratch: room for :data:`wire.MAX_FRAME_PAGES` pages, the frame's own until :meth:`settle`.
        """
        if frame.kind is Kind.RUN:
            begin = frame.value * wire.PAGE_BYTES
            return self._memory.view[begin : begin + frame.payload_bytes]
        return scratch.data.cast("B")[: frame.payload_bytes]

    def settle(self, frame: Frame, payload: memoryview) -> None:
        """The payload is whole: put it where it belongs. :raises WireError: when it is not what its frame says."""
        if frame.kind is Kind.RUN:
            self._settle_run(frame.value, frame.count)
            return
        self._round_pages += frame.pages
        if frame.kind is Kind.ZERO:
            self._place_zero(frame.runs)
        else:
            self._place_pages(frame, payload)

    def _settle_run(self, first: int, count: int) -> None:
        self._round_pages += count
        self._written[first : first + count] = True
        if self._hashes is not None:
            self._hashes.update_range(self._memory.words, first, count)

    def end_round(self, frame: Frame) -> None:
        """:raises WireError: when the round held other pages than its sender counted."""
        pages, self._round_pages = self._round_pages, 0
        if pages != frame.value:
            raise WireError(f"round {frame.count}: {pages} pages arrived, {frame.value} were sent")

    def _place_pages(self, frame: Frame, payload: memoryview) -> None:
        pages = frame.indices.astype(np.int64)
        if frame.kind is Kind.PAGES:
            self._memory.words[pages] = _rows(payload)
        else:
            with self.unpacking:
                if frame.kind is Kind.DELTA:
                    delta.apply(payload, pages, self._memory.words)
                elif self._codec is None:
                    raise WireError("PACKED frame in a migration without compression")
                else:
                    self._memory.words[pages] = _rows(self._codec.decompress(payload, len(pages) * wire.PAGE_BYTES))
        self._written[pages] = True
        if self._hashes is not None:
            self._hashes.update(self._memory.words, pages)

    def _place_zero(self, runs: wire.Indices) -> None:
        for first, count in runs.tolist():
            # A page that nothing was ever placed in is zero already; only others are written.
            pages = np.flatnonzero(self._written[first : first + count]) + first
            if len(pages):
                self._memory.words[pages] = 0
                self._written[pages] = False
                if self._hashes is not None:
                    self._hashes.update(self._memory.words, pages)


def _rows(data: memoryview | bytes) -> Words:
    return np.frombuffer(data, dtype=np.uint64).reshape(-1, WORDS_PER_PAGE)

"""What was sent more than once, and what arrived more than once, as the captured frames of a flow show it. Pure.

**Sent again**: a segment with data (or a SYN or FIN) at the switch port next to its sender that begins below the
furthest one which that end has sent (RFC 9293, 3.4: sequence numbers modulo 2**32). Nothing lies between the port and
the sender but one link, so order is the sender's.

**Copies**: a segment at the port next to its receiver none of which is new: everything in it passed that port before.
What went to the guest's old port after its network was cut, and to the new one before that was wired, met nobody and
is no arrival.

Both are per migration: frames from its beginning to the next one's. A super-frame that the network cards have not cut
yet is one segment.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from bench.analysis.flows import Window
from bench.analysis.through import FlowPath, of_flow, seen_at
from bench.records import DIRECTION_IN, DIRECTION_OUT, PROTOCOL_TCP, StructuredArray
from bench.result import ResentResult

MOST_TIMES: Final = 1000
_SYN_FIN: Final = 0x03
_Ints = npt.NDArray[np.int64]


def resent(frames: StructuredArray, path: FlowPath, window: Window, wired_ns: int | None) -> ResentResult | None:
    """Of one flow in the migration of *window*; None where its frames were not to be seen.

    :param frames: records of :data:`bench.records.FRAME`, ordered by time.
    :param wired_ns: when the guest's new port was wired.
    """
    begin, end = np.searchsorted(frames["t_ns"], [window.start_ns, window.end_ns])
    frames = frames[begin:end]
    up = of_flow(frames, path, PROTOCOL_TCP, to_guest=True)
    down = of_flow(frames, path, PROTOCOL_TCP, to_guest=False)
    if path.client_interface is None or not len(up) + len(down):
        return None
    by_client = _again(seen_at(up, path.client_interface, DIRECTION_IN), whole=False)
    by_guest = _again(_at_guest(down, path, DIRECTION_IN, window, wired_ns), whole=False)
    at_client = _again(seen_at(down, path.client_interface, DIRECTION_OUT), whole=True)
    at_guest = _again(_at_guest(up, path, DIRECTION_OUT, window, wired_ns), whole=True)
    return ResentResult(
        by_client=len(by_client),
        by_guest=len(by_guest),
        copies_at_client=len(at_client),
        copies_at_guest=len(at_guest),
        by_client_ns=by_client[:MOST_TIMES].tolist(),
        by_guest_ns=by_guest[:MOST_TIMES].tolist(),
    )


def _at_guest(
    segments: StructuredArray, path: FlowPath, direction: int, window: Window, wired_ns: int | None
) -> StructuredArray:
    """Those at the port that the guest was behind at the time."""
    old, new = seen_at(segments, path.old_interface, direction), seen_at(segments, path.new_interface, direction)
    if window.pause_ns is not None and wired_ns is not None:
        old = old[old["t_ns"] <= window.pause_ns]
    new = new[new["t_ns"] >= (wired_ns or window.end_ns)]
    both = np.concatenate([old, new])
    ordered: StructuredArray = both[np.argsort(both["t_ns"], kind="stable")]
    return ordered


def _again(segments: StructuredArray, *, whole: bool) -> _Ints:
    """Times of the segments that begin (*whole*: end) not beyond the furthest end of those before them."""
    length = segments["payload"].astype(np.int64) + ((segments["flags"] & _SYN_FIN) != 0)
    segments, length = segments[length > 0], length[length > 0]
    if not len(segments):
        return np.zeros(0, np.int64)
    # Unwrapped: each step is the shortest way around.
    steps = np.diff(segments["seq"].astype(np.uint32)).view(np.int32).astype(np.int64)
    begins = np.concatenate([[0], np.cumsum(steps)])
    ends = begins + length
    furthest = np.maximum.accumulate(ends)[:-1]
    known = ends[1:] <= furthest if whole else begins[1:] < furthest
    times: _Ints = segments["t_ns"][1:][known].astype(np.int64)
    return times

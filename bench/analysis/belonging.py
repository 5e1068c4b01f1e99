"""Which frames of a run concern which guest. Pure."""

from __future__ import annotations

import numpy as np

from bench.analysis.overall import GuestFacts
from bench.records import StructuredArray, ip_to_int, mac_to_int


def frames_of(frames: StructuredArray, guest: GuestFacts) -> StructuredArray:
    """The frames from, to and about one guest; ``dst_is_guest`` and ``is_announce`` of them mean this guest.

    :param frames: of all guests: :data:`bench.records.FRAME`.
    """
    address, mac = ip_to_int(guest.address), mac_to_int(guest.mac)
    ours = (frames["src_ip"] == address) | (frames["dst_ip"] == address) | (frames["src_mac"] == mac)
    chosen: StructuredArray = frames[ours]  # a copy
    chosen["dst_is_guest"] &= chosen["dst_ip"] == np.uint32(address)
    chosen["is_announce"] &= (chosen["src_ip"] == np.uint32(address)) | (chosen["src_mac"] == np.uint64(mac))
    return chosen

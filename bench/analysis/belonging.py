"""Which frames of a run concern which guest. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.analysis.overall import CardFacts, GuestFacts
from bench.records import StructuredArray, ip_to_int, mac_to_int


def frames_of(frames: StructuredArray, guest: GuestFacts) -> StructuredArray:
    """The frames from, to and about one guest; ``dst_is_guest`` and ``is_announce`` of them mean this guest.

    :param frames: of all guests: :data:`bench.records.FRAME`.
    """
    return frames_of_cards(frames, guest.all_cards)


def frames_of_cards(frames: StructuredArray, cards: Sequence[CardFacts]) -> StructuredArray:
    """The same of some cards of a guest."""
    addresses = np.array([ip_to_int(text) for card in cards for text in card.addresses], np.uint32)
    macs = np.array([mac_to_int(card.mac) for card in cards], np.uint64)
    ours = np.isin(frames["src_ip"], addresses) | np.isin(frames["dst_ip"], addresses)
    chosen: StructuredArray = frames[ours | np.isin(frames["src_mac"], macs)]  # a copy
    chosen["dst_is_guest"] &= np.isin(chosen["dst_ip"], addresses)
    chosen["is_announce"] &= np.isin(chosen["src_ip"], addresses) | np.isin(chosen["src_mac"], macs)
    return chosen

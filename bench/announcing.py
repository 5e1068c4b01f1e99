"""From a scenario's [announce] to what a guest is told to announce. Pure."""

from __future__ import annotations

from typing import Any

from bench.migration.announce import AnnounceFrame, Custom, Faults, for_cards, frames, offsets_ns, order, sends
from bench.scenario import AnnounceSpec, GuestSpec


def announcement(
    announce: AnnounceSpec, guest: GuestSpec, delay_ns: int = 0, *, faulty: bool = False
) -> dict[str, Any]:
    """Frames and times, as the guest's ``start`` and ``take`` want them.

    :param delay_ns: how much later than scheduled it begins.
    :param faulty: with the faults that the scenario asks for: those of a migration, not of the boot.
    """
    custom = Custom(announce.initial, announce.max, announce.rounds, announce.step)
    offsets = custom.offsets_ns() if announce.schedule == "custom" else offsets_ns(announce.schedule)
    planned = sends(
        announce.kinds,
        [delay_ns + offset for offset in offsets],
        sender=announce.sender,
        guest_delay_ns=announce.guest_delay,
    )
    told = announce.faults
    faults = Faults(
        told.lost_first, told.lost, told.seed, told.late, told.wired_late, told.before_wiring, told.reordered
    )
    announced: list[AnnounceFrame] = []
    cards = guest.all_cards
    for number, card in enumerate(cards):
        mac = told.wrong_mac if faulty and told.wrong_mac is not None else str(card.mac)
        address, address6 = (text.partition("/")[0] for text in (card.address, card.address6 or ""))
        announced += frames(announce.kinds, mac, address, address6=address6, card=number)
    return order(announced, for_cards(planned, len(announce.kinds), len(cards)), faults if faulty else None)

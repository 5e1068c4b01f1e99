"""Relearning for each network card of a guest, in its VLAN. Pure.

A guest with one card is as :mod:`bench.analysis.relearn` has it; each further card has a wave of its own, seen in the
frames from, to and about that card alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.analysis.belonging import frames_of_cards
from bench.analysis.flows import Window
from bench.analysis.overall import GuestFacts
from bench.analysis.relearn import analyse_relearning
from bench.records import StructuredArray
from bench.result import CardRelearn, RelearnResult
from bench.timeline import Timeline


def card_relearning(
    timeline: Timeline,
    window: Window,
    frames: StructuredArray,
    interfaces: Sequence[str],
    guest: GuestFacts,
    **places: Any,
) -> RelearnResult:
    """The relearning of one migration, with that of further cards in ``cards``.

    :param places: ports and distances, as :func:`bench.analysis.relearn.analyse_relearning` has them.
    """
    cards = guest.all_cards
    found = []
    for number, card in enumerate(cards):
        about = frames if len(cards) == 1 else frames_of_cards(frames, [card])
        relearn = analyse_relearning(timeline, window, about, interfaces, mac=card.mac, card=number, **places)
        found.append(_in_vlan(relearn, card.vlan))
    first, *others = found
    more = [
        CardRelearn(
            card=number,
            mac=card.mac,
            address=card.address,
            address6=card.address6,
            vlan=card.vlan,
            announce_ns=relearn.announce_ns,
            announcements=relearn.announcements,
            switches=relearn.switches,
        )
        for number, (card, relearn) in enumerate(zip(cards[1:], others, strict=True), 1)
    ]
    return first.model_copy(update={"cards": more}) if more else first


def _in_vlan(relearn: RelearnResult, vlan: int) -> RelearnResult:
    """What the switches' tables did not say of the VLAN, the scenario does."""
    if not vlan:
        return relearn
    switches = [
        switch if switch.vlan is not None else switch.model_copy(update={"vlan": vlan}) for switch in relearn.switches
    ]
    return relearn.model_copy(update={"switches": switches})


def for_flow(relearn: RelearnResult, card: int) -> RelearnResult:
    """The wave that matters to a flow to one of the guest's cards."""
    chosen = next((item for item in relearn.cards if item.card == card), None)
    if chosen is None:
        return relearn
    return relearn.model_copy(update={"announce_ns": chosen.announce_ns, "switches": chosen.switches})

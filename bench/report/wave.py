"""The wave of relearning as a table: switches by their distance from the guest's new place, against time."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from bench.report.text import after, clean, duration, heading, show, table
from bench.result import RelearnResult, SwitchRelearn


def print_wave(relearn: RelearnResult, origin_ns: int | None, console: Console) -> None:
    """Nothing when no switch's own state was seen.

    :param origin_ns: the guest's resume.
    """
    if not any(switch.state_by for switch in relearn.switches):
        return
    since_ns = relearn.announce_ns if relearn.announce_ns is not None else origin_ns
    what = "announcement" if relearn.announce_ns is not None else "resume"
    heading(console, "Wave", f"by distance from the guest's new place; moments after the {what}")
    _print_switches(relearn.switches, since_ns, console)
    for card in relearn.cards:
        vlan = f" in VLAN {card.vlan}" if card.vlan else ""
        title = f"card {card.card}, {clean(' '.join(filter(None, (card.address, card.address6))))}{vlan}"
        console.print(title, highlight=False)
        _print_switches(card.switches, card.announce_ns if card.announce_ns is not None else origin_ns, console)
    switches = [*relearn.switches, *(switch for card in relearn.cards for switch in card.switches)]
    differing = [switch for switch in switches if switch.differ]
    if not differing:
        console.print(
            f"the witnesses of every switch agree to within {duration(relearn.tolerance_ns)}", highlight=False
        )
    for switch in differing:
        console.print(Text(f"{_name(switch)}: witnesses differ: {clean(switch.differ)}", style="yellow"))
    for change in relearn.neighbours[-8:]:
        line = (
            f"{change.host}: {change.ip} is at {change.mac or 'nobody'} ({change.state}) {after(change.t_ns, since_ns)}"
        )
        console.print(Text(clean(line), style="dim"))
    if relearn.conntrack:
        told = ", ".join(f"{count} x {key}" for key, count in sorted(relearn.conntrack.items()))
        console.print(Text(f"conntrack: {clean(told)}", style="dim"))


def _name(switch: SwitchRelearn) -> str:
    """With the VLAN, where there is one."""
    return f"{clean(switch.name)} VLAN {switch.vlan}" if switch.vlan else clean(switch.name)


def _print_switches(switches: Iterable[SwitchRelearn], since_ns: int | None, console: Console) -> None:
    rows = table(
        console,
        "hops",
        "switch",
        "by",
        "control\nplane",
        "switch\nstate",
        "seen by",
        "\nstable",
        "frames\ndropped",
        left=3,
    )
    for switch in sorted(switches, key=lambda item: (item.distance is None, item.distance, item.name)):
        moments = (switch.confirmed_ns, switch.state_ns)
        rows.add_row(
            "?" if switch.distance is None else str(switch.distance),
            _name(switch),
            clean(switch.by) or "-",
            *(after(moment, since_ns) for moment in moments),
            clean(switch.state_by) or "-",
            after(switch.stable_ns, since_ns),
            f"{switch.frames_dropped:,}",
        )
    show(console, rows)

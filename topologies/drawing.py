"""Draws a topology: as text for a terminal and as SVG. Pure.

Both use one layout: hosts in the lowest row, a switch in row n when the nearest host is n links away; within a row
nodes stand where those below and beside them stand on average (one barycentre pass, as in layered graph drawing).
"""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape

from mininet.topo import Topo

from topologies import paths

_COLUMN, _ROW, _MARGIN = 84, 96, 56
_COLOURS = {"hypervisor": "#2b6cb0", "storage": "#6b46c1", "client": "#2f855a", "router": "#b7791f"}
_SWITCH_COLOUR = "#4a5568"
_STYLE = "text{font:13px sans-serif;text-anchor:middle;fill:#fff}text.t{fill:#1a202c;font-weight:bold}"


@dataclass(frozen=True)
class Layout:
    """*rows* of node names, the highest first; *place* of each node: (column, row), in units of one node."""

    rows: tuple[tuple[str, ...], ...]
    place: dict[str, tuple[float, int]]


def role(topo: Topo, node: str) -> str:
    """``switch``, the node's option ``role``, or ``host``."""
    return "switch" if topo.isSwitch(node) else str(topo.nodeInfo(node).get("role") or "host")


def layout(topo: Topo) -> Layout:
    """Where each node stands."""
    linked = paths.neighbours(topo)
    level = {str(host): 0 for host in topo.hosts(sort=False)}
    reached = list(level)
    for node in reached:  # grows while it is walked: breadth first
        for other in linked[node]:
            if other not in level:
                level[other] = level[node] + 1
                reached.append(other)
    level.update({node: 1 for node in linked if node not in level})  # switches that no host can reach
    height = max(level.values(), default=0)
    order = {node: float(index) for index, node in enumerate(linked)}
    rows: list[tuple[str, ...]] = []
    for row in range(height + 1):
        members = [node for node in linked if level[node] == row]
        below = {node: [order[other] for other in linked[node] if level[other] < row] for node in members}
        if row == 0:
            members.sort(key=lambda node: (min((order[other] for other in linked[node]), default=0), order[node]))
        else:
            members.sort(key=lambda node: (sum(below[node]) / len(below[node]) if below[node] else 0, order[node]))
        for position, node in enumerate(members):
            order[node] = (position + 0.5) / max(len(members), 1) * 1000
        rows.append(tuple(members))
    width = max((len(members) for members in rows), default=1)
    place = {
        node: ((position + 0.5) * width / len(members), height - row)
        for row, members in enumerate(rows)
        for position, node in enumerate(members)
    }
    return Layout(tuple(reversed(rows)), place)


def text(topo: Topo) -> str:
    """The rows, and below them each switch with what its ports lead to (and the port's number)."""
    shown = layout(topo)
    lines = ["    " + "   ".join(row) for row in shown.rows if row]
    lines.append("")
    for switch in topo.switches(sort=True):
        ports = topo.ports[switch]
        leads = ", ".join(f"{number}:{ports[number][0]}" for number in sorted(ports))
        options = topo.nodeInfo(switch)
        notes = [
            *(["spanning tree"] if options.get("stp") else []),
            *([options["network"]] if "network" in options else []),
        ]
        lines.append(f"{switch:>5}  {leads}" + (f"  ({', '.join(map(str, notes))})" if notes else ""))
    counts = {kind: sum(role(topo, node) == kind for node in topo.nodes()) for kind in ("switch", *_COLOURS, "host")}
    lines.append("")
    lines.append(", ".join(_count(number, kind) for kind, number in counts.items() if number))
    loop = paths.find_loop(topo)
    if loop is not None:
        lines.append(f"it has loops, such as {'-'.join(loop)}: for the proactive app, or a spanning tree")
    return "\n".join(lines) + "\n"


def _count(number: int, kind: str) -> str:
    if kind == "storage":
        return f"{number} storage host{'s' if number > 1 else ''}"
    return f"{number} {kind}{'' if number == 1 else 'es' if kind == 'switch' else 's'}"


def svg(topo: Topo, title: str = "") -> str:
    """A whole SVG document: links as lines, switches as boxes, hosts as rounded boxes in the colour of their role."""
    shown = layout(topo)
    width = round(max((x for x, _row in shown.place.values()), default=1) * _COLUMN + 2 * _MARGIN)
    height = (len(shown.rows) - 1) * _ROW + 2 * _MARGIN
    at = {
        node: (round(x * _COLUMN + _MARGIN - _COLUMN / 2), row * _ROW + _MARGIN)
        for node, (x, row) in shown.place.items()
    }
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<style>{_STYLE}</style>",
        f'<text class="t" x="{width // 2}" y="22">{escape(title)}</text>',
    ]
    for first, second in topo.iterLinks():
        (x1, y1), (x2, y2) = at[first], at[second]
        if y1 == y2:  # beside each other: a curve, which does not run through those between
            bend = f'<path d="M{x1} {y1} Q{(x1 + x2) // 2} {y1 - 44} {x2} {y2}" fill="none" stroke="#a0aec0"/>'
            lines.append(bend)
        else:
            lines.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#a0aec0"/>')
    for node, (x, y) in at.items():
        colour = _SWITCH_COLOUR if topo.isSwitch(node) else _COLOURS.get(role(topo, node), "#718096")
        corner = 2 if topo.isSwitch(node) else 12
        half = max(24, 5 * len(node) + 8)
        lines.append(
            f'<g><title>{escape(node)}: {escape(role(topo, node))}</title><rect x="{x - half}" y="{y - 15}" '
            f'width="{2 * half}" height="30" rx="{corner}" fill="{colour}"/>'
            f'<text x="{x}" y="{y + 5}">{escape(node)}</text></g>'
        )
    return "\n".join([*lines, "</svg>"]) + "\n"

"""The survival map as a user sees it."""

from __future__ import annotations

import io

from rich.console import Console

from bench.clock import NS_PER_MS, NS_PER_S
from bench.report.survival import print_survival, tax
from bench.result import Trust
from bench.survival.result import CellResult, SurvivalResult, Theory, VariantResult


def cell(outage_ms, stall_ms, **changes):
    fields = {"variant": "client: stream", "details": {}, "outage_ns": outage_ms * NS_PER_MS, "repeat": 0}
    fields |= {"fate": "survived", "stall_ns": stall_ms * NS_PER_MS, "agrees": True}
    return CellResult(**{**fields, **changes})


def printed(result, width=120):
    console = Console(file=io.StringIO(), width=width)
    print_survival(result, console)
    return console.file.getvalue()


def test_the_map_marks_deaths_and_what_theory_does_not_explain():
    theory = Theory(fate="survived", stall_ns=6 * NS_PER_S)
    cells = [
        cell(60, 210),
        cell(1000, 1432),
        cell(3500, 12800, fate="died", error="ETIMEDOUT"),
        cell(500, 900, agrees=False),
    ]
    cells[3] = cells[3].model_copy(update={"theory": theory, "reason": "the other end sent first"})
    variant = VariantResult(variant="client: stream", longest_survived_ns=NS_PER_S, shortest_died_ns=4 * NS_PER_S)
    text = printed(SurvivalResult(title="a map", cells=cells, variants=[variant], agreement=0.75, compared=4))
    assert "12.8 sx" in text
    assert "900 ms*" in text
    assert "75.0% of the 4" in text
    assert "theory survived 6 s, seen survived 900 ms: the other end sent first" in text


def test_a_narrow_terminal_gets_every_name_and_every_stall_whole():
    variants = [VariantResult(variant=name) for name in ("client: idle, keepalive 1 s + 5 x 1 s", "guest: stream")]
    outages = (60, 210, 500, 1000, 3500, 10_000)
    cells = [cell(ms, ms + 1, variant=one.variant) for one in variants for ms in outages]
    text = printed(SurvivalResult(cells=cells, variants=variants), width=80)
    assert "…" not in text
    rows = [line for line in text.splitlines() if line.startswith("client: idle, keepalive 1 s + 5 x 1 s")]
    for shown in ("61 ms", "211 ms", "501 ms", "1 s", "3.5 s", "10 s"):
        assert any(shown in line for line in rows), shown


def test_reasons_not_to_trust_are_printed():
    text = printed(SurvivalResult(trust=Trust(ok=False, reasons=["cpu: busy"])))
    assert "not to be trusted: cpu: busy" in text


def test_the_tax_is_what_a_second_connection_saved():
    def of(variant, beyond_ms, theory_ms, rto_ms):
        details = {"sends_first": "guest", "kernel": {"rto_min_ns": rto_ms * NS_PER_MS}}
        theory = Theory(fate="survived", stall_ns=theory_ms * NS_PER_MS)
        return cell(500, 500 + beyond_ms, variant=variant, details=details, theory=theory).model_copy(
            update={"beyond_ns": beyond_ms * NS_PER_MS}
        )

    base, eager = "guest: stream", "guest: stream, rto_min 20 ms"
    cells = [of(base, 150, 660, 200), of(eager, 15, 520, 20), of(base, 170, 660, 200)]
    (row,) = tax(cells, "guest")
    assert (row.variant, row.outage_ns, row.rto_min_ns) == (base, 500 * NS_PER_MS, 20 * NS_PER_MS)
    assert (row.saved_ns, row.theory_ns) == (145 * NS_PER_MS, 140 * NS_PER_MS)
    assert tax(cells, "client") == []
    assert "145 ms" in printed(SurvivalResult(cells=cells))

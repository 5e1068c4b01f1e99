from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from made_up import MS, RESUME, flow, link, migration, result
from made_up_run import write_run

from bench.analysis.comparison import compare_runs
from bench.errors import ResultError
from bench.recording import Recording
from bench.records import SAMPLES_SUFFIX, TCP_SAMPLE
from bench.report.html.comparison import comparison_page
from bench.report.html.report import report_page

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">\x1b[31m'


def figures(page: str) -> dict[str, dict[str, object]]:
    found = re.findall(r'<script type="application/json" data-plot="([^"]+)">(.*?)</script>', page, re.S)
    return {name: json.loads(data) for name, data in found}


def colored(value: object) -> object:
    """With colours in place of the names that the page's script replaces."""
    if isinstance(value, str):
        return "red" if value.startswith("--") else value
    if isinstance(value, list):
        return [colored(item) for item in value]
    return {key: colored(item) for key, item in value.items()} if isinstance(value, dict) else value


def test_every_figure_has_its_table_and_is_one_that_plotly_knows(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    page = report_page([Recording(run)], tmp_path)
    found = figures(page)
    assert {name.removeprefix("plot-") for name in found} == {
        "timeline", "budget", "relearning", "rounds", "throughput", "prediction"
    }  # fmt: skip
    for name, figure in found.items():
        go.Figure(colored(figure))  # refuses what it does not know
        section = page.split(f'data-plot="{name}"')[1].split("</section>")[0]
        assert "<table>" in section, name
    assert 'href="run/events.jsonl"' in page
    assert 'href="run/logs/guest.log"' in page


def test_what_the_network_s_witnesses_saw_is_drawn(tmp_path: Path) -> None:
    one = migration()
    one["relearn"]["switches"][0] |= {
        "distance": 2,
        "state_ns": RESUME + 3 * MS,
        "state_by": "poll",
        "differ": "frames",
    }
    change = {"host": "c1", "t_ns": RESUME + MS, "ip": "10.0.1.1", "mac": "52:54:00:00:00:01", "state": "reachable"}
    one["relearn"] |= {"neighbours": [change], "conntrack": {"c1 established": 3}}
    page = report_page([Recording(write_run(tmp_path / "run", **{**one, "migrations": [one]}))], tmp_path)
    for part in ("hops away", "tables changed", "witnesses differ", "neighbour cache of", "c1 established: 3"):
        assert part in page
    assert "told by" not in page  # no switch has it
    lanes = {lane for trace in figures(page)["plot-timeline"]["data"] for lane in trace["y"]}  # type: ignore[attr-defined]
    assert {"neighbours", "announce", "s1"} <= lanes


def test_what_the_kernel_said_of_connections_is_drawn(tmp_path: Path) -> None:
    tcp = {"rto_ns": 204 * MS, "rtt_ns": MS, "cwnd": 10, "samples": 5, "timeouts": 1, "used": 0.0003}
    one = migration(flows=[flow("udp-echo"), flow("tcp-request", verdict="delayed", tcp=tcp)])
    run = write_run(tmp_path / "run", **{**one, "migrations": [one]})
    samples = np.zeros(5, TCP_SAMPLE)
    samples["t_ns"] = RESUME + np.arange(5) * 10 * MS
    samples["rto_us"], samples["cwnd"], samples["state"] = 204_000, 10, 1
    samples["backoff"], samples["ca_state"], samples["retransmits"] = [0, 1, 2, 0, 0], [0, 4, 4, 3, 0], [0, 1, 2, 2, 2]
    np.save(run / "requests" / "c1" / f"tcp-request{SAMPLES_SUFFIX}", samples, allow_pickle=False)
    page = report_page([Recording(run)], tmp_path)
    found = figures(page)
    bars = found["plot-timeline"]["data"][0]  # type: ignore[index]
    own = [text for lane, text in zip(bars["y"], bars["text"], strict=True) if lane == "tcp-request TCP"]
    assert own == ["timer x 2", "timer x 4", "recovery"]
    go.Figure(colored(found["plot-tcp"]))
    assert "delayed" in page
    assert "0.03%" in page


def test_what_a_result_lacks_is_left_out(tmp_path: Path) -> None:
    bare = {"phases": [], "rounds": [], "flows": [], "relearn": {"announce_ns": None}, "prediction": None}
    cancelled = {"outcome": "cancelled", "pause_ns": None, "resume_ns": None, "downtime_ns": None, "total_ns": None}
    run = write_run(tmp_path / "run", links=[], migrations=[], **bare, **cancelled)
    (run / "events.jsonl").unlink()
    (run / "scenario.json").unlink()
    page = report_page([Recording(run)], tmp_path)
    assert set(figures(page)) == {"plot-timeline"}
    assert "cancelled" in page


def test_hostile_contents_stay_text(tmp_path: Path) -> None:
    one = migration(
        flows=[flow("udp-echo"), flow("tcp-request", error=HOSTILE, alive=False, host="c1")],
        reason=HOSTILE,
        source=HOSTILE,
        phases=[{"name": HOSTILE, "start_ns": 1, "end_ns": 2}],
    )
    one["relearn"]["switches"][0]["name"] = HOSTILE
    run = write_run(
        tmp_path / "run",
        **{**one, "migrations": [one], "guest": HOSTILE, "title": HOSTILE, "links": [link(f"{HOSTILE}-s1")]},
        environment={HOSTILE: {HOSTILE: [HOSTILE]}},
        trust={"ok": False, "reasons": [HOSTILE]},
    )
    (run / "scenario.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    (run / "events.jsonl").write_text(
        json.dumps({"t": 5, "source": HOSTILE, "name": "announce_sent", "data": {"kind": HOSTILE}}) + "\n"
    )
    page = report_page([Recording(run)], tmp_path)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "\x1b" not in page
    assert page.count("</script>") == page.count("<script")


def test_many_runs_are_set_beside_each_other(tmp_path: Path) -> None:
    runs = [Recording(write_run(tmp_path / f"p{number % 2}.r{number}")) for number in range(10)]
    page = report_page(runs, tmp_path)
    assert "10 runs" in page
    assert page.count('id="r') >= 8
    assert "p0.r8" in page
    assert "plot-distributions" in figures(page)


def test_a_million_requests_are_decimated(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", span_ms=600_000, every_us=2_000)
    kept = [Recording(run).records("c1", flow.name) for flow in Recording(run).result.flows]
    assert sum(len(found) for found in kept if found is not None) > 1_000_000
    page = report_page([Recording(run)], tmp_path)
    assert len(page) < 8 << 20
    points = 0
    for trace in figures(page)["plot-timeline"]["data"]:  # type: ignore[attr-defined]
        x = trace["x"]
        points += len(x["bdata"]) * 3 // 4 // 8 if isinstance(x, dict) else len(x)
    assert points < 50_000


def test_a_broken_directory_is_one_message(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "requests" / "c1" / "udp-echo.npy").write_bytes(b"no array")
    with pytest.raises(ResultError, match=r"udp-echo\.npy"):
        report_page([Recording(run)], tmp_path)


def test_a_comparison_is_a_page_too() -> None:
    a = [result(migrations=[migration(downtime_ns=(20 + n) * 10**6)], title=HOSTILE) for n in range(6)]
    b = [result(migrations=[migration(downtime_ns=(60 + n) * 10**6)]) for n in range(6)]
    page = comparison_page([compare_runs(a, b, label=HOSTILE)], (HOSTILE, "b"))
    assert "slower by" in page
    assert "<script>alert" not in page
    for figure in figures(page).values():
        go.Figure(colored(figure))

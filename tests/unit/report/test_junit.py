from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from made_up import migration, result

from bench.analysis.expectations import check
from bench.report.junit import write_junit


def written(tmp_path: Path, *runs: tuple[str, object, str]) -> ET.Element:
    path = tmp_path / "deep" / "junit.xml"
    write_junit(path, runs)  # type: ignore[arg-type]
    return ET.parse(path).getroot()


def test_what_failed_is_a_failure_with_the_measured_value(tmp_path: Path) -> None:
    run = result(migrations=[migration(), migration(outcome="failed", reason="the link broke")])
    run.expectations = check(["downtime < 300ms", "downtime < 1ms"], run)
    root = written(tmp_path, ("smallest", run, ""))
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("4", "2", "0")
    failures = {
        case.get("name"): case.find("failure").get("message")
        for case in root.iter("testcase")
        if len(case) and case.find("failure") is not None
    }  # type: ignore[union-attr]
    assert failures["migration 2 completes"] == "failed: the link broke"
    assert "23 ms" in failures["downtime < 1ms"]


def test_a_run_without_a_result_is_an_error(tmp_path: Path) -> None:
    root = written(tmp_path, ("gone", None, "killed"), ("good", result(), ""))
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("2", "0", "1")


def test_hostile_text_does_not_break_the_file(tmp_path: Path) -> None:
    hostile = "</testcase>\x00\x1b[31m<![CDATA["
    run = result(migrations=[migration(outcome="failed", reason=hostile)], trust={"ok": False, "reasons": [hostile]})
    root = written(tmp_path, (hostile, run, hostile))
    assert root.get("failures") == "1"

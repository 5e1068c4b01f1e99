"""Results as JUnit XML, which CI servers show: one suite for each run, one case for each thing that can fail.

Layout: the schema that Jenkins and GitLab read (github.com/testmoapp/junitxml describes it).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.analysis.expectations import describe
from bench.clock import NS_PER_S
from bench.report.text import clean
from bench.result import MigrationResult, RunResult


def write_junit(path: Path, runs: Sequence[tuple[str, RunResult | None, str]]) -> None:
    """Write *runs* to *path*: the name of each, its result (None: it left none), and why there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    root = ET.Element("testsuites")
    for name, result, why in runs:
        _suite(root, clean(name), result, clean(why))
    for key in ("tests", "failures", "errors"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    ET.indent(root)
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _suite(root: ET.Element, name: str, result: RunResult | None, why: str) -> None:
    suite = ET.SubElement(root, "testsuite", name=name)
    if result is None:
        case = ET.SubElement(suite, "testcase", classname=name, name="run")
        ET.SubElement(case, "error", message=why or "the run left no result")
    else:
        suite.set("timestamp", clean(result.started_at))
        properties = ET.SubElement(suite, "properties")
        ET.SubElement(properties, "property", name="trusted", value=str(result.trust.ok).lower())
        for reason in result.trust.reasons:
            ET.SubElement(properties, "property", name="doubt", value=clean(reason))
        several = len({migration.guest for migration in result.migrations}) > 1
        for number, migration in enumerate(result.migrations or [result], 1):
            which = f"migration {number}" + (f" of {migration.guest}" if several else "")
            _migration(suite, name, which, migration)
        for item in result.expectations:
            message = "" if item.ok else f"measured {describe(item)}"
            case = _case(suite, name, item.expectation, [message] if message else [])
            ET.SubElement(case, "system-out").text = clean(f"measured {describe(item)}")
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(sum(case.find("failure") is not None for case in cases)))
    suite.set("errors", str(sum(case.find("error") is not None for case in cases)))


def _migration(suite: ET.Element, name: str, which: str, migration: MigrationResult) -> None:
    problems = [] if migration.outcome == "completed" else [f"{migration.outcome}: {migration.reason}"]
    if migration.memory.identical is False:
        problems.append("the memory differs between source and destination")
    case = _case(suite, name, f"{which} completes", problems)
    case.set("time", f"{(migration.end_ns - migration.start_ns) / NS_PER_S:.3f}")


def _case(suite: ET.Element, name: str, what: str, problems: Iterable[str]) -> ET.Element:
    case = ET.SubElement(suite, "testcase", classname=name, name=clean(what))
    for problem in problems:
        ET.SubElement(case, "failure", message=clean(problem))
    return case

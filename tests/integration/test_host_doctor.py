from __future__ import annotations

import os

import pytest

from bench.clock import NS_PER_S, Deadline
from bench.doctor import doctor, usable
from bench.host.commands import run

pytestmark = pytest.mark.root


def links() -> set[str]:
    shown = run(["ip", "-o", "link"], deadline=Deadline(10 * NS_PER_S)).stdout
    return {line.split(": ")[1] for line in shown.splitlines()}


def test_doctor_finds_this_machine_usable_and_leaves_nothing() -> None:
    environment = dict(os.environ)
    findings = doctor()
    assert usable(findings), [finding for finding in findings if finding.fatal]
    by_name = {finding.name: finding for finding in findings}
    for name in ("root", "namespaces", "Mininet", "mnexec", "TCP_REPAIR", "bridge port state", "tcpdump"):
        assert by_name[name].ok, by_name[name]
    for finding in findings:
        assert finding.ok == (not finding.remedy), finding
        assert finding.ok or finding.detail, finding
    assert not any("probe" in name for name in links())
    assert dict(os.environ) == environment

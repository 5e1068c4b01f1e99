from __future__ import annotations

import io
import os

import pytest
from rich.console import Console

from bench import doctor as examination
from bench.doctor import Finding, render, require_one_of_each, usable


def text(findings: list[Finding]) -> str:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    render(findings, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_something_instead_is_enough() -> None:
    assert usable([Finding("a", True, "x"), Finding("netem", False, "no", "the delay line")])
    assert not usable([Finding("a", True, "x"), Finding("mnexec", False, "no")])


def test_a_pair_cannot_stand_in_for_each_other_when_both_fail() -> None:
    ryu, osken = Finding("Ryu", False, "no", "os-ken"), Finding("os-ken", False, "no", "Ryu")
    assert usable(require_one_of_each([ryu, Finding("os-ken", True, "4")]))
    assert not usable(require_one_of_each([ryu, osken]))


def test_every_pair_names_things_that_are_tried() -> None:
    names = {trial.name for trial in examination._TRIALS}
    assert {name for pair in examination._EITHER for name in pair} <= names


def test_table_says_what_is_missing_and_what_to_do() -> None:
    findings = [
        Finding("netem", False, "unknown [kind]", "the delay line", "load it"),
        Finding("mnexec", False, "not there", "", "install it"),
        Finding("htb", True, "can be set"),
    ]
    shown = text(findings)
    assert "unknown [kind]; instead: the delay line" in shown
    assert "netem (optional): load it" in shown
    assert "mnexec (needed): install it" in shown
    assert "cannot run the bench yet" in shown
    assert "htb (" not in shown
    assert "can run the bench." in text([findings[2]])


def test_without_root_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    findings = examination.doctor()
    assert findings[-1].name == "root"
    assert findings[-1].remedy
    assert not usable(findings)

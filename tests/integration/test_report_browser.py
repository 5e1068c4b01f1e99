"""The report in a real browser. Screenshots go to $TEST_ARTEFACTS, where it is set."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "report"))

from browser import CHROMIUM, Browser, browser
from made_up import flow, migration
from made_up_run import write_run

from bench.recording import Recording
from bench.report.html.report import report_page

if CHROMIUM is None and os.environ.get("CI"):
    pytest.exit("CI must run every test, but this machine lacks chromium", returncode=1)
HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'
pytestmark = [
    pytest.mark.testbed,  # as heavy as one
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (run `make setup` as root)"),
]


def keep(tmp_path: Path, name: str) -> Path:
    place = Path(os.environ.get("TEST_ARTEFACTS", tmp_path))
    place.mkdir(parents=True, exist_ok=True)
    return place / name


async def look(tmp_path: Path, page: Path, *, hostile: bool) -> None:
    async with browser(tmp_path) as found:
        await found.show(page, 1280)
        await found.screenshot(keep(tmp_path, f"{page.stem}-light.png"))
        await _check(found, page)
        assert await found.evaluate("document.querySelectorAll('.plot .main-svg').length") >= 6
        if hostile:
            return
        # the buttons of the timeline, and what a reader zooms to stays when the theme changes
        await found.evaluate("document.querySelector('.windows button:last-child').click()")
        wide = "(range => range[1] - range[0])(document.getElementById('plot-timeline').layout.xaxis.range)"
        assert await found.evaluate(wide) > 10_000
        await found.show(page, 390, dark=True)
        assert await found.evaluate("document.documentElement.scrollWidth") <= 390, "a phone would scroll sideways"
        background = await found.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == "rgb(15, 18, 23)"
        await found.screenshot(keep(tmp_path, f"{page.stem}-phone-dark.png"))
        await found.print(keep(tmp_path, f"{page.stem}.pdf"))
        await _check(found, page)


async def _check(found: Browser, page: Path) -> None:
    assert found.complaints == []
    assert {url for url in found.requests if not url.startswith(("data:", "blob:"))} == {page.resolve().as_uri()}


def test_a_report_opens_without_a_complaint_and_without_a_network(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(report_page([Recording(write_run(tmp_path / "run"))], tmp_path), encoding="utf-8")
    asyncio.run(look(tmp_path, page, hostile=False))


def test_hostile_contents_do_nothing(tmp_path: Path) -> None:
    link = f'<a href="javascript:alert(1)">{HOSTILE}</a>'
    one = migration(flows=[flow("udp-echo"), flow("tcp-request", error=link)], source=link, reason=link)
    one["relearn"]["switches"][0]["name"] = link
    run = write_run(tmp_path / "run", **{**one, "migrations": [one], "title": link, "guest": link})
    page = tmp_path / "hostile.html"
    page.write_text(report_page([Recording(run)], tmp_path), encoding="utf-8")
    asyncio.run(look(tmp_path, page, hostile=True))

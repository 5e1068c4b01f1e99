from __future__ import annotations

import re

import pytest

from bench.reference import pages
from bench.scenario import Scenario


@pytest.mark.parametrize("name", sorted(pages()))
def test_the_pages_are_what_the_models_say(project, name):
    remedy = "run `python -m bench.reference docs`"
    assert (project / "docs" / name).read_text(encoding="utf-8") == pages()[name], remedy


def test_every_key_of_a_scenario_is_in_the_reference():
    text = pages()["scenario.md"]
    assert "ForwardRef" not in text
    for name in Scenario.model_fields:
        assert f"`{name}`" in text


def test_every_page_that_the_readme_names_exists(project):
    text = (project / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (project / target).exists(), target

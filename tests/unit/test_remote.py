from __future__ import annotations

from pathlib import Path

import pytest

from bench.cli.remote import _without_output
from bench.remote import Target


@pytest.mark.parametrize(
    ("text", "expected"),
    [("root@h", ("root", "h", 22)), ("me@lab.example:2222", ("me", "lab.example", 2222)), ("a@b@c", ("a@b", "c", 22))],
)
def test_a_target_is_user_and_host(text: str, expected: tuple[str, str, int]) -> None:
    found = Target.parse(text)
    assert (found.user, found.host, found.port) == expected


@pytest.mark.parametrize("text", ["host", "@host", "me@", "me@host:ssh"])
def test_another_target_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="user@host"):
        Target.parse(text)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "smallest", "-o", "here"], (["run", "smallest"], Path("here"))),
        (["run", "--output=here", "x"], (["run", "x"], Path("here"))),
        (["doctor"], (["doctor"], None)),
    ],
)
def test_the_output_stays_here(words: list[str], expected: tuple[list[str], Path | None]) -> None:
    assert _without_output(words) == expected

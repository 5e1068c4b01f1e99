"""Redis' glob patterns."""

from __future__ import annotations

import pytest

from bench.guest.services.glob import matches, parse_glob


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (b"*", b"", True),
        (b"", b"", True),
        (b"", b"a", False),
        (b"a*b*c", b"axxbyyc", True),
        (b"a*b*c", b"axxbyy", False),
        (b"?", b"", False),
        (b"h?llo", b"hello", True),
        (b"h[ae]llo", b"hallo", True),
        (b"h[^e]llo", b"hello", False),
        (b"h[a-c]llo", b"hbllo", True),
        (b"h[c-a]llo", b"hbllo", True),
        (rb"\*x", b"*x", True),
        (rb"\*x", b"yx", False),
        (b"[", b"x", False),
        (b"[ab", b"b", True),
        (b"a" + b"*a" * 40, b"a" * 2000 + b"b", False),
    ],
)
def test_glob(pattern, text, expected):
    assert matches(parse_glob(pattern), text) == expected

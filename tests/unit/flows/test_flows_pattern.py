"""The clients' pattern is RFC 864's, and the guest's services agree with it."""

from __future__ import annotations

import pytest

from bench.flows.pattern import MAX_SLICE_BYTES, PERIOD, PERIOD_BYTES, matches, pattern_slice
from bench.guest.services.pattern import chargen_slice


def test_lines_of_the_rfc() -> None:
    lines = PERIOD.split(b"\r\n")
    assert lines[0] == b" !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefg"
    assert lines[1].startswith(b'!"#$')
    assert lines[-1] == b""
    assert len(lines) == 96
    assert len(PERIOD) == PERIOD_BYTES


@pytest.mark.parametrize("offset", [0, 1, 73, 74, PERIOD_BYTES - 1, PERIOD_BYTES, 12_345_678_901])
@pytest.mark.parametrize("count", [0, 1, 7030, 65536, MAX_SLICE_BYTES])
def test_guest_and_client_agree(offset: int, count: int) -> None:
    mine, theirs = pattern_slice(offset, count), chargen_slice(offset, count)
    assert len(mine) == count
    assert bytes(mine) == bytes(theirs)
    assert matches(theirs, offset)
    if count:
        broken = bytearray(theirs)
        broken[-1] ^= 1
        assert not matches(memoryview(broken), offset)


def test_too_much() -> None:
    with pytest.raises(ValueError, match="at most"):
        pattern_slice(0, MAX_SLICE_BYTES + 1)

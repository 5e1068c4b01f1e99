"""What a reader can prove of a disk: records in order, and which write each block must hold."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.storage import records
from bench.storage.records import Blocks, Record, decode_records, encode_record


@settings(deadline=None, max_examples=40)
@given(st.lists(st.binary(max_size=200), max_size=20), st.integers(0, 3000), st.integers(0, 255))
def test_records_come_back_up_to_the_first_that_is_broken(payloads, at, value):
    area = b"".join(encode_record(number, 7, payload) for number, payload in enumerate(payloads, 1))
    whole = [Record(number, 7, payload) for number, payload in enumerate(payloads, 1)]
    assert [record for record, _end in decode_records(area + bytes(64))] == whole
    broken = bytearray(area)
    if at < len(broken) and broken[at] != value:
        broken[at] = value
        found = [record for record, _end in decode_records(bytes(broken))]
        assert found == whole[: len(found)]
        assert len(found) < len(whole)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 200), st.integers(0, 1000), st.booleans())
def test_the_last_write_of_a_block_has_a_closed_form(count, writes, scattered):
    blocks = Blocks(0, 4096, count, records.scattered(count) if scattered else 1)
    last = {}
    for number in range(writes):
        last[blocks.block_of(number)] = number
    assert {block: blocks.last_write_of(block, writes) for block in range(count)} == {
        block: last.get(block) for block in range(count)
    }


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 500))
def test_a_scattered_order_visits_every_block_once(count):
    blocks = Blocks(0, 4096, count, records.scattered(count))
    assert sorted(blocks.block_of(number) for number in range(count)) == list(range(count))


def test_a_block_holds_one_whole_stamp_or_none():
    block = records.stamp(41, 3, 4096)
    assert len(block) == 4096
    assert records.read_stamp(block) == (41, 3)
    torn = records.stamp(40, 3, 4096)[:2048] + block[2048:]
    assert records.read_stamp(torn) is None
    assert records.read_stamp(bytes(4096)) is None


@pytest.mark.parametrize("area_bytes", [8192, 1 << 23])
def test_a_log_names_itself(area_bytes):
    assert records.log_area_bytes(records.log_header(area_bytes)) == area_bytes
    assert records.log_area_bytes(bytes(4096)) == 0

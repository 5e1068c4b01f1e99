"""Bitmap, page hashes and zero pages against the obvious slow way."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from bench.memory.bitmap import DirtyBitmap, expand_runs, runs
from bench.memory.hashes import ZERO_PAGE_HASH, PageHashes
from bench.memory.zero import zero_pages

PAGES = 300
page_sets = st.sets(st.integers(0, PAGES - 1))


def array(pages: set[int]) -> np.ndarray:
    return np.array(sorted(pages), dtype=np.int64)


@given(page_sets, st.integers(1, 400))
def test_draining_yields_every_page_once_in_order(pages: set[int], limit: int) -> None:
    bitmap = DirtyBitmap(PAGES)
    bitmap.set_pages(array(pages))
    assert len(bitmap) == len(pages)
    taken: list[int] = []
    while len(batch := bitmap.take(limit)):
        assert len(batch) <= limit
        taken += batch.tolist()
    assert taken == sorted(pages)
    assert len(bitmap) == 0


def test_taking_goes_round() -> None:
    bitmap = DirtyBitmap(PAGES, dirty=True)
    assert bitmap.take(100).tolist() == list(range(100))
    bitmap.set_range(0, 2)
    assert bitmap.take(PAGES).tolist() == list(range(100, PAGES))
    assert 0 in bitmap
    assert bitmap.take(PAGES).tolist() == [0, 1]


@given(page_sets)
def test_runs_and_expand_are_inverse(pages: set[int]) -> None:
    starts, lengths = runs(array(pages))
    assert expand_runs(starts, lengths).tolist() == sorted(pages)
    assert all(int(start + length) not in pages for start, length in zip(starts, lengths, strict=True))


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1, 1, 2, 5, 63, 64, 70])), max_size=12))
def test_setting_runs_sets_just_those_pages(gaps: list[tuple[int, int]]) -> None:
    starts, lengths, expected, at = [], [], set(), 0
    for gap, length in gaps:
        at += gap
        starts.append(at)
        lengths.append(length)
        expected |= set(range(at, at + length))
        at += length
    bitmap = DirtyBitmap(1200)
    bitmap.set_runs(np.array(starts, dtype=np.int64), np.array(lengths, dtype=np.int64))
    assert set(bitmap.pages().tolist()) == expected


def test_merge_clear_and_set_all() -> None:
    bitmap, other = DirtyBitmap(PAGES), DirtyBitmap(PAGES)
    bitmap.set_range(1, 2)
    other.set_range(2, 2)
    bitmap.merge(other)
    bitmap.clear_pages(np.array([2]))
    assert bitmap.pages().tolist() == [1, 3]
    bitmap.set_all()
    assert len(bitmap) == PAGES
    bitmap.clear()
    assert len(bitmap) == 0


@pytest.fixture
def words() -> np.ndarray:
    memory = np.random.default_rng(1).integers(0, 2**63, (PAGES, 512), dtype=np.uint64)
    memory[::3] = 0
    return memory


def test_hashes_are_those_of_each_page_whatever_the_order_of_updates(words: np.ndarray) -> None:
    whole, scattered = PageHashes(PAGES), PageHashes(PAGES)
    whole.update_range(words)
    order = np.random.default_rng(2).permutation(PAGES)
    scattered.update(words.view(np.uint8), order[order % 3 != 0])
    assert whole.table.tolist() == [xxhash.xxh3_64_intdigest(page.tobytes()) for page in words]
    assert whole.digest() == scattered.digest() == hashlib.blake2b(whole.table.tobytes(), digest_size=32).hexdigest()


def test_a_changed_byte_changes_the_digest_and_is_found(words: np.ndarray) -> None:
    before, after = PageHashes(PAGES), PageHashes(PAGES)
    before.update_range(words)
    words.view(np.uint8)[17, 4095] ^= 1
    after.update_range(words, 0, 10)
    after.update_range(words, 10, PAGES - 10)
    assert before.difference(after).tolist() == [17]
    assert before.digest() != after.digest()


@pytest.mark.parametrize("block", [1, 3, 8, PAGES])
def test_blocks_hold_the_hash_of_all_their_pages_whatever_was_updated(words: np.ndarray, block: int) -> None:
    before, after = PageHashes(PAGES, block), PageHashes(PAGES, block)
    memory = np.zeros_like(words)
    for begin in range(0, PAGES, 100):
        memory[begin : begin + 100] = words[begin : begin + 100]
        before.update_range(memory, begin, min(100, PAGES - begin))
    order = np.random.default_rng(2).permutation(PAGES)
    after.update(words, order[order % 3 != 0])
    whole = words.tobytes()
    wanted = [xxhash.xxh3_64_intdigest(whole[at : at + block * 4096]) for at in range(0, len(whole), block * 4096)]
    assert before.table.tolist() == after.table.tolist() == wanted
    assert before.digest() == after.digest()
    words[PAGES - 1, 511] ^= 1
    after.update(words, np.array([PAGES - 1]))
    assert before.difference(after).tolist() == [(PAGES - 1) // block]


@pytest.mark.parametrize("block", [1, 7, 8])
def test_fresh_memory_hashes_as_zero_blocks(block: int) -> None:
    read = PageHashes(PAGES, block)
    read.update_range(np.zeros((PAGES, 512), dtype=np.uint64))
    assert PageHashes(PAGES, block).digest() == read.digest()


def test_blocks_cannot_be_told_a_page_that_was_not_read() -> None:
    hashes = PageHashes(PAGES, 8)
    with pytest.raises(ValueError, match="blocks of 8"):
        hashes.mark_zero(np.array([4]))
    with pytest.raises(ValueError, match="blocks of 8"):
        hashes.put(np.array([4]), np.zeros((1, 512), dtype=np.uint64))


def test_fresh_memory_hashes_as_zero_pages() -> None:
    hashes, read = PageHashes(PAGES), PageHashes(PAGES)
    read.update_range(np.zeros((PAGES, 512), dtype=np.uint64))
    assert hashes.digest() == read.digest()
    hashes.table[4] = 1
    hashes.mark_zero(np.array([4]))
    assert int(hashes.table[4]) == ZERO_PAGE_HASH


@pytest.mark.parametrize("word", [None, 0, 1, 130, 131, 256, 510, 511])
def test_one_bit_makes_a_page_no_zero_page(words: np.ndarray, word: int | None) -> None:
    if word is not None:
        words[6, word] = 1 << 63
    expected = [page % 3 == 0 and not (word is not None and page == 6) for page in range(PAGES)]
    assert zero_pages(words).tolist() == expected
    assert zero_pages(words[:0]).tolist() == []
    assert zero_pages(np.zeros((200, 512), dtype=np.uint64)).all()

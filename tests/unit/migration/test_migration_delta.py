"""Deltas: what is applied is what was encoded, whatever else arrives is one WireError and changes nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import WireError
from bench.migration import delta
from bench.migration.delta import DeltaCache

PAGES = 12


def random_rows(seed, count=PAGES):
    return np.random.default_rng(seed).integers(0, 2**63, (count, 512), dtype=np.uint64)


@settings(deadline=None)
@given(
    st.integers(0, 2**32),
    st.sets(st.integers(0, PAGES - 1), min_size=1),
    st.floats(0, 1),
    st.sampled_from([1, 8, 32, 512]),
)
def test_a_delta_makes_the_old_page_the_new_one(seed, chosen, share, run):
    """Changes come in runs of words, as a workload's writes do; pages without any are among them."""
    rng = np.random.default_rng(seed)
    memory = random_rows(seed)
    pages = np.array(sorted(chosen), dtype=np.int64)
    new = memory[pages].copy()
    mask = np.repeat(rng.random((len(pages), 512 // run)) < share * (rng.random((len(pages), 1)) < 0.7), run, axis=1)
    new[mask] ^= np.uint64(1)
    expected = memory.copy()
    expected[pages] = new
    changed = new != memory[pages]
    payload = delta.encode(changed, new)
    assert len(payload) == delta.sizes(changed).sum()
    delta.apply(bytearray(payload), pages, memory)
    assert np.array_equal(memory, expected)


def test_small_writes_take_little():
    changed = np.zeros((2, 512), dtype=np.bool_)
    changed[1, 100:132] = True  # 256 bytes
    assert delta.sizes(changed).tolist() == [8, 8 + 5 + 256]


@settings(deadline=None)
@given(st.binary(max_size=600), st.integers(1, 3))
def test_noise_is_applied_as_far_as_it_is_a_delta_or_refused_without_a_trace(noise, count):
    memory = np.zeros((PAGES, 512), dtype=np.uint64)
    pages = np.arange(2, 2 + count)
    try:
        delta.apply(noise, pages, memory)
    except WireError:
        assert not memory.any()
    assert not memory[:2].any()
    assert not memory[2 + count :].any()


@pytest.mark.parametrize("cut", [1, 8, 9, 100, 267, 269 + 1])
def test_a_delta_of_another_length_is_refused(cut):
    old = random_rows(1, 1)
    new = old.copy()
    new[0, 100:132] ^= np.uint64(7)
    payload = delta.encode(new != old, new)
    wrong = payload[: len(payload) - cut] if cut < len(payload) else payload + b"x"
    memory = old.copy()
    with pytest.raises(WireError):
        delta.apply(wrong, np.array([0]), memory)
    assert np.array_equal(memory, old)


def test_an_empty_mask_is_refused():
    with pytest.raises(WireError, match="disagree"):
        delta.apply(b"\x80" + bytes(7) + b"\x00", np.array([0]), np.zeros((1, 512), dtype=np.uint64))


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sets(st.integers(0, 39), min_size=1), st.sampled_from(["store", "forget"])), min_size=1, max_size=8
    ),
    st.integers(1, 50),
)
def test_a_cache_only_holds_what_was_sent_last(steps, slots):
    cache = DeltaCache(slots * 4096, 40)
    last = {}
    for number, (chosen, how) in enumerate(steps, 1):
        pages = np.array(sorted(chosen), dtype=np.int64)
        rows = random_rows(number, len(pages))
        if how == "forget":
            cache.forget(pages)
            last.update(dict.fromkeys(chosen))
        else:
            cache.store(pages, rows, number)
            last.update(zip(pages.tolist(), rows, strict=True))
        everything = np.arange(40)
        for page in everything[cache.held(everything)].tolist():
            assert last.get(page) is not None
            assert np.array_equal(cache.rows(np.array([page]))[0], last[page])


def test_a_cache_as_large_as_the_guest_keeps_everything():
    cache = DeltaCache(1 << 40, 40)
    pages = np.arange(40)
    cache.store(pages, random_rows(1, 40), 1)
    assert cache.held(pages).all()
    assert (cache.size_bytes, cache.refused) == (40 * 4096, 0)


def test_a_hot_page_keeps_its_slot_against_a_colder_one():
    cache = DeltaCache(4096, 40)
    page = [np.array([number]) for number in range(3)]
    cache.store(page[0], random_rows(0, 1), 1)
    cache.store(page[1], random_rows(1, 1), 2)  # what round 1 put there gives way
    cache.store(page[2], random_rows(2, 1), 3)
    assert [bool(cache.held(number)[0]) for number in page] == [False, True, False]
    cache.store(page[2], random_rows(2, 1), 4)
    assert [bool(cache.held(number)[0]) for number in page] == [False, False, True]

"""The store against a dict, from its bytes alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.guest.store import MAX_KEY_BYTES, MIN_REGION_BYTES, OWNER_WORDS, Store, StoreError, StoreFull


def make(size: int = 1 << 17) -> Store:
    return Store.format(memoryview(bytearray(size)))


def contents(store: Store) -> dict[bytes, bytes | None]:
    keys = list(store.keys())
    assert len(keys) == len(set(keys)) == len(store)
    return {key: store.get(key) for key in keys}


KEYS = st.sampled_from([b"", b"a", b"b", b"key:000000000001", b"x" * 300, b"y" * MAX_KEY_BYTES]) | st.binary(max_size=3)
VALUES = st.one_of(
    st.binary(max_size=64),
    st.integers(0, 60_000).map(lambda size: bytes(index * 7 & 255 for index in range(256)) * (size // 256 + 1)),
)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), KEYS, VALUES),
        st.tuples(st.just("delete"), KEYS, st.just(b"")),
        st.tuples(st.just("clear"), st.just(b""), st.just(b"")),
    ),
    max_size=40,
)


@given(OPERATIONS)
@settings(max_examples=60, deadline=None)
def test_it_is_a_dict_whose_bytes_may_be_copied_after_every_operation(operations):
    region = bytearray(MIN_REGION_BYTES * 2)
    Store.format(memoryview(region))
    model: dict[bytes, bytes] = {}
    for name, key, value in operations:
        region = bytearray(region)  # what a migration does: only the bytes go on
        store = Store.open(memoryview(region))
        if name == "set":
            try:
                store.set(key, value)
                model[key] = value
            except StoreFull:
                assert sum(map(len, model.values())) + len(value) > 20_000, "full far too early"
                assert len(value) > len(model.get(key, b"")), "a value no longer than the old one always has room"
        elif name == "delete":
            assert store.delete(key) == (model.pop(key, None) is not None)
        else:
            store.clear()
            model.clear()
        store.check()
        assert contents(store) == model
        assert store.get(b"never set") is None


def test_a_full_store_refuses_and_keeps_what_it_has():
    store = make()
    model = {}
    try:
        for number in range(100_000):
            key = b"key:%d" % number
            store.set(key, b"v" * 40)
            model[key] = b"v" * 40
    except StoreFull:
        pass
    else:
        pytest.fail("never full")
    store.check()
    assert contents(store) == model
    assert store.used_bytes > 0.9 * store.capacity_bytes
    with pytest.raises(StoreFull):
        store.set(b"key:0", b"v" * 5000)  # replacing by something larger fails without losing the old value
    assert store.get(b"key:0") == b"v" * 40
    store.set(b"key:0", b"w" * 40)  # replacing by something as large always works
    for key in model:
        assert store.delete(key)
    store.check()
    assert len(store) == 0
    assert store.used_bytes == 0
    store.set(b"large", bytes(90_000))  # slabs given back serve another size
    store.check()


def test_a_value_that_does_not_fit_leaves_no_trace():
    store = make()
    store.set(b"a", b"1")
    before = store.used_bytes
    with pytest.raises(StoreFull):
        store.set(b"b", bytes(1 << 20))
    store.check()
    assert (store.used_bytes, len(store), b"b" in store) == (before, 1, False)


@pytest.mark.parametrize("size", [0, 1, 15_000, 16_000, 16_300, 16_320, 16_321, 32_000, 40_000, 70_000])
def test_values_of_every_size_come_back(size):
    store = make()
    value = bytes(number * 31 & 255 for number in range(size))
    store.set(b"k", b"first")
    store.set(b"k", value)
    assert store.get(b"k") == value
    store.check()
    store.set(b"k", b"short again")
    assert store.get(b"k") == b"short again"
    store.check()


def test_scan_sees_keys_that_stay_exactly_once_while_others_come_and_go():
    store = make(1 << 20)
    stay = {b"stay:%d" % number for number in range(500)}
    for key in stay:
        store.set(key, b"")
    seen: list[bytes] = []
    cursor, turn = 0, 0
    while True:
        cursor, keys = store.scan(cursor, 10)
        seen += keys
        turn += 1
        store.set(b"come:%d" % turn, b"x" * turn)
        store.delete(b"come:%d" % (turn - 5))
        if not cursor:
            break
    assert sorted(key for key in seen if key in stay) == sorted(stay)


def test_owner_words_live_in_the_region():
    region = memoryview(bytearray(MIN_REGION_BYTES))
    Store.format(region).set_owner_word(3, 77)
    store = Store.open(region)
    assert [store.owner_word(number) for number in range(OWNER_WORDS)] == [0, 0, 0, 77, 0, 0, 0, 0]
    store.check()
    with pytest.raises(IndexError):
        store.owner_word(OWNER_WORDS)
    store.clear()
    assert store.owner_word(3) == 0


def test_bytes_that_are_no_store_are_refused():
    region = bytearray(MIN_REGION_BYTES)
    with pytest.raises(StoreError, match="no store"):
        Store.open(memoryview(region))
    Store.format(memoryview(region))
    with pytest.raises(StoreError):
        Store.open(memoryview(region + bytes(8)))
    with pytest.raises(StoreError):
        Store.open(memoryview(region)[:4096])
    with pytest.raises(ValueError, match="at least"):
        Store.format(memoryview(bytearray(4096)))
    with pytest.raises(ValueError, match="writable"):
        Store.format(memoryview(bytes(MIN_REGION_BYTES)))


def test_keys_are_bounded():
    with pytest.raises(ValueError, match="at most"):
        make().set(b"k" * (MAX_KEY_BYTES + 1), b"")


@given(st.integers(0, (1 << 17) - 8), st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_check_notices_a_changed_byte_or_the_store_is_as_good_as_before(offset, change):
    """A lost page must not go unseen: a flipped byte in the structure is found; in a value it changes that value."""
    region = bytearray(1 << 17)
    store = Store.format(memoryview(region))
    for number in range(600):
        store.set(b"key:%d" % number, b"value %d" % number * 3)
    for number in range(0, 600, 5):
        store.delete(b"key:%d" % number)
    before = contents(store)
    region[offset] ^= change
    try:
        store = Store.open(memoryview(region))
        store.check()
    except StoreError:
        return
    changed = [key for key, value in contents(store).items() if before.get(key) != value]
    assert len(changed) <= 1

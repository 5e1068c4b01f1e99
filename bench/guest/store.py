"""A key-value store wholly inside a piece of guest memory: hash table and slab allocator, nothing outside.

Whoever has the bytes has the store: :meth:`Store.open` on a copy of them goes on where the original stood, which is how
the data of the guest's key-value service moves with its memory and with nothing else.

Layout, native byte order (a guest moves between machines of one architecture), all words 8 bytes, offsets from the
start of the region, 0 = none::

    header    4096 bytes  magic, sizes, number of items, owner's words, the allocator's words
    buckets   8 bytes each: offset of the first item; a power of two of them, fixed, one for each 128 bytes of region
    slabs     see bench/guest/slabs.py

    item      next in bucket 8 | hash 4 | key length 4 | value length 4 | spare 4 | overflow 8 | key | value
    overflow  next overflow 8 | more of the value          (values that do not fit into one chunk)

Every operation is O(1) in the number of items: a region full of the smallest items has 2 of them in each bucket.
The hash is CRC-32: fast and the same in every process; it is no defence against keys chosen to collide.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator
from zlib import crc32

from bench.guest.slabs import Offsets, Slabs, StoreError, StoreFull

__all__ = ["MAX_KEY_BYTES", "MIN_REGION_BYTES", "OWNER_WORDS", "Store", "StoreError", "StoreFull"]

MIN_REGION_BYTES = 1 << 16
MAX_KEY_BYTES = 8192
OWNER_WORDS = 8

_MAGIC = b"MBSTORE1"
_HEADER_BYTES = 4096
_BYTES_PER_BUCKET = 128
_SMALL_REGION_BYTES = 4 << 20
_SCAN_BLOCK = 512

_HEADER = struct.Struct("=8sQQQQQ")  # magic, region, buckets, data start, slab size, slabs
_ITEMS, _OWNER = 6, 8  # word numbers; the allocator has its own behind them
_ITEM = struct.Struct("=QIIIIQ")
_ITEM_BYTES = _ITEM.size
_LINK_BYTES = 8


class Store:
    """See the module's text. Not thread-safe. Made by :meth:`format` or :meth:`open`.

    :param region: writable bytes; the store keeps no copy of anything that changes.
    """

    def __init__(self, region: memoryview) -> None:
        self._bytes = region
        self._words = region.cast("Q")
        header: tuple[bytes, int, int, int, int, int] = _HEADER.unpack_from(region, 0)
        _magic, self.region_bytes, buckets, data, slab_bytes, slabs = header
        self._bucket_word = _HEADER_BYTES // 8
        self._mask = buckets - 1
        self._slab = Slabs(self._words, data, slab_bytes, slabs)
        self._sizes = self._slab.sizes

    @classmethod
    def format(cls, region: memoryview) -> Store:
        """Make *region* a new, empty store.

        :raises ValueError: when it is read-only, no multiple of 8 bytes, or below :data:`MIN_REGION_BYTES`.
        """
        region = region.cast("B") if region.format != "B" else region
        size = region.nbytes
        if region.readonly or size < MIN_REGION_BYTES or size % 8:
            raise ValueError(f"a store needs at least {MIN_REGION_BYTES} writable bytes, a multiple of 8; got {size}")
        slab_bytes = 1 << 14 if size < _SMALL_REGION_BYTES else 1 << 16
        buckets = 1 << (size // _BYTES_PER_BUCKET).bit_length() - 1
        data = -(-(_HEADER_BYTES + 8 * buckets) // 64) * 64
        region[:data] = bytes(data)
        _HEADER.pack_into(region, 0, _MAGIC, size, buckets, data, slab_bytes, (size - data) // slab_bytes)
        return cls(region)

    @classmethod
    def open(cls, region: memoryview) -> Store:
        """The store that *region* holds. :raises StoreError: when its header is none of a store of that size."""
        region = region.cast("B") if region.format != "B" else region
        if region.readonly or region.nbytes < MIN_REGION_BYTES:
            raise StoreError(f"{region.nbytes} bytes hold no store")
        magic, size, buckets, data, slab_bytes, slabs = _HEADER.unpack_from(region, 0)
        if magic != _MAGIC:
            raise StoreError(f"no store: it begins with {magic!r}")
        sane = (
            size == region.nbytes
            and buckets
            and buckets & (buckets - 1) == 0
            and slab_bytes in (1 << 14, 1 << 16)
            and data >= _HEADER_BYTES + 8 * buckets
            and data + slabs * slab_bytes <= size
        )
        if not sane:
            raise StoreError(f"a store of {size} bytes in a region of {region.nbytes}, or a damaged header")
        return cls(region)

    # what is in it

    def __len__(self) -> int:
        return self._words[_ITEMS]

    def __contains__(self, key: bytes) -> bool:
        return self._find(key)[0] != 0

    def get(self, key: bytes) -> bytes | None:
        """The value of *key*, None when there is none."""
        digest = crc32(key)
        length = len(key)
        region = self._bytes
        item = self._words[self._bucket_word + (digest & self._mask)]
        while item:
            following, item_digest, key_bytes, value_bytes, _spare, overflow = _ITEM.unpack_from(region, item)
            if item_digest == digest and key_bytes == length:
                start = item + _ITEM_BYTES + length
                if region[item + _ITEM_BYTES : start] == key:
                    if overflow:
                        return self._join(start, value_bytes, item, overflow)
                    return bytes(region[start : start + value_bytes])
            item = following
        return None

    def keys(self) -> Iterator[bytes]:
        """All keys, in no order. The store must not be changed meanwhile."""
        return iter(self)

    def __iter__(self) -> Iterator[bytes]:
        cursor = 0
        while True:
            cursor, keys = self.scan(cursor, _SCAN_BLOCK)
            yield from keys
            if not cursor:
                return

    def scan(self, cursor: int, count: int) -> tuple[int, list[bytes]]:
        """About *count* keys from *cursor* on (0 at first); returns the cursor to go on with, 0 at the end.

        A key that is there from the first call to the last is returned exactly once, whatever else changes meanwhile:
        the cursor is a bucket number and keys never change their bucket.
        """
        found: list[bytes] = []
        buckets = self._mask + 1
        region, words, first = self._bytes, self._words, self._bucket_word
        empty = bytes(8 * _SCAN_BLOCK)
        while cursor < buckets:
            if cursor % _SCAN_BLOCK == 0:
                start = 8 * (first + cursor)
                block = bytes(region[start : start + 8 * min(_SCAN_BLOCK, buckets - cursor)])
                if block == empty[: len(block)]:
                    cursor += _SCAN_BLOCK
                    continue
            item = words[first + cursor]
            while item:
                following, _digest, key_bytes, _value_bytes, _spare, _overflow = _ITEM.unpack_from(region, item)
                found.append(bytes(region[item + _ITEM_BYTES : item + _ITEM_BYTES + key_bytes]))
                item = following
            cursor += 1
            if len(found) >= count:
                break
        return (cursor if cursor < buckets else 0), found

    @property
    def used_bytes(self) -> int:
        """Bytes of the chunks in use."""
        return self._slab.used_bytes

    @property
    def capacity_bytes(self) -> int:
        """Bytes of all slabs."""
        return self._slab.capacity_bytes

    def owner_word(self, number: int) -> int:
        """One of :data:`OWNER_WORDS` counters in the header for the store's owner, 0 at first and after clear()."""
        return self._words[_OWNER + range(OWNER_WORDS)[number]]

    def set_owner_word(self, number: int, value: int) -> None:
        self._words[_OWNER + range(OWNER_WORDS)[number]] = value

    # changing it

    def set(self, key: bytes, value: bytes) -> None:
        """Store *value*. Replacing a value by one that is no longer never fails for want of room.

        :raises StoreFull: when there is no room; the old value, if any, is still there then.
        :raises ValueError: when *key* is longer than :data:`MAX_KEY_BYTES`.
        """
        if len(key) > MAX_KEY_BYTES:
            raise ValueError(f"a key of {len(key)} bytes; at most {MAX_KEY_BYTES}")
        item, link = self._find(key)
        total = _ITEM_BYTES + len(key) + len(value)
        region, words = self._bytes, self._words
        if item:
            following, digest, _key_bytes, old_bytes, _spare, overflow = _ITEM.unpack_from(region, item)
            if not overflow and self._slab.class_of(item) == bisect_left(self._sizes, total):
                self._overwrite(item, len(key), value)
                return
            try:
                fresh = self._make(key, value, digest, following)
            except StoreFull:
                if len(value) > old_bytes:
                    raise
                if not overflow:  # it stays in a chunk larger than it needs
                    self._overwrite(item, len(key), value)
                    return
                words[link] = following
                self._release(item)
                fresh = self._make(key, value, digest, following)  # has room: what was released is no smaller
                words[link] = fresh
                return
            words[link] = fresh
            self._release(item)
            return
        digest = crc32(key)
        bucket = self._bucket_word + (digest & self._mask)
        words[bucket] = self._make(key, value, digest, words[bucket])
        words[_ITEMS] += 1

    def delete(self, key: bytes) -> bool:
        """True when it was there."""
        item, link = self._find(key)
        if not item:
            return False
        self._words[link] = self._words[item >> 3]
        self._release(item)
        self._words[_ITEMS] -= 1
        return True

    def clear(self) -> None:
        """Empty it, the owner's words too."""
        self.format(self._bytes)

    # items

    def _find(self, key: bytes) -> tuple[int, int]:
        """Offset of the item (0: none) and number of the word that points to it."""
        digest = crc32(key)
        length = len(key)
        region, words = self._bytes, self._words
        link = self._bucket_word + (digest & self._mask)
        item = words[link]
        while item:
            following, item_digest, key_bytes, _value_bytes, _spare, _overflow = _ITEM.unpack_from(region, item)
            if item_digest == digest and key_bytes == length:
                start = item + _ITEM_BYTES
                if region[start : start + length] == key:
                    return item, link
            link = item >> 3
            item = following
        return 0, link

    def _overwrite(self, item: int, key_bytes: int, value: bytes) -> None:
        """Another value into the same chunk, which is large enough."""
        following, digest, _key_bytes, _value_bytes, _spare, _overflow = _ITEM.unpack_from(self._bytes, item)
        _ITEM.pack_into(self._bytes, item, following, digest, key_bytes, len(value), 0, 0)
        start = item + _ITEM_BYTES + key_bytes
        self._bytes[start : start + len(value)] = value

    def _make(self, key: bytes, value: bytes, digest: int, following: int) -> int:
        """A new item, linked by nobody yet. :raises StoreFull: after giving back what it had taken."""
        total = _ITEM_BYTES + len(key) + len(value)
        largest = self._sizes[-1]
        head_bytes = len(value) if total <= largest else largest - _ITEM_BYTES - len(key)
        item = self._slab.allocate(bisect_left(self._sizes, min(total, largest)))
        overflow = 0
        if head_bytes < len(value):
            try:
                overflow = self._spill(memoryview(value)[head_bytes:])
            except StoreFull:
                self._slab.free(item)
                raise
        _ITEM.pack_into(self._bytes, item, following, digest, len(key), len(value), 0, overflow)
        start = item + _ITEM_BYTES
        middle = start + len(key)
        self._bytes[start:middle] = key
        self._bytes[middle : middle + head_bytes] = value[:head_bytes] if overflow else value
        return item

    def _spill(self, rest: memoryview) -> int:
        """Put *rest* into overflow chunks, the last piece first so that each knows its follower."""
        piece = self._sizes[-1] - _LINK_BYTES
        following = 0
        for start in range((len(rest) - 1) // piece * piece, -1, -piece):
            part = rest[start : start + piece]
            try:
                chunk = self._slab.allocate(bisect_left(self._sizes, _LINK_BYTES + len(part)))
            except StoreFull:
                self._free_chain(following)
                raise
            self._words[chunk >> 3] = following
            self._bytes[chunk + _LINK_BYTES : chunk + _LINK_BYTES + len(part)] = part
            following = chunk
        return following

    def _join(self, start: int, value_bytes: int, item: int, overflow: int) -> bytes:
        end = item + self._sizes[-1]
        parts = [self._bytes[start:end]]
        left = value_bytes - (end - start)
        while overflow and left > 0:
            count = min(left, self._sizes[-1] - _LINK_BYTES)
            parts.append(self._bytes[overflow + _LINK_BYTES : overflow + _LINK_BYTES + count])
            left -= count
            overflow = self._words[overflow >> 3]
        return b"".join(parts)

    def _release(self, item: int) -> None:
        overflow: int = _ITEM.unpack_from(self._bytes, item)[5]
        self._slab.free(item)
        self._free_chain(overflow)

    def _free_chain(self, overflow: int) -> None:
        while overflow:
            following = self._words[overflow >> 3]
            self._slab.free(overflow)
            overflow = following

    # proof

    def check(self) -> None:
        """Walk everything and compare it with the counters. O(size).

        Proved: every item lies in the bucket of its hash and has all of its value; every chunk is either held by
        exactly one item or free (:meth:`bench.guest.slabs.Slabs.check`).

        :raises StoreError: naming the first thing that is wrong.
        """
        self._slab.check(self._check_items())

    def _check_items(self) -> Offsets:
        """All chunks that items hold."""
        held = Offsets()
        items = 0
        limit = self.capacity_bytes // self._sizes[0]
        for bucket in range(self._mask + 1):
            for item in self._slab.walk(self._words[self._bucket_word + bucket], limit, 0, f"bucket {bucket}"):
                items += 1
                _following, digest, key_bytes, value_bytes, _spare, overflow = _ITEM.unpack_from(self._bytes, item)
                key = bytes(self._bytes[item + _ITEM_BYTES : item + _ITEM_BYTES + min(key_bytes, MAX_KEY_BYTES)])
                if key_bytes > MAX_KEY_BYTES or crc32(key) != digest or digest & self._mask != bucket:
                    raise StoreError(f"bucket {bucket}: the item at {item} does not belong there")
                chunks = [item, *self._slab.walk(overflow, limit, 0, f"value of {key[:40]!r}")]
                room = self._sizes[-1] - _ITEM_BYTES - key_bytes
                rest = max(0, value_bytes - room)
                if len(chunks) - 1 != -(-rest // (self._sizes[-1] - _LINK_BYTES)):
                    raise StoreError(f"value of {key[:40]!r}: {value_bytes} bytes in {len(chunks)} chunks")
                if not held.isdisjoint(chunks) or len(Offsets(chunks)) != len(chunks):
                    raise StoreError(f"value of {key[:40]!r}: a chunk is held twice")
                held.update(chunks)
        if items != self._words[_ITEMS]:
            raise StoreError(f"{items} items found, {self._words[_ITEMS]} counted")
        return held

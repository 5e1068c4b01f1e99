"""A key-value store wholly inside a piece of guest memory: hash table and slab allocator, nothing outside.

Whoever has the bytes has the store: :meth:`Store.open` on a copy of them goes on where the original stood, which is how
the data of the guest's key-value service moves with its memory and with nothing else.

Layout, native byte order (a guest moves between machines of one architecture), all words 8 bytes, offsets from the
start of the region, 0 = none::

    header    4096 bytes  magic, sizes, counters, owner's words, heads of the lists of slabs with room
    buckets   8 bytes each: offset of the first item; a power of two of them, fixed, one for each 128 bytes of region
    slabs     slab_bytes each: a header of 64 bytes, then chunks of one size

    slab      class + 1 (0: free) | chunks in use | chunks ever used | free chunk | previous | next slab with room
    item      next in bucket 8 | hash 4 | key length 4 | value length 4 | spare 4 | overflow 8 | key | value
    overflow  next overflow 8 | more of the value          (values that do not fit into one chunk)
    free      next free chunk of the slab 8

Every operation is O(1) in the number of items: a region full of the smallest items has 2 of them in each bucket.
The hash is CRC-32: fast and the same in every process; it is no defence against keys chosen to collide.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator
from zlib import crc32

from bench.errors import GuestError

MIN_REGION_BYTES = 1 << 16
MAX_KEY_BYTES = 8192
OWNER_WORDS = 8

_MAGIC = b"MBSTORE1"
_HEADER_BYTES = 4096
_BYTES_PER_BUCKET = 128
_SLAB_HEADER_BYTES = 64
_SMALL_REGION_BYTES = 4 << 20
_MIN_CHUNK_BYTES = 64
_SCAN_BLOCK = 512

_HEADER = struct.Struct("=8sQQQQQ")  # magic, region, buckets, data start, slab size, slabs
_SLABS_BEGUN, _FREE_SLAB, _ITEMS, _USED_BYTES, _OWNER = 6, 7, 8, 9, 16  # word numbers
_CLASS_HEADS = 32  # word number of the first head; at most 480 classes fit, there are fewer than 64
_ITEM = struct.Struct("=QIIIIQ")
_ITEM_BYTES = _ITEM.size
_LINK_BYTES = 8
_CLASS, _IN_USE, _BEGUN, _FREE_CHUNK, _PREVIOUS, _NEXT = range(6)  # words of a slab's header


class StoreError(GuestError):
    """The bytes are no store, or a damaged one."""


class StoreFull(StoreError):
    """No room for the value; nothing was changed."""


def _class_sizes(slab_bytes: int) -> list[int]:
    """Chunk sizes: four for each doubling, then a third, a half and the whole of a slab, so that little is wasted."""
    payload = slab_bytes - _SLAB_HEADER_BYTES
    sizes = []
    base = _MIN_CHUNK_BYTES
    while base < payload // 4:
        sizes += [size for size in range(base, 2 * base, base // 4) if size < payload // 3]
        base *= 2
    return sizes + [payload // share // 16 * 16 for share in (3, 2, 1)]


_Offsets = set[int]  # inside the class `set` is the method


class Store:
    """See the module's text. Not thread-safe. Made by :meth:`format` or :meth:`open`.

    :param region: writable bytes; the store keeps no copy of anything that changes.
    """

    def __init__(self, region: memoryview) -> None:
        self._bytes = region
        self._words = region.cast("Q")
        header: tuple[bytes, int, int, int, int, int] = _HEADER.unpack_from(region, 0)
        _magic, self.region_bytes, buckets, self._data, self._slab_bytes, self._slabs = header
        self._bucket_word = _HEADER_BYTES // 8
        self._mask = buckets - 1
        self._sizes = _class_sizes(self._slab_bytes)
        self._capacities = [(self._slab_bytes - _SLAB_HEADER_BYTES) // size for size in self._sizes]

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
        return self._words[_USED_BYTES]

    @property
    def capacity_bytes(self) -> int:
        """Bytes of all slabs."""
        return self._slabs * self._slab_bytes

    def owner_word(self, number: int) -> int:
        """One of :data:`OWNER_WORDS` counters in the header for the store's owner, 0 at first and after clear()."""
        return self._words[_OWNER + range(OWNER_WORDS)[number]]

    def set_owner_word(self, number: int, value: int) -> None:
        self._words[_OWNER + range(OWNER_WORDS)[number]] = value

    # changing it

    def set(self, key: bytes, value: bytes) -> None:
        """:raises StoreFull: when there is no room; the old value, if any, is still there then.
        :raises ValueError: when *key* is longer than :data:`MAX_KEY_BYTES`.
        """
        if len(key) > MAX_KEY_BYTES:
            raise ValueError(f"a key of {len(key)} bytes; at most {MAX_KEY_BYTES}")
        item, link = self._find(key)
        total = _ITEM_BYTES + len(key) + len(value)
        region, words = self._bytes, self._words
        if item:
            following, digest, _key_bytes, _value_bytes, _spare, overflow = _ITEM.unpack_from(region, item)
            if not overflow and total <= self._sizes[-1]:
                chunk_class = words[self._slab_of(item) >> 3] - 1
                if bisect_left(self._sizes, total) == chunk_class:
                    _ITEM.pack_into(region, item, following, digest, len(key), len(value), 0, 0)
                    start = item + _ITEM_BYTES + len(key)
                    region[start : start + len(value)] = value
                    return
            fresh = self._make(key, value, digest, following)
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

    def _make(self, key: bytes, value: bytes, digest: int, following: int) -> int:
        """A new item, linked by nobody yet. :raises StoreFull: after giving back what it had taken."""
        total = _ITEM_BYTES + len(key) + len(value)
        largest = self._sizes[-1]
        head_bytes = len(value) if total <= largest else largest - _ITEM_BYTES - len(key)
        item = self._allocate(bisect_left(self._sizes, min(total, largest)))
        overflow = 0
        if head_bytes < len(value):
            try:
                overflow = self._spill(memoryview(value)[head_bytes:])
            except StoreFull:
                self._free(item)
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
                chunk = self._allocate(bisect_left(self._sizes, _LINK_BYTES + len(part)))
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
        self._free(item)
        self._free_chain(overflow)

    def _free_chain(self, overflow: int) -> None:
        while overflow:
            following = self._words[overflow >> 3]
            self._free(overflow)
            overflow = following

    # chunks and slabs

    def _slab_of(self, offset: int) -> int:
        return self._data + (offset - self._data) // self._slab_bytes * self._slab_bytes

    def _allocate(self, chunk_class: int) -> int:
        words = self._words
        slab = words[_CLASS_HEADS + chunk_class] or self._begin_slab(chunk_class)
        head = slab >> 3
        chunk = words[head + _FREE_CHUNK]
        if chunk:
            words[head + _FREE_CHUNK] = words[chunk >> 3]
        else:
            begun = words[head + _BEGUN]
            chunk = slab + _SLAB_HEADER_BYTES + begun * self._sizes[chunk_class]
            words[head + _BEGUN] = begun + 1
        in_use = words[head + _IN_USE] + 1
        words[head + _IN_USE] = in_use
        if in_use == self._capacities[chunk_class]:
            self._unlink_slab(slab, chunk_class)
        words[_USED_BYTES] += self._sizes[chunk_class]
        return chunk

    def _free(self, chunk: int) -> None:
        words = self._words
        slab = self._slab_of(chunk)
        head = slab >> 3
        chunk_class = words[head + _CLASS] - 1
        words[chunk >> 3] = words[head + _FREE_CHUNK]
        words[head + _FREE_CHUNK] = chunk
        in_use = words[head + _IN_USE]
        words[head + _IN_USE] = in_use - 1
        if in_use == self._capacities[chunk_class]:
            self._link_slab(slab, chunk_class)
        if in_use == 1:
            self._unlink_slab(slab, chunk_class)
            words[head + _CLASS] = 0
            words[head + _NEXT] = words[_FREE_SLAB]
            words[_FREE_SLAB] = slab
        words[_USED_BYTES] -= self._sizes[chunk_class]

    def _begin_slab(self, chunk_class: int) -> int:
        words = self._words
        slab = words[_FREE_SLAB]
        if slab:
            words[_FREE_SLAB] = words[(slab >> 3) + _NEXT]
        else:
            begun = words[_SLABS_BEGUN]
            if begun == self._slabs:
                raise StoreFull(f"the store of {self.region_bytes} bytes is full")
            words[_SLABS_BEGUN] = begun + 1
            slab = self._data + begun * self._slab_bytes
        head = slab >> 3
        words[head + _CLASS] = chunk_class + 1
        words[head + _IN_USE] = 0
        words[head + _BEGUN] = 0
        words[head + _FREE_CHUNK] = 0
        self._link_slab(slab, chunk_class)
        return slab

    def _link_slab(self, slab: int, chunk_class: int) -> None:
        words = self._words
        following = words[_CLASS_HEADS + chunk_class]
        words[(slab >> 3) + _PREVIOUS] = 0
        words[(slab >> 3) + _NEXT] = following
        if following:
            words[(following >> 3) + _PREVIOUS] = slab
        words[_CLASS_HEADS + chunk_class] = slab

    def _unlink_slab(self, slab: int, chunk_class: int) -> None:
        words = self._words
        previous = words[(slab >> 3) + _PREVIOUS]
        following = words[(slab >> 3) + _NEXT]
        if previous:
            words[(previous >> 3) + _NEXT] = following
        else:
            words[_CLASS_HEADS + chunk_class] = following
        if following:
            words[(following >> 3) + _PREVIOUS] = previous

    # proof

    def check(self) -> None:
        """Walk everything and compare it with the counters. O(size).

        Proved: every item lies in the bucket of its hash; every chunk is either held by exactly one item or in its
        slab's free list or never used; the lists of slabs hold exactly the slabs with room, and the free ones.

        :raises StoreError: naming the first thing that is wrong.
        """
        begun = self._words[_SLABS_BEGUN]
        if begun > self._slabs:
            raise StoreError(f"{begun} slabs begun of {self._slabs}")
        held = self._check_items()
        free_slabs = _Offsets(self._walk(self._words[_FREE_SLAB], self._slabs, _NEXT, "free slabs"))
        used_bytes = 0
        roomy: dict[int, _Offsets] = {}
        for number in range(begun):
            slab = self._data + number * self._slab_bytes
            head = slab >> 3
            chunk_class = self._words[head + _CLASS] - 1
            if (chunk_class < 0) != (slab in free_slabs):
                raise StoreError(f"slab {number}: free and listed otherwise")
            if chunk_class < 0:
                continue
            if chunk_class >= len(self._sizes):
                raise StoreError(f"slab {number}: class {chunk_class}")
            size, capacity = self._sizes[chunk_class], self._capacities[chunk_class]
            in_use, ever = self._words[head + _IN_USE], self._words[head + _BEGUN]
            free = _Offsets(self._walk(self._words[head + _FREE_CHUNK], capacity, 0, f"free chunks of slab {number}"))
            chunks = {slab + _SLAB_HEADER_BYTES + index * size for index in range(min(ever, capacity))}
            inside = held & chunks
            if ever > capacity or not 0 < in_use == len(inside) or inside & free or inside | free != chunks:
                raise StoreError(
                    f"slab {number}: {in_use} chunks in use, {len(inside)} held, {len(free)} free of {ever}"
                )
            held -= chunks
            used_bytes += in_use * size
            if in_use < capacity:
                roomy.setdefault(chunk_class, _Offsets()).add(slab)
        if held:
            raise StoreError(f"{len(held)} chunks held outside of the slabs")
        if used_bytes != self.used_bytes:
            raise StoreError(f"{used_bytes} bytes in use, counted {self.used_bytes}")
        for chunk_class in range(len(self._sizes)):
            listed = _Offsets(
                self._walk(self._words[_CLASS_HEADS + chunk_class], self._slabs, _NEXT, "slabs with room")
            )
            if listed != roomy.get(chunk_class, _Offsets()):
                raise StoreError(f"class {chunk_class}: {len(listed)} slabs listed as having room")

    def _walk(self, offset: int, limit: int, word: int, what: str) -> Iterator[int]:
        """Follow a list whose links are in *word* of each element."""
        count = 0
        while offset:
            count += 1
            if count > limit or offset % 8 or not self._data <= offset < self.region_bytes:
                raise StoreError(f"{what}: broken at offset {offset}")
            yield offset
            offset = self._words[(offset >> 3) + word]

    def _check_items(self) -> _Offsets:
        """All chunks that items hold."""
        held = _Offsets()
        items = 0
        limit = self.capacity_bytes // _MIN_CHUNK_BYTES
        for bucket in range(self._mask + 1):
            for item in self._walk(self._words[self._bucket_word + bucket], limit, 0, f"bucket {bucket}"):
                items += 1
                _following, digest, key_bytes, value_bytes, _spare, overflow = _ITEM.unpack_from(self._bytes, item)
                key = bytes(self._bytes[item + _ITEM_BYTES : item + _ITEM_BYTES + min(key_bytes, MAX_KEY_BYTES)])
                if key_bytes > MAX_KEY_BYTES or crc32(key) != digest or digest & self._mask != bucket:
                    raise StoreError(f"bucket {bucket}: the item at {item} does not belong there")
                chunks = [item, *self._walk(overflow, limit, 0, f"value of {key[:40]!r}")]
                room = self._sizes[-1] - _ITEM_BYTES - key_bytes
                rest = max(0, value_bytes - room)
                if len(chunks) - 1 != -(-rest // (self._sizes[-1] - _LINK_BYTES)):
                    raise StoreError(f"value of {key[:40]!r}: {value_bytes} bytes in {len(chunks)} chunks")
                if not held.isdisjoint(chunks) or len(_Offsets(chunks)) != len(chunks):
                    raise StoreError(f"value of {key[:40]!r}: a chunk is held twice")
                held.update(chunks)
        if items != len(self):
            raise StoreError(f"{items} items found, {len(self)} counted")
        return held

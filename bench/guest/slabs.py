"""A slab allocator inside a region of words: the store's memory, with all of its book-keeping inside too.

The region's header leaves the words from :data:`SLAB_WORDS` on to the allocator; slabs lie one after the other from
the byte offset *data* on. Offsets are bytes from the start of the region, multiples of 8, 0 = none::

    header words   slabs ever begun | first free slab | bytes in use | first slab with room of each class ...
    slab           class + 1 (0: free) | chunks in use | chunks ever used | free chunk | previous | next slab with room
                   | two spare words | chunks ...
    free chunk     next free chunk of the slab

Allocating and freeing are O(1). A slab whose last chunk is freed serves any class again.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.errors import GuestError

SLAB_WORDS = 32  # number of the allocator's first word in the region's header of 512 words
Offsets = set[int]

_SLABS_BEGUN, _FREE_SLAB, _USED_BYTES = SLAB_WORDS, SLAB_WORDS + 1, SLAB_WORDS + 2
_CLASS_HEADS = SLAB_WORDS + 8  # there are fewer than 64 classes
_CLASS, _IN_USE, _BEGUN, _FREE_CHUNK, _PREVIOUS, _NEXT = range(6)  # words of a slab's header
_SLAB_HEADER_BYTES = 64
_MIN_CHUNK_BYTES = 64


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


class Slabs:
    """See the module's text.

    :param words: the region as 8-byte words.
    :param data: byte offset of the first slab.
    :param slab_bytes: size of each.
    :param slabs: how many there is room for.
    """

    def __init__(self, words: memoryview, data: int, slab_bytes: int, slabs: int) -> None:
        self._words = words
        self._data = data
        self._slab_bytes = slab_bytes
        self._slabs = slabs
        self.sizes = _class_sizes(slab_bytes)
        self._capacities = [(slab_bytes - _SLAB_HEADER_BYTES) // size for size in self.sizes]

    @property
    def used_bytes(self) -> int:
        """Bytes of the chunks in use."""
        return self._words[_USED_BYTES]

    @property
    def capacity_bytes(self) -> int:
        """Bytes of all slabs."""
        return self._slabs * self._slab_bytes

    def class_of(self, chunk: int) -> int:
        return self._words[self._slab_of(chunk) >> 3] - 1

    def _slab_of(self, offset: int) -> int:
        return self._data + (offset - self._data) // self._slab_bytes * self._slab_bytes

    def allocate(self, chunk_class: int) -> int:
        """A chunk of that class; of a larger one when neither it nor a new slab is to be had."""
        words = self._words
        slab = words[_CLASS_HEADS + chunk_class] or self._begin_slab(chunk_class)
        while not slab:
            chunk_class += 1
            if chunk_class == len(self.sizes):
                raise StoreFull(f"the store of {self.capacity_bytes} bytes is full")
            slab = words[_CLASS_HEADS + chunk_class]
        head = slab >> 3
        chunk = words[head + _FREE_CHUNK]
        if chunk:
            words[head + _FREE_CHUNK] = words[chunk >> 3]
        else:
            begun = words[head + _BEGUN]
            chunk = slab + _SLAB_HEADER_BYTES + begun * self.sizes[chunk_class]
            words[head + _BEGUN] = begun + 1
        in_use = words[head + _IN_USE] + 1
        words[head + _IN_USE] = in_use
        if in_use == self._capacities[chunk_class]:
            self._unlink_slab(slab, chunk_class)
        words[_USED_BYTES] += self.sizes[chunk_class]
        return chunk

    def free(self, chunk: int) -> None:
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
        words[_USED_BYTES] -= self.sizes[chunk_class]

    def _begin_slab(self, chunk_class: int) -> int:
        """A free slab for chunks of that class, 0 when there is none."""
        words = self._words
        slab = words[_FREE_SLAB]
        if slab:
            words[_FREE_SLAB] = words[(slab >> 3) + _NEXT]
        else:
            begun = words[_SLABS_BEGUN]
            if begun == self._slabs:
                return 0
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

    def walk(self, offset: int, limit: int, word: int, what: str) -> Iterator[int]:
        """Follow a list whose links are in *word* of each element."""
        count = 0
        end = self._data + self.capacity_bytes
        while offset:
            count += 1
            if count > limit or offset % 8 or not self._data <= offset < end:
                raise StoreError(f"{what}: broken at offset {offset}")
            yield offset
            offset = self._words[(offset >> 3) + word]

    def check(self, held: Offsets) -> None:
        """Compare the allocator's books with the chunks that its user says it holds.

        Proved: every chunk is either held, or in its slab's free list, or never used; the lists of slabs hold exactly
        the slabs with room, and the free ones. *held* is used up.

        :raises StoreError: naming the first thing that is wrong.
        """
        begun = self._words[_SLABS_BEGUN]
        if begun > self._slabs:
            raise StoreError(f"{begun} slabs begun of {self._slabs}")
        free_slabs = set(self.walk(self._words[_FREE_SLAB], self._slabs, _NEXT, "free slabs"))
        used_bytes = 0
        roomy: list[Offsets] = [set() for _size in self.sizes]
        for number in range(begun):
            slab = self._data + number * self._slab_bytes
            chunk_class = self._words[(slab >> 3) + _CLASS] - 1
            if (chunk_class < 0) != (slab in free_slabs):
                raise StoreError(f"slab {number}: free and listed otherwise")
            if chunk_class < 0:
                continue
            if chunk_class >= len(self.sizes):
                raise StoreError(f"slab {number}: class {chunk_class}")
            in_use = self._check_slab(number, slab, chunk_class, held)
            used_bytes += in_use * self.sizes[chunk_class]
            if in_use < self._capacities[chunk_class]:
                roomy[chunk_class].add(slab)
        if held:
            raise StoreError(f"{len(held)} chunks held outside of the slabs")
        if used_bytes != self.used_bytes:
            raise StoreError(f"{used_bytes} bytes in use, counted {self.used_bytes}")
        for chunk_class, expected in enumerate(roomy):
            first = self._words[_CLASS_HEADS + chunk_class]
            listed = set(self.walk(first, self._slabs, _NEXT, f"slabs with room of class {chunk_class}"))
            if listed != expected:
                raise StoreError(
                    f"class {chunk_class}: {len(listed)} slabs listed as having room, {len(expected)} have"
                )

    def _check_slab(self, number: int, slab: int, chunk_class: int, held: Offsets) -> int:
        """Take the slab's chunks out of *held*; returns how many were in it."""
        head = slab >> 3
        size, capacity = self.sizes[chunk_class], self._capacities[chunk_class]
        in_use, ever = self._words[head + _IN_USE], self._words[head + _BEGUN]
        free = set(self.walk(self._words[head + _FREE_CHUNK], capacity, 0, f"free chunks of slab {number}"))
        chunks = {slab + _SLAB_HEADER_BYTES + index * size for index in range(min(ever, capacity))}
        inside = held & chunks
        if ever > capacity or not 0 < in_use == len(inside) or inside & free or inside | free != chunks:
            raise StoreError(f"slab {number}: {in_use} of {ever} chunks in use, {len(inside)} held, {len(free)} free")
        held -= chunks
        return in_use

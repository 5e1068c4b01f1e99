"""A mirror's copy equals its disk, whatever is written while it runs and in whatever order requests are done."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.storage.export import FLUSH, READ, WRITE, ZERO
from bench.storage.mirror import CLOSE_BYTES, LEAST_BLOCK_BYTES, MOST_BLOCKS, REQUEST_BYTES, Mirror, block_bytes


class FakeExport:
    """A disk whose requests are done when the test says so."""

    def __init__(self, size, chance):
        self.disk = bytearray(size)
        self.waiting = []
        self.chance = chance
        self.flushed = False

    def submit(self, request):
        self.waiting.append(request)

    def step(self):
        request = self.waiting.pop(self.chance.randrange(len(self.waiting)))
        end = request.offset + request.length
        if request.kind == READ:
            request.buffer[:] = self.disk[request.offset : end]
        elif request.kind == WRITE:
            self.disk[request.offset : end] = request.buffer
        elif request.kind == ZERO:
            self.disk[request.offset : end] = bytes(request.length)
        else:
            assert request.kind == FLUSH
            self.flushed = True
        request.done(0)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1 << 32), st.integers(1, 120), st.integers(0, 60))
def test_the_copy_is_complete_when_finish_says_so(seed, blocks, writes):
    chance = random.Random(seed)
    size = blocks * LEAST_BLOCK_BYTES - 512
    source, target = FakeExport(size, chance), FakeExport(size, chance)
    target.disk[:] = b"\xee" * size  # what an earlier copy left
    mirror = Mirror(source, target, size)
    mirror.begin()
    while writes or not mirror.close:
        if writes and chance.random() < 0.3:
            writes -= 1
            offset = chance.randrange(size - 100)
            source.disk[offset : offset + 100] = bytes([writes + 1]) * 100
            mirror.wrote(offset, 100)
        else:
            busy = [export for export in (source, target) if export.waiting]
            if not busy:
                assert mirror.close
                break
            chance.choice(busy).step()
    while writes:
        writes -= 1
        source.disk[0] = writes
        mirror.wrote(0, 1)
    done = []
    mirror.finish(done.append)
    while not done:
        chance.choice([export for export in (source, target) if export.waiting]).step()
    assert done == [0]
    assert target.disk == source.disk
    assert target.flushed


def test_a_mirror_is_close_only_when_little_is_left():
    chance = random.Random(1)
    size = 64 * REQUEST_BYTES
    source, target = FakeExport(size, chance), FakeExport(size, chance)
    mirror = Mirror(source, target, size)
    mirror.begin()
    copied = 0
    while not mirror.close:
        export = source if source.waiting else target
        export.step()
        copied += export is target
    assert copied >= 64 - CLOSE_BYTES // REQUEST_BYTES


def test_an_error_ends_the_mirror():
    chance = random.Random(1)
    source, target = FakeExport(REQUEST_BYTES, chance), FakeExport(REQUEST_BYTES, chance)
    mirror = Mirror(source, target, REQUEST_BYTES)
    mirror.begin()
    done = []
    mirror.finish(done.append)
    source.waiting.pop().done(5)
    assert done == [5]
    assert mirror.status()["error"] == 5


def test_a_small_write_makes_little_cross_again_and_neighbours_cross_together():
    chance = random.Random(1)
    size = 16 * REQUEST_BYTES
    source, target = FakeExport(size, chance), FakeExport(size, chance)
    source.disk[:] = b"\x01" * size
    mirror = Mirror(source, target, size)
    mirror.begin()
    requests = 0
    while source.waiting or target.waiting:
        requests += bool(target.waiting)
        (target if target.waiting else source).step()
    assert requests == 16
    assert mirror.copied_bytes == size
    for at in (0, size // 2, size // 2 + LEAST_BLOCK_BYTES):
        mirror.wrote(at, 4096)
    while source.waiting or target.waiting:
        (target if target.waiting else source).step()
    assert mirror.copied_bytes == size + 3 * LEAST_BLOCK_BYTES


def test_the_blocks_of_a_large_disk_are_larger_but_fit_a_request():
    assert block_bytes(64 << 20) == block_bytes(LEAST_BLOCK_BYTES * MOST_BLOCKS) == LEAST_BLOCK_BYTES
    assert block_bytes(LEAST_BLOCK_BYTES * MOST_BLOCKS + 1) == 2 * LEAST_BLOCK_BYTES
    assert block_bytes(1 << 40) == REQUEST_BYTES

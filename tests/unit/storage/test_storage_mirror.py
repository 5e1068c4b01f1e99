"""A mirror's copy equals its disk, whatever is written while it runs and in whatever order requests are done."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.storage.export import FLUSH, READ, WRITE, ZERO
from bench.storage.mirror import BLOCK_BYTES, CLOSE_BLOCKS, Mirror


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
@given(st.integers(0, 1 << 32), st.integers(1, 40), st.integers(0, 60))
def test_the_copy_is_complete_when_finish_says_so(seed, blocks, writes):
    chance = random.Random(seed)
    size = blocks * BLOCK_BYTES - 512
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
    size = 64 * BLOCK_BYTES
    source, target = FakeExport(size, chance), FakeExport(size, chance)
    mirror = Mirror(source, target, size)
    mirror.begin()
    copied = 0
    while not mirror.close:
        export = source if source.waiting else target
        export.step()
        copied += export is target
    assert copied >= 64 - CLOSE_BLOCKS


def test_an_error_ends_the_mirror():
    chance = random.Random(1)
    source, target = FakeExport(BLOCK_BYTES, chance), FakeExport(BLOCK_BYTES, chance)
    mirror = Mirror(source, target, BLOCK_BYTES)
    mirror.begin()
    done = []
    mirror.finish(done.append)
    source.waiting.pop().done(5)
    assert done == [5]
    assert mirror.status()["error"] == 5

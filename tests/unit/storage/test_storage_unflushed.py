"""Whatever a server lost that was not flushed: doing the kept changes again gives the disk that was acknowledged."""

from hypothesis import given
from hypothesis import strategies as st

from bench.storage.unflushed import FULL_BYTES, HIGH_BYTES, Unflushed

SIZE = 64


class Disk:
    """What was acknowledged, and what a server that is killed now would leave."""

    def __init__(self):
        self.kept = Unflushed()
        self.acknowledged = bytearray(SIZE)
        self.flushed = bytearray(SIZE)

    def change(self, offset, length, fill):
        length = min(length, SIZE - offset)
        data = None if fill == 0 else memoryview(bytes([fill]) * length)
        self.acknowledged[offset : offset + length] = data or bytes(length)
        self.kept.add(offset, length, data)

    def redone(self):
        disk = bytearray(self.flushed)
        for offset, length, data in self.kept:
            disk[offset : offset + length] = data or bytes(length)
        return disk


CHANGE = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 16), st.integers(0, 255))


@given(st.lists(st.one_of(CHANGE, st.just("send"), st.just("done"))))
def test_doing_again_what_was_kept_gives_the_disk_that_was_acknowledged(steps):
    disk = Disk()
    sent = []
    for step in steps:
        if step == "send":
            sent.append((disk.kept.mark(), bytearray(disk.acknowledged)))
        elif step == "done" and sent:
            mark, disk.flushed = sent.pop(0)
            disk.kept.flushed(mark)
        elif step != "done":
            disk.change(*step)
        assert disk.redone() == disk.acknowledged
    disk.kept.flushed(disk.kept.mark())
    assert (len(disk.kept), disk.kept.bytes) == (0, 0)


def test_a_block_that_is_written_over_and_over_is_kept_once():
    kept = Unflushed()
    for _ in range(100):
        kept.add(0, 1 << 20, memoryview(bytes(1 << 20)))
    assert (len(kept), kept.bytes, kept.high) == (1, 1 << 20, False)


def test_much_asks_for_a_flush_and_too_much_for_a_wait():
    kept = Unflushed()
    piece = memoryview(bytes(HIGH_BYTES // 2))
    told = []
    for number in range(2 * FULL_BYTES // HIGH_BYTES):
        kept.add(number * len(piece), len(piece), piece)
        told.append((kept.high, kept.full))
    assert told == [(False, False), (True, False), (True, False), (True, True)]

"""A disk driver over bytes in memory, whose requests are done when the test says so."""

from bench.storage import ring


class FakeDriver:
    def __init__(self, size_bytes: int) -> None:
        self.disk = bytearray(size_bytes)
        self.free = list(range(ring.SLOTS))
        self.area = memoryview(bytearray(ring.AREA_BYTES))
        self.waiting = []
        self.callers = []
        self.fail = 0
        self.writes = []

    def slot(self):
        return self.free.pop() if self.free else None

    def give_back(self, slot):
        self.free.append(slot)
        callers, self.callers = self.callers, []
        for call in callers:
            call()

    def when_free(self, call):
        self.callers.append(call)

    def data(self, slot):
        return self.area[slot * ring.SLOT_BYTES : (slot + 1) * ring.SLOT_BYTES]

    def write(self, disk, slot, offset, length, done, *, fua=False):
        self.waiting.append(("write", slot, offset, length, done))
        self.writes.append((offset, length, fua))

    def read(self, disk, slot, offset, length, done):
        self.waiting.append(("read", slot, offset, length, done))

    def step(self, index=0):
        """One request is done."""
        kind, slot, offset, length, done = self.waiting.pop(index)
        if not self.fail and kind == "write":
            self.disk[offset : offset + length] = self.data(slot)[:length]
        elif not self.fail:
            self.data(slot)[:length] = self.disk[offset : offset + length]
        done(self.fail)

    def drain(self, deadline=None):
        while self.waiting:
            self.step()

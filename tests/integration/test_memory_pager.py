"""Pages that are not there: real processes wait for them, get what was installed, and never anything else."""

import contextlib
import os
import select
from pathlib import Path

import numpy as np
import pytest

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.errors import MemoryTrackingError
from bench.guest.vcpu_client import start_all
from bench.guest.workload import split
from bench.memory.hashes import PageHashes
from bench.memory.image import GuestMemory
from bench.memory.pager import FaultTimes, Pager

pytestmark = pytest.mark.root

PAGES = 1024
WORKLOAD = {
    "pattern": "sequential",
    "rate_bytes_per_s": 4 << 20,
    "working_set_bytes": 1 << 20,
    "hot_share": 0.9,
    "write_bytes": 64,
    "seed": 1,
}


def soon():
    return Deadline(30 * NS_PER_S)


@pytest.fixture
def guest():
    """Memory without pages, two vCPUs that expect them, and the pager between."""
    with contextlib.ExitStack() as stack:
        memory = stack.enter_context(GuestMemory.create(PAGES * 4096))
        vcpus = start_all(memory.fd, memory.size_bytes, split(WORKLOAD, memory.size_bytes, 4096, 2), deadline=soon(),
                          populate="never")  # fmt: skip
        for vcpu in vcpus:
            stack.callback(vcpu.quit)
        pager = Pager([(vcpu.expect(True, soon()), vcpu.base) for vcpu in vcpus], memory, PageHashes(PAGES))
        stack.callback(pager.close)
        yield memory, vcpus, pager


def serve(pager, until):
    """Answer every fault with a page full of its number, until the condition holds."""
    asked = []

    def step():
        select.select(pager.filenos, [], [], 0.01)
        new = pager.read_faults()
        for page in new:
            pager.install(np.array([page]), np.full((1, 512), page, dtype=np.uint64))
        asked.extend(new)
        return until()

    wait_until(step, soon(), "the vCPUs' writes")
    return asked


def finish(pager, vcpus):
    """Everything that is missing becomes zero pages, and waiting ends."""
    pager.install_zero(0, PAGES)
    for vcpu in vcpus:
        vcpu.channel.post("expect", {"enable": False})
        serve(pager, lambda vcpu=vcpu: select.select([vcpu.channel], [], [], 0)[0])
        assert "value" in vcpu.channel.receive(soon())


def test_writers_wait_for_their_pages_and_each_page_is_asked_for_once(guest):
    memory, vcpus, pager = guest
    pager.forget(0, PAGES)
    assert pager.left == PAGES
    for vcpu in vcpus:
        vcpu.run(soon())
    asked = serve(pager, lambda: pager.times.to_json()["count"] >= 100)
    assert len(asked) == len(set(asked))
    finish(pager, vcpus)
    for vcpu in vcpus:
        vcpu.pause(soon())
        assert vcpu.check(soon())["wrong"] == 0
    page = asked[0]
    assert page in memory.words[page]  # what was installed, but for what was written
    assert pager.left == 0
    assert not pager.waiting


def test_nothing_that_is_there_is_overwritten(guest):
    memory, vcpus, pager = guest
    pager.forget(0, 8)
    pages = np.arange(8)
    pager.install(pages, np.full((8, 512), 7, dtype=np.uint64))
    pager.install(pages, np.full((8, 512), 9, dtype=np.uint64))
    pager.install_zero(0, 8)
    assert pager.duplicates == 16
    assert (memory.words[:8] == 7).all()
    # also when the pager does not know
    pager.forget(8, 1)
    memory.words[8] = 5
    pager.install(np.array([8]), np.full((1, 512), 9, dtype=np.uint64))
    assert (memory.words[8] == 5).all()
    finish(pager, vcpus)


def test_a_page_that_is_not_missing_is_a_zero_page(guest):
    _memory, vcpus, pager = guest
    for vcpu in vcpus:
        vcpu.run(soon())
    assert serve(pager, lambda: pager.zero_faults >= 10) == []
    finish(pager, vcpus)


def test_scattered_pages_go_where_they_belong(guest):
    memory, vcpus, pager = guest
    pager.forget(0, PAGES)
    pages = np.array([1, 2, 3, 50, 700, 701])
    rows = np.arange(len(pages) * 512, dtype=np.uint64).reshape(-1, 512)
    pager.install(pages, rows)
    assert np.array_equal(memory.words[pages], rows)
    hashes = PageHashes(PAGES)
    hashes.update(memory.words, pages)
    pager.install_zero(0, PAGES)
    assert pager._hashes is not None
    assert pager._hashes.digest() == hashes.digest()
    finish(pager, vcpus)


def test_a_guest_that_died_is_an_error(guest):
    _memory, vcpus, pager = guest
    pager.forget(0, PAGES)
    for vcpu in vcpus:
        vcpu.process.kill()
        vcpu.process.wait()
    with pytest.raises(MemoryTrackingError, match="the guest is gone"):
        pager.install(np.array([3]), np.zeros((1, 512), dtype=np.uint64))


def test_a_vcpu_that_waits_dies_with_its_guest():
    """The parent that starts it ends while it waits for a page: nobody could ever answer."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            memory = GuestMemory.create(PAGES * 4096)
            parts = split(WORKLOAD, memory.size_bytes, 4096, 1)
            (vcpu,) = start_all(memory.fd, memory.size_bytes, parts, deadline=soon(), populate="never")
            pager = Pager([(vcpu.expect(True, soon()), vcpu.base)], memory, None)
            pager.forget(0, PAGES)
            vcpu.run(soon())
            wait_until(lambda: bool(pager.read_faults()), soon(), "a fault")
            os.write(writer, str(vcpu.pid).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    pid = int(os.read(reader, 20))
    os.close(reader)
    wait_until(lambda: not _runs(pid), soon(), "the vCPU's end")


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_fault_times_are_counted_once_each():
    times = FaultTimes()
    assert times.to_json()["p50_ns"] is None
    for duration_ns in (10_000, 20_000, 20_000, 3_000_000):
        times.add(duration_ns)
    result = times.to_json()
    assert (result["count"], result["max_ns"]) == (4, 3_000_000)
    assert result["histogram"] == [[16384, 1], [32768, 2], [4194304, 1]]

"""A vCPU's pace, and its process over untracked memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, wait_until
from bench.errors import GuestError
from bench.guest.pacing import BATCH_WRITES, Pacer, Rate
from bench.guest.vcpu import Writer
from bench.guest.vcpu_client import Vcpu, loading, pause_all, start_all
from bench.guest.workload import Parameters, Workload, split
from bench.host.channel import ChannelClosed
from bench.memory.image import GuestMemory

MEMORY_BYTES = 4 << 20
RATE = 40 << 20


def soon() -> Deadline:
    return Deadline(30 * NS_PER_S)


def parts(vcpus: int = 1, **changes: Any) -> list[Parameters]:
    workload = {
        "pattern": "hotset",
        "rate_bytes_per_s": 0,
        "working_set_bytes": 1 << 20,
        "hot_share": 0.9,
        "write_bytes": 256,
        "seed": 3,
    }
    return split({**workload, **changes}, MEMORY_BYTES, 1 << 20, vcpus)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.create(MEMORY_BYTES) as made:
        made.fill({"zero": 0.3, "text": 0.4, "random": 0.3}, 1)
        yield made


def expected(memory: np.ndarray, parameters: list[Parameters], positions: list[int]) -> np.ndarray:
    """What memory must hold after so many writes of each vCPU, computed without any process."""
    for part, position in zip(parameters, positions, strict=True):
        workload = Workload(part)
        while workload.position < position:
            count = min(65536, position - workload.position)
            workload.apply(workload.window(memory), workload.sequence(workload.position, count))
    return memory


def advance(vcpu: Vcpu, writes: int) -> None:
    wait_until(lambda: vcpu.stats(soon())["writes"] >= writes, soon(), f"{writes} writes")


# pace


def simulate(pacer: Pacer, until_ns: int) -> int:
    """Run as the vCPU does, on a clock that jumps to the next look. :returns: writes done."""
    now, done = 0, 0
    pacer.restart(0)
    while now <= until_ns:
        due = pacer.due(now)
        pacer.did(due)
        done += due
        now = max(pacer.next_ns(now), now + 1000)  # a look takes 1 us
    return done


@pytest.mark.parametrize("rate", [4096, 1 << 20, RATE, 1 << 30])
def test_the_rate_is_kept(rate: int) -> None:
    pacer = Pacer(Rate(rate))
    wanted = rate // 4096
    assert abs(simulate(pacer, NS_PER_S) - wanted) <= max(1, wanted // 500)
    assert pacer.missed == 0


def test_a_late_vcpu_makes_up_for_a_while_and_counts_the_rest_as_missed() -> None:
    pacer = Pacer(Rate(RATE))
    pacer.restart(0)
    done = 0
    while due := pacer.due(10 * NS_PER_S):
        assert due <= BATCH_WRITES
        pacer.did(due)
        done += due
    assert done == RATE // 4096 // 10  # 100 ms
    assert done + pacer.missed == 10 * RATE // 4096


def test_a_slow_vcpu_sleeps_until_a_write_is_due() -> None:
    pacer = Pacer(Rate(4096))
    pacer.restart(0)
    assert pacer.due(NS_PER_S - 1) == 0
    assert pacer.next_ns(5 * NS_PER_MS) == NS_PER_S
    assert pacer.due(NS_PER_S) == 1


def test_small_steps_write_the_same_as_one(memory: GuestMemory) -> None:
    part = parts()[0]
    wanted = expected(memory.words.copy(), [part], [5000])
    writer = Writer(Workload(part), memory)
    for count in (1, 10, 989, 3000, 1000):
        writer.step(count)
    assert writer.workload.position == 5000
    assert np.array_equal(memory.words, wanted)


# the process


@pytest.mark.parametrize("pattern", ["sequential", "uniform", "hotset"])
def test_pausing_and_going_on_in_new_processes_over_copied_memory_equals_an_uninterrupted_run(
    memory: GuestMemory, pattern: str
) -> None:
    parameters = parts(2, pattern=pattern)
    original = memory.words.copy()
    vcpus = start_all(memory.fd, MEMORY_BYTES, parameters, deadline=soon())
    try:
        for vcpu in vcpus:
            vcpu.run(soon())
        for vcpu in vcpus:
            advance(vcpu, 3000)
        registers = pause_all(vcpus, soon())
        positions = [state["position"] for state in registers]
        assert [vcpu.stats(soon())["writes"] for vcpu in vcpus] == positions
        assert np.array_equal(memory.words, expected(original.copy(), parameters, positions))
        with GuestMemory.create(MEMORY_BYTES) as there:
            there.pages[:] = memory.pages
            skeletons = start_all(there.fd, MEMORY_BYTES, parameters, deadline=soon())
            try:
                with loading(skeletons, registers, soon()):
                    pass
                for skeleton in skeletons:
                    skeleton.run(soon())
                for skeleton, position in zip(skeletons, positions, strict=True):
                    advance(skeleton, position + 3000)
                later = [state["position"] for state in pause_all(skeletons, soon())]
                assert np.array_equal(there.words, expected(original.copy(), parameters, later))
                for skeleton in skeletons:
                    checked = skeleton.check(soon())
                    assert checked["pages"] > 0
                    assert checked["wrong"] == 0
            finally:
                for skeleton in skeletons:
                    skeleton.quit()
    finally:
        for vcpu in vcpus:
            vcpu.quit()
    assert [vcpu.process.returncode for vcpu in vcpus] == [0, 0]


def test_a_lost_page_is_noticed(memory: GuestMemory) -> None:
    vcpu = Vcpu.start(memory.fd, MEMORY_BYTES, parts()[0], deadline=soon())
    try:
        vcpu.run(soon())
        advance(vcpu, 1000)
        registers = vcpu.pause(soon())
        page = int(Workload.restore(registers).sequence(registers["position"] - 1, 1).pages[0])
        memory.words[page] = 0
        found = vcpu.check(soon())
        assert found["wrong"] == 1
        assert f"page {page} should hold write {registers['position'] - 1}" in found["first_wrong"]
    finally:
        vcpu.quit()


def test_commands_are_answered_while_a_check_runs(memory: GuestMemory) -> None:
    vcpu = Vcpu.start(memory.fd, MEMORY_BYTES, parts()[0], deadline=soon())
    try:
        vcpu.run(soon())
        advance(vcpu, 2000)
        check = vcpu.channel.post("check", {"limit": 1 << 22})
        position = vcpu.pause(soon())["position"]
        # refused during the check, or, if that is over, for its registers
        with pytest.raises(GuestError), loading([vcpu], [{}], soon()):
            pass
        assert check
        assert vcpu.stats(soon())["writes"] == position
    finally:
        vcpu.quit()


def test_an_idle_vcpu_writes_nothing(memory: GuestMemory) -> None:
    before = memory.words.copy()
    vcpu = Vcpu.start(memory.fd, MEMORY_BYTES, parts(pattern="idle")[0], deadline=soon())
    try:
        vcpu.run(soon())
        assert vcpu.pause(soon())["position"] == 0
        assert vcpu.check(soon())["pages"] == 0
        assert np.array_equal(memory.words, before)
    finally:
        vcpu.quit()


def test_it_ends_with_its_channel(memory: GuestMemory) -> None:
    vcpu = Vcpu.start(memory.fd, MEMORY_BYTES, parts()[0], deadline=soon())
    vcpu.run(soon())
    vcpu.channel.close()
    assert vcpu.process.wait(30) == 0


def test_refusals_leave_it_usable(memory: GuestMemory) -> None:
    vcpu = Vcpu.start(memory.fd, MEMORY_BYTES, parts()[0], deadline=soon())
    try:
        for command, args in (
            ("dance", {}),
            ("track", {"enable": True, "method": "magic"}),
            ("track", {}),
            ("check", {"limit": "x"}),
            ("init", {}),
            ("load", {"registers": {"position": 1}}),
        ):
            with pytest.raises(GuestError):
                vcpu.channel.call(command, args, deadline=soon())
        vcpu.run(soon())
        registers = vcpu.channel.call("stats", deadline=soon())
        with pytest.raises(GuestError, match="paused"), loading([vcpu], [registers], soon()):
            pass
        assert vcpu.alive
    finally:
        vcpu.quit()
        vcpu.quit()


def test_a_range_outside_of_memory_is_refused_and_no_process_stays(memory: GuestMemory) -> None:
    outside = dataclasses.replace(parts()[0], first_page=MEMORY_BYTES // 4096 - 1)
    with pytest.raises(GuestError, match="outside"):
        Vcpu.start(memory.fd, MEMORY_BYTES, outside, deadline=soon())
    with pytest.raises(GuestError, match="expected"):
        Vcpu.start(memory.fd, MEMORY_BYTES // 2, parts()[0], deadline=soon())


def test_a_killed_vcpu_is_noticed(memory: GuestMemory) -> None:
    vcpu = Vcpu.start(memory.fd, MEMORY_BYTES, parts()[0], deadline=soon())
    vcpu.process.kill()
    vcpu.process.wait(30)
    assert not vcpu.alive
    with pytest.raises(ChannelClosed):
        vcpu.stats(soon())
    vcpu.quit()

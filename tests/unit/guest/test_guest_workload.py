"""Workloads: a sequence that depends on nothing but its parameters and the write's number."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import GuestError
from bench.guest.workload import PATTERNS, Checked, Parameters, Workload, split
from bench.memory.trace import dump_trace

CONFIGURED: dict[str, Any] = {
    "pattern": "hotset",
    "rate_bytes_per_s": 40 << 20,
    "working_set_bytes": 16 * 4096,
    "hot_share": 0.9,
    "write_bytes": 256,
    "seed": 1,
}


def parameters(**changes: Any) -> Parameters:
    base = split(CONFIGURED, 128 * 4096, 28 * 4096, 1)[0]
    return dataclasses.replace(base, **changes)


def memory(pages: int = 128) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 2**63, (pages, 512), dtype=np.uint64)


def result(workload: Workload, words: np.ndarray, limit: int = 1 << 24) -> Checked:
    return list(workload.check(workload.window(words), limit))[-1]


@settings(deadline=None, max_examples=30)
@given(
    pattern=st.sampled_from(["sequential", "uniform", "hotset"]),
    cuts=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    write_bytes=st.sampled_from([16, 24, 256, 4096]),
    seed=st.integers(0, 2**63 - 1),
)
def test_how_the_sequence_is_cut_does_not_matter(pattern: str, cuts: list[int], write_bytes: int, seed: int) -> None:
    part = parameters(pattern=pattern, write_bytes=write_bytes, seed=seed, first_page=20)
    pieces, whole = Workload(part), Workload(part)
    first, second = memory(), memory()
    window = pieces.window(first)
    for cut in cuts:
        registers = json.loads(json.dumps(pieces.export()))
        pieces = Workload.restore(registers)  # as after a migration
        pieces.apply(window, pieces.sequence(pieces.position, cut))
    whole.apply(whole.window(second), whole.sequence(0, sum(cuts)))
    assert np.array_equal(first, second)
    assert pieces.position == sum(cuts)
    untouched = memory()
    assert np.array_equal(first[:20], untouched[:20])
    assert np.array_equal(first[120:], untouched[120:])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_batch_is_the_same_as_its_writes_one_by_one(pattern: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_bytes(dump_trace(3, [(1000, np.array([0, 2]))]))
    told = {"trace": str(trace)} if pattern == "trace" else {}
    workload = Workload(parameters(pattern=pattern, pages=3, working_set_pages=1, **told))
    batch, single = memory(), memory()
    writes = workload.sequence(0, 500)
    workload.apply(workload.window(batch), writes)
    for page, offset, row in zip(writes.pages, writes.offsets, workload.bytes_of(writes.stamps), strict=True):
        single[page, offset : offset + 32] = row
    assert np.array_equal(batch, single)


def test_writes_stay_within_their_page_and_change_exactly_write_bytes() -> None:
    workload = Workload(parameters(write_bytes=4088))
    writes = workload.sequence(0, 5000)
    assert set(writes.offsets.tolist()) == {0, 1}
    assert len(set(writes.stamps.tolist())) == 5000


def test_patterns_go_where_they_say() -> None:
    sequential = Workload(parameters(pattern="sequential", first_page=5)).sequence(98, 5)
    assert sequential.pages.tolist() == [103, 104, 5, 6, 7]
    uniform = np.bincount(Workload(parameters(pattern="uniform")).sequence(0, 100_000).pages, minlength=100)
    assert uniform.min() > 800
    assert uniform.max() < 1200
    hot = Workload(parameters()).sequence(0, 100_000).pages
    assert abs(np.count_nonzero(hot < 16) / 100_000 - (0.9 + 0.1 * 0.16)) < 0.01
    assert hot.max() == 99
    assert not Workload(parameters(pattern="idle")).writes


def test_seeds_and_vcpus_differ() -> None:
    sequences = [Workload(parameters(seed=seed, index=index)).sequence(0, 50) for seed in (1, 2) for index in (0, 1)]
    assert len({tuple(item.pages.tolist()) for item in sequences}) == 4


def test_a_check_of_intact_memory_finds_every_written_page() -> None:
    workload, words = Workload(parameters()), memory()
    assert result(workload, words) == Checked(0, 0, "", True)
    workload.apply(workload.window(words), workload.sequence(0, 3000))
    written = len(np.unique(workload.sequence(0, 3000).pages))
    assert result(workload, words) == Checked(written, 0, "", True)
    assert 0 < result(workload, words, limit=10).pages <= 10


def test_a_lost_write_is_found_and_named() -> None:
    workload, words = Workload(parameters(pattern="sequential")), memory()
    window = workload.window(words)
    workload.apply(window, workload.sequence(0, 100))
    before = words[42].copy()
    workload.apply(window, workload.sequence(100, 100))
    words[42] = before  # as if write 142 had been lost
    writes = workload.sequence(42, 101)
    words[42].reshape(-1)[writes.offsets[100] : writes.offsets[100] + 32] = workload.bytes_of(writes.stamps)[0]
    found = result(workload, words)
    assert (found.pages, found.wrong) == (100, 1)
    assert found.first_wrong == "page 42 should hold write 142 and holds write 42"


def test_a_check_over_many_batches_is_done_in_steps() -> None:
    workload, words = Workload(parameters()), memory()
    count = 200_000
    workload.apply(workload.window(words), workload.sequence(0, count))
    words[99, 100:] = 0
    found = result(workload, words)
    assert (found.pages, found.wrong) == (100, 1)
    assert "holds other bytes" in found.first_wrong


@pytest.mark.parametrize("vcpus", [1, 2, 3, 16])
def test_split_covers_memory_without_overlap_and_keeps_the_rate(vcpus: int) -> None:
    parts = split({**CONFIGURED, "working_set_bytes": 64 << 20}, 1 << 30, 8 << 20, vcpus)
    assert parts[0].first_page == 0
    for before, after in itertools.pairwise(parts):
        assert before.first_page + before.pages == after.first_page
    assert parts[-1].first_page + parts[-1].pages == ((1 << 30) - (8 << 20)) // 4096
    assert sum(part.rate_bytes_per_s for part in parts) == 40 << 20
    assert abs(sum(part.working_set_pages for part in parts) - (64 << 20) // 4096) < vcpus


def test_split_clamps_the_working_set_to_memory_and_keeps_unlimited_unlimited() -> None:
    parts = split({**CONFIGURED, "working_set_bytes": 1 << 40, "rate_bytes_per_s": 0}, 16 * 4096, 4096, 2)
    assert all(part.working_set_pages == part.pages and part.rate_bytes_per_s == 0 for part in parts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "none"}, "idle, sequential, uniform, hotset"),
        ({"write_bytes": 8}, "write_bytes 8"),
        ({"write_bytes": 20}, "multiple of 8"),
        ({"hot_share": 1.5}, "hot_share"),
        ({"seed": -1}, "seed"),
        ({"rate_bytes_per_s": "x"}, "wrong"),
    ],
)
def test_bad_workloads_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GuestError, match=message):
        split({**CONFIGURED, **changes}, 1 << 20, 4096, 1)
    with pytest.raises(GuestError, match="missing or wrong"):
        split({"pattern": "idle"}, 1 << 20, 4096, 1)
    with pytest.raises(GuestError, match="share 1 pages"):
        split(CONFIGURED, 2 * 4096, 4096, 2)


@pytest.mark.parametrize(
    "registers",
    [
        {},
        {"position": -1, "workload": {}},
        {"position": 0, "workload": {}},
        {"position": 0, "workload": {**parameters().to_json(), "pages": "9"}},
        {"position": 0, "workload": {**parameters().to_json(), "more": 1}},
        {"position": 1 << 60, "workload": parameters().to_json()},
    ],
)
def test_bad_registers_are_refused(registers: dict[str, Any]) -> None:
    with pytest.raises(GuestError):
        Workload.restore(registers)

"""A sample of memory says what compressing all of it gives, and what it takes."""

from __future__ import annotations

import numpy as np
import pytest

from bench.memory.image import GuestMemory
from bench.memory.zero import zero_pages
from bench.migration.compressibility import STRETCH_PAGES, STRETCHES, sample_compression
from bench.migration.compression import LEVELS, load_codec
from bench.migration.cost import added


def memory(pages: int, **shares: float) -> np.ndarray:
    with GuestMemory.create(pages * 4096) as made:
        made.fill({"zero": 0.0, "text": 0.0, "random": 0.0, **shares}, 1)
        return made.words.copy()


@pytest.mark.parametrize("name", sorted(LEVELS))
def test_the_sample_is_near_what_all_of_it_gives(name):
    codec = load_codec(name)
    words = memory(4096, text=0.5, random=0.3, zero=0.2)
    found = sample_compression(words, codec)
    full = words[~zero_pages(words)]
    whole = sum(len(codec.compress(full[at : at + 256].data.cast("B"))) for at in range(0, len(full), 256))
    assert found.wire_share == pytest.approx(whole / full.nbytes, abs=0.05)
    assert found.bytes_per_s > 0


def test_random_pages_do_not_grow_and_zero_pages_count_only_when_nobody_looks_for_them():
    codec = load_codec("zstd")
    assert sample_compression(memory(256, random=1.0), codec).wire_share == 1.0
    half = memory(2048, random=0.5, zero=0.5)
    assert sample_compression(half, codec).wire_share == 1.0
    assert sample_compression(half, codec, find_zeros=False).wire_share == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("pages", [0, 1, STRETCH_PAGES, STRETCH_PAGES + 1, STRETCHES * STRETCH_PAGES - 1])
def test_small_memories_are_no_trouble(pages):
    words = np.zeros((pages, 512), dtype=np.uint64)
    found = sample_compression(words, load_codec("lz4"))
    assert (found.wire_share, found.bytes_per_s) == (1.0, 0)
    if pages:
        assert sample_compression(words, load_codec("lz4"), find_zeros=False).wire_share < 0.1


def test_costs_of_several_senders_add_up_and_settings_do_not():
    rounds = {"zero_pages": {"pages": 3, "saved_bytes": 10, "cpu_ns": 1, "time_ns": 1}, "delta": {"cache_bytes": 9}}
    push = {"zero_pages": {"pages": 4, "saved_bytes": 5, "cpu_ns": 1, "time_ns": 2}, "max_bandwidth": {"limit_bps": 7}}
    total = added([rounds, push, push])
    assert total["zero_pages"] == {"pages": 11, "saved_bytes": 20, "cpu_ns": 3, "time_ns": 5}
    assert (total["delta"], total["max_bandwidth"]) == ({"cache_bytes": 9}, {"limit_bps": 7})
    assert rounds["zero_pages"]["pages"] == 3

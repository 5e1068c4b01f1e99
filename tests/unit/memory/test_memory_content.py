"""Guest memory's contents: the stated mix, deterministic, and images by the stated rule."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from bench.errors import GuestError, ScenarioError
from bench.memory import content
from bench.memory.image import PAGE_BYTES, GuestMemory

MIX = {"zero": 0.3, "text": 0.4, "random": 0.3}


def filled(pages: int, shares: dict[str, float], seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    words = np.full((pages, 512), 7, dtype=np.uint64)
    return words, content.fill_pages(words, shares, seed)


@pytest.mark.parametrize("pages", [1, 2, 255, 256, 257, 1000])
def test_the_shares_are_exact_to_a_page(pages: int) -> None:
    words, kinds = filled(pages, MIX)
    for kind, name in enumerate(content.KINDS):
        assert abs(np.count_nonzero(kinds == kind) - pages * MIX[name]) <= 1
    assert np.array_equal(words.any(axis=1), kinds != content.ZERO)


def test_kinds_are_interleaved() -> None:
    _, kinds = filled(4096, MIX)
    for part in np.split(kinds, 8):
        assert set(part.tolist()) == {content.ZERO, content.TEXT, content.RANDOM}


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others() -> None:
    first, _ = filled(600, MIX)
    again, _ = filled(600, MIX)
    other, _ = filled(600, MIX, seed=2)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_text_is_text_and_compresses_like_it_and_random_does_not() -> None:
    words, kinds = filled(1024, {"text": 0.5, "random": 0.5})
    text = words[kinds == content.TEXT].tobytes()
    assert set(text) <= set(b"abcdefghijklmnopqrstuvwxyz \n")
    assert {len(word) for word in text[:PAGE_BYTES].split()} <= set(range(1, 10))
    assert 2.2 < len(text) / len(zlib.compress(text, 6)) < 4
    random = words[kinds == content.RANDOM].tobytes()
    assert len(zlib.compress(random, 1)) > 0.99 * len(random)


@pytest.mark.parametrize("shares", [{"zero": 0.5}, {"zero": 1.2, "text": -0.2}, {"zero": 0.5, "txt": 0.5}])
def test_wrong_shares_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(GuestError, match="sum to 1"):
        filled(4, shares)


def test_an_image_lies_at_the_start_and_the_rest_is_zero(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"\xab" * (PAGE_BYTES + 5))
    with GuestMemory.create(4 * PAGE_BYTES) as memory:
        memory.pages[:] = 9
        assert memory.load_image(image) == PAGE_BYTES + 5
        assert bytes(memory.view) == b"\xab" * (PAGE_BYTES + 5) + bytes(3 * PAGE_BYTES - 5)


@pytest.mark.parametrize("problem", ["missing", "directory", "empty", "too large"])
def test_an_impossible_image_is_named(tmp_path: Path, problem: str) -> None:
    image = tmp_path / "image"
    if problem == "directory":
        image.mkdir()
    elif problem != "missing":
        image.write_bytes(b"" if problem == "empty" else bytes(2 * PAGE_BYTES + 1))
    with pytest.raises(ScenarioError, match=r"guest\.image"):
        content.check_image(image, 2 * PAGE_BYTES)
    with GuestMemory.create(2 * PAGE_BYTES) as memory, pytest.raises(GuestError, match="guest image"):
        memory.load_image(image)


def test_a_fifo_as_image_does_not_hang(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(ScenarioError, match="a regular file"):
        content.check_image(fifo, PAGE_BYTES)

"""Compression: what comes out is what went in; a hostile frame is one WireError and takes no memory."""

import contextlib
import subprocess
import sys
import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import MigrationError, WireError
from bench.migration.compression import Lz4, Zstd, load_codec

CODECS = [Zstd(), Zstd(19), Zstd(1, 2), Lz4(), Lz4(9)]


@given(st.sampled_from(CODECS), st.binary(min_size=1, max_size=3000), st.integers(1, 50))
def test_data_comes_back(codec, data, times):
    data *= times
    packed = codec.compress(memoryview(data))
    assert codec.decompress(bytearray(packed), len(data)) == data


@given(st.sampled_from(CODECS), st.binary(max_size=500))
def test_noise_is_one_wire_error_or_as_long_as_it_must_be(codec, noise):
    with contextlib.suppress(WireError):
        assert len(codec.decompress(bytearray(noise), 4096)) == 4096


@given(st.sampled_from(CODECS), st.integers(0, 10**6))
def test_an_altered_bit_is_one_wire_error_or_as_long_as_it_must_be(codec, bit):
    packed = bytearray(codec.compress(memoryview(b"some text, more text, " * 1000)))
    packed[bit // 8 % len(packed)] ^= 1 << bit % 8
    with contextlib.suppress(WireError):
        assert len(codec.decompress(packed, 22000)) == 22000


BOMB = bytes(64 << 20)


@pytest.mark.parametrize(
    ("codec", "packed"),
    [
        (Zstd(), zstandard.ZstdCompressor().compress(BOMB)),
        (Zstd(), zstandard.ZstdCompressor(write_content_size=False).compress(BOMB)),
        (Zstd(), zstandard.ZstdCompressor().compress(bytes(4096)) + b"more"),
        (Zstd(), zstandard.ZstdCompressor().compress(bytes(4095))),
        (Lz4(), Lz4().compress(memoryview(BOMB))),
        (Lz4(), Lz4().compress(memoryview(bytes(4095)))),
    ],
)
def test_a_bomb_or_another_length_is_one_wire_error_in_bounded_memory(codec, packed):
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            codec.decompress(bytearray(packed), 4096)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "level", "threads"),
    [("gzip", 1, 0), ("zstd", 0, 0), ("zstd", 20, 0), ("zstd", 1, 17), ("lz4", 13, 0), ("lz4", 1, 1)],
)
def test_what_cannot_be_is_refused(name, level, threads):
    with pytest.raises(MigrationError):
        load_codec(name, level, threads)


def test_the_libraries_are_loaded_only_when_asked_for():
    code = (
        "import sys, bench.migration.source, bench.migration.destination\n"
        "from bench.migration.compression import load_codec\n"
        "assert load_codec('none') is None\n"
        "assert not {'zstandard', 'lz4'} & set(sys.modules)\n"
        "load_codec('lz4')\n"
        "assert 'zstandard' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

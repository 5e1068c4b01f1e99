"""Traces of modified pages: what is written is read again, what breaks the format is refused by its line."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import GuestError
from bench.memory import trace
from bench.memory.trace import FORMAT, dump_trace, load_trace

PAGES = 64
HEAD = json.dumps({"format": FORMAT, "page_bytes": 4096, "pages": PAGES})


@given(st.lists(st.sets(st.integers(0, PAGES - 1)), min_size=1, max_size=8))
def test_looks_are_read_as_they_were_written(tmp_path_factory, looks):
    path = tmp_path_factory.mktemp("trace") / "t.jsonl"
    found = [(number * 10**7, np.array(sorted(look), dtype=np.int64)) for number, look in enumerate(looks, 1)]
    path.write_bytes(dump_trace(PAGES, found, "a title"))
    read = load_trace(path)
    assert (read.pages, read.looks, read.duration_ns) == (PAGES, len(looks), len(looks) * 10**7)
    assert read.numbers.tolist() == [page for look in looks for page in sorted(look)]
    assert (np.diff(read.times_ns) >= 0).all()
    for number, look in enumerate(looks):  # each page within its look's time
        inside = (read.times_ns > number * 10**7) & (read.times_ns <= (number + 1) * 10**7)
        assert set(read.numbers[inside].tolist()) == look
    assert load_trace(path, read.digest).digest == read.digest
    part = read.within(10, 20)
    assert part.numbers.tolist() == [page for page in read.numbers.tolist() if 10 <= page < 30]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["x"], "line 1"),
        (['{"format": "other"}'], "line 1: format 'other'"),
        ([HEAD.replace("4096", "65536")], "line 1: page_bytes"),
        ([HEAD.replace("64}", "0}")], "line 1: pages 0"),
        ([HEAD], "line 1: 0 looks"),
        ([HEAD, "[]"], "line 2"),
        ([HEAD, '{"t_us": 0, "runs": []}'], "line 2: t_us 0"),
        ([HEAD, '{"t_us": true, "runs": []}'], "line 2: t_us"),
        ([HEAD, '{"t_us": 2, "runs": []}', '{"t_us": 2, "runs": []}'], "line 3: t_us 2; 3 to"),
        ([HEAD, '{"t_us": 2, "runs": 1}'], "line 2: runs"),
        ([HEAD, '{"t_us": 2, "runs": [[64, 1]]}'], "line 2: run"),
        ([HEAD, '{"t_us": 2, "runs": [[60, 5]]}'], "line 2: run"),
        ([HEAD, '{"t_us": 2, "runs": [[1, 0]]}'], "line 2: run"),
        ([HEAD, '{"t_us": 2, "runs": [[5, 2], [6, 1]]}'], "line 2: run [6, 1]"),
        ([HEAD, '{"t_us": 2, "runs": [[-1, 2]]}'], "line 2: run"),
        ([HEAD, "[" * 100_000], "line 2"),
    ],
)
def test_what_breaks_the_format_is_refused_by_its_line(tmp_path, lines, said):
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(GuestError) as caught:
        load_trace(path)
    assert str(path) in caught.value.message
    assert said in caught.value.message


def test_what_is_too_large_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "t.jsonl"
    path.write_bytes(dump_trace(PAGES, [(1000, np.arange(60))] * 1 + [(2000, np.arange(60))]))
    monkeypatch.setattr(trace, "MAX_WRITES", 100)
    with pytest.raises(GuestError, match="line 3: more than 100 writes"):
        load_trace(path)
    monkeypatch.setattr(trace, "MAX_FILE_BYTES", 10)
    with pytest.raises(GuestError, match="more than"):
        load_trace(path)


def test_another_file_and_no_file_are_refused(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(dump_trace(PAGES, [(1000, np.arange(3))]))
    with pytest.raises(GuestError, match="another file"):
        load_trace(path, "0" * 64)
    with pytest.raises(GuestError, match="No such file"):
        load_trace(tmp_path / "missing")
    with pytest.raises(GuestError, match="no regular file"):
        load_trace(tmp_path)

"""The lease lets exactly one through."""

import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import HostError
from bench.host.lease import RECORD_BYTES, Lease, LeaseState


def test_absent_and_empty_files_belong_to_nobody(tmp_path: Path) -> None:
    lease = Lease(tmp_path / "lease")
    assert lease.read() == LeaseState("", 0)
    (tmp_path / "lease").touch()
    assert lease.read() == LeaseState("", 0)


def test_claim_moves_owner_and_generation(tmp_path: Path) -> None:
    lease = Lease(tmp_path / "lease")
    assert lease.claim("h1", "")
    assert lease.read() == LeaseState("h1", 1)
    assert not lease.claim("h2", "")
    assert not lease.claim("h2", "h1", 0)
    assert lease.read() == LeaseState("h1", 1)
    assert lease.claim("h2", "h1", 1)
    assert lease.read() == LeaseState("h2", 2)
    assert (tmp_path / "lease").stat().st_size == RECORD_BYTES


def test_reclaim_by_the_owner_defeats_a_claim_prepared_before(tmp_path: Path) -> None:
    lease = Lease(tmp_path / "lease")
    lease.claim("h1", "")
    prepared = lease.read()
    assert lease.claim("h1", "h1", prepared.generation)
    assert not lease.claim("h2", prepared.owner, prepared.generation)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(["h1", "h2"]), st.booleans()), max_size=12))
def test_of_two_claims_on_one_generation_one_wins(tmp_path_factory: pytest.TempPathFactory, steps: list) -> None:
    lease = Lease(tmp_path_factory.mktemp("lease") / "lease")
    lease.claim("h1", "")
    for first, _ in steps:
        seen = lease.read()
        second = "h2" if first == "h1" else "h1"
        assert lease.claim(first, seen.owner, seen.generation)
        assert not lease.claim(second, seen.owner, seen.generation)
        assert lease.read() == LeaseState(first, seen.generation + 1)


def _race(path: str, me: str, generations: int, results: "multiprocessing.Queue[list[int]]") -> None:
    lease = Lease(path)
    won = []
    while (state := lease.read()).generation < generations:
        if lease.claim(me, state.owner, state.generation):
            won.append(state.generation)
    results.put(won)


def test_racing_processes_never_win_the_same_generation(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[list[int]] = context.Queue()
    racers = [context.Process(target=_race, args=(str(tmp_path / "lease"), me, 200, results)) for me in ("h1", "h2")]
    for racer in racers:
        racer.start()
    won = [generation for _ in racers for generation in results.get(timeout=30)]
    for racer in racers:
        racer.join(timeout=30)
    assert sorted(won) == sorted(set(won))
    assert set(won) >= set(range(200))


@pytest.mark.parametrize("data", [b"x", b"{}", b"[1]", b'{"owner":1,"generation":1}', b"{" * 500, b" " * 300])
def test_a_file_that_is_no_lease_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "lease"
    path.write_bytes(data)
    with pytest.raises(HostError):
        Lease(path).read()
    with pytest.raises(HostError):
        Lease(path).claim("h1", "")
    assert path.read_bytes() == data


def test_a_bad_owner_and_a_bad_path_are_refused(tmp_path: Path) -> None:
    for owner in ("", "x" * 33, "a\nb", "é"):
        with pytest.raises(HostError):
            Lease(tmp_path / "lease").claim(owner, "")
    with pytest.raises(HostError):
        Lease(tmp_path).claim("h1", "")


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    lease = Lease(tmp_path / "lease")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        lease.claim("h1", lease.read().owner)
    assert len(list(Path("/proc/self/fd").iterdir())) == before

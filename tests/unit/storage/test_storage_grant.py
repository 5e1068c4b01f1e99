"""Who may write: one holder, one generation; and the names and headers that carry it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import StorageError
from bench.storage import nbd_wire as nbd
from bench.storage.grant import Grant, GrantFile


def test_nobody_is_served_before_the_first_raise():
    grant = Grant("g1")
    assert not grant.serves("h1", 1)
    grant.raise_to("h1", 0)
    assert grant.serves("h1", 1)


def test_a_raise_from_another_generation_is_refused_and_changes_nothing():
    grant = Grant("g1", "h1", 4)
    with pytest.raises(StorageError, match="h1 holds them in generation 4"):
        grant.raise_to("h2", 3)
    assert grant == Grant("g1", "h1", 4)


def test_a_copy_is_never_behind_the_disk_that_it_is_made_of():
    grant = Grant("g1", "h2", 1)
    grant.raise_to("h1", 1, at_least=7)
    assert grant.serves("h1", 7)


def test_a_released_grant_serves_nobody_until_it_is_raised():
    grant = Grant("g1", "h1", 4)
    grant.release("h1", 4)
    grant.release("h1", 4)
    assert not grant.serves("h1", 4)
    grant.raise_to("h1", 4)
    assert grant.serves("h1", 5)


def test_only_the_holder_releases():
    grant = Grant("g1", "h1", 4)
    for holder, generation in (("h2", 4), ("h1", 3)):
        with pytest.raises(StorageError):
            grant.release(holder, generation)
    assert grant.serves("h1", 4)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(["raise", "release"]), st.sampled_from(["h1", "h2"]), st.integers(0, 6))))
def test_at_most_one_holder_is_served_and_no_generation_comes_back(orders):
    grant = Grant("g1")
    ended = set()
    for what, holder, generation in orders:
        before = (grant.holder, grant.generation)
        try:
            (grant.raise_to if what == "raise" else grant.release)(holder, generation)
        except StorageError:
            continue
        if (grant.holder, grant.generation) != before:
            ended.add(before)
        served = [(name, number) for name in ("h1", "h2") for number in range(9) if grant.serves(name, number)]
        assert len(served) <= 1
        assert not ended & set(served)


def test_a_grant_survives_in_its_file(tmp_path):
    file = GrantFile(tmp_path / "g1.grant")
    assert file.load("g1") == Grant("g1")
    file.save(Grant("g1", "h2", 7, released=True))
    assert file.load("g1") == Grant("g1", "h2", 7, released=True)
    with pytest.raises(StorageError, match="of guest g1"):
        file.load("g2")
    file.path.write_bytes(b"nonsense")
    with pytest.raises(StorageError, match="no grant"):
        file.load("g1")


def test_an_export_name_says_who_asks():
    name = nbd.ExportName("g1", "vda", "h1", 3, 17)
    assert str(name) == "g1/vda@h1.3.17"
    assert nbd.ExportName.parse(str(name)) == name
    for wrong in ("", "g1/vda", "g1/vda@h1.3", "g1/vda@h1.x.1", "g1/../x@h1.1.1", "a" * 500):
        with pytest.raises(StorageError):
            nbd.ExportName.parse(wrong)


def test_requests_are_bounded():
    head = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, nbd.FUA, nbd.WRITE, 7, 4096, 512)
    request = nbd.Request.unpack(head)
    assert (request.handle, request.payload_bytes, request.answer_bytes) == (7, 512, 0)
    for wrong in (
        nbd.REQUEST.pack(1, 0, nbd.WRITE, 7, 0, 512),
        nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.READ, 7, 0, nbd.MAX_PAYLOAD_BYTES + 1),
    ):
        with pytest.raises(StorageError):
            nbd.Request.unpack(wrong)


def test_the_grant_option_carries_one_object():
    assert nbd.unpack_object(nbd.pack_object({"do": "status"})) == {"do": "status"}
    for wrong in (b"", b"[]", b"{", b"\xff"):
        with pytest.raises(StorageError):
            nbd.unpack_object(wrong)

"""What a socket takes in pieces: every byte once and in order, those of files from their pages, whatever fits."""

import itertools
import os
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.memory.image import GuestMemory
from bench.migration.pieces import Stretch, bytes_of, pieces_of, send_some, views_of

PAGE = 4096
parts_of_any_kind = st.lists(
    st.one_of(st.binary(max_size=300), st.tuples(st.integers(0, 40), st.integers(0, 24))), max_size=6
)


@pytest.fixture(scope="module")
def memory():
    with GuestMemory.create(64 * PAGE) as made:
        made.view[:] = os.urandom(made.size_bytes)
        yield made


def stretch(memory, first, pages):
    return Stretch(memory.fd, first * PAGE, memory.view[first * PAGE : (first + pages) * PAGE])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(parts_of_any_kind, st.lists(st.integers(1, 1 << 17), min_size=1, max_size=20))
def test_every_byte_arrives_once_and_in_order(memory, shapes, reads):
    """The reader takes so much at a time, and nothing is read while the socket takes anything."""
    parts = [shape if isinstance(shape, bytes) else stretch(memory, *shape) for shape in shapes]
    wanted = b"".join(views_of(parts))
    assert bytes_of(parts) == len(wanted)
    pieces, got, take = pieces_of(parts), bytearray(), itertools.cycle(reads)
    left, right = socket.socketpair()
    with left, right:
        while pieces or len(got) < len(wanted):
            try:
                if pieces:
                    before = sum(piece.nbytes for piece in pieces)
                    assert 0 < send_some(left, pieces) == before - sum(piece.nbytes for piece in pieces)
                    continue
            except BlockingIOError:
                pass
            got += right.recv(next(take))
        assert got == wanted
        assert os.get_blocking(left.fileno())


def test_a_stretch_sends_what_its_page_holds_when_it_leaves(memory):
    """Why only pages that are sent again, or whose guest stands still, may leave so."""
    with GuestMemory.create(32 * PAGE) as own:
        own.populate()
        listener = socket.create_server(("127.0.0.1", 0))
        with listener, socket.create_connection(listener.getsockname()) as left:
            right, _ = listener.accept()
            with right:
                send_some(left, pieces_of([stretch(own, 0, 16)]))
                own.view[0] = 7
                assert right.recv(1) == b"\7"


def test_the_error_of_a_lost_peer_leaves_the_socket_as_it_was(memory):
    left, right = socket.socketpair()
    with left:
        right.close()
        with pytest.raises(BrokenPipeError):
            send_some(left, pieces_of([stretch(memory, 0, 4)]))
        assert os.get_blocking(left.fileno())

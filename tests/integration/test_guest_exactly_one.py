"""Exactly one guest runs, whoever dies at whatever moment: dead man's switch and lease."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest_lab import ANNOUNCE, GUEST_IP, Guest, Lab, copy_memory, lab

from bench.clock import NS_PER_MS, NS_PER_S, Deadline, wait_until
from bench.errors import BenchError
from bench.guest.client import GuestControl, Paused
from bench.host.channel import ChannelClosed
from bench.host.kernel import entered_netns
from bench.host.lease import Lease

pytestmark = pytest.mark.root


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Lab]:
    with lab(tmp_path) as made:
        yield made


def answers(network: Lab) -> bool:
    """Whether a new connection gets its echo."""
    try:
        with entered_netns(network.namespaces["c"].pid):
            sock = socket.create_connection((GUEST_IP, 7), 5)
        with sock:
            sock.sendall(b"?")
            return sock.recv(1) == b"?"
    except OSError:
        return False


def state(guest: Guest) -> str:
    """Of a guest as a new connection to it learns it; "gone" when there is none."""
    if guest.process.poll() is not None:
        return "gone"
    try:
        with GuestControl.connect(guest.socket, alive=lambda: guest.process.poll() is None) as control:
            return str(control.stats()["state"])
    except BenchError:
        guest.wait()
        return "gone"


def running(*guests: Guest) -> list[str]:
    return [guest.host for guest in guests if state(guest) == "running"]


def pause_by(guest: Guest) -> tuple[GuestControl, Paused]:
    """Paused by a connection of its own: an engine's."""
    engine = guest.connect()
    paused = engine.pause()
    os.close(paused.fd)
    return engine, paused


def moved_up_to_load(network: Lab, guest: Guest) -> tuple[GuestControl, Paused, Guest]:
    destination = network.skeleton("h2")
    engine = guest.connect()
    paused = engine.pause()
    copy_memory(guest, destination)
    destination.control.load(paused.fd)
    os.close(paused.fd)
    return engine, paused, destination


def test_an_engine_that_dies_during_the_pause_wakes_the_source(network: Lab) -> None:
    guest = network.boot("h1")
    engine, paused = pause_by(guest)
    assert state(guest) == "paused"
    engine.close()
    wait_until(lambda: state(guest) == "running", Deadline(10 * NS_PER_S), "the guest runs again")
    assert answers(network)
    assert Lease(network.lease).read().generation == paused.generation + 1


def test_a_source_that_was_woken_defeats_the_destination(network: Lab) -> None:
    guest = network.boot("h1")
    engine, paused, destination = moved_up_to_load(network, guest)
    engine.close()
    wait_until(lambda: state(guest) == "running", Deadline(10 * NS_PER_S), "the guest runs again")
    taken = destination.control.take(ANNOUNCE, paused.owner, paused.generation)
    assert (taken.taken, taken.owner, taken.resumed_ns) == (False, "h1", 0)
    assert running(guest, destination) == ["h1"]
    assert answers(network)
    destination.control.close()  # its creator: nobody is left who could make it run
    assert destination.wait() == 0


def test_an_engine_that_dies_after_ownership_passed_ends_the_source(network: Lab) -> None:
    guest = network.boot("h1")
    engine, paused, destination = moved_up_to_load(network, guest)
    assert destination.control.take(ANNOUNCE, paused.owner, paused.generation).taken
    assert engine.resume() == (False, "h2")
    assert state(guest) == "paused"
    engine.close()
    assert guest.wait() == 0
    destination.control.close()  # it lives on its own, whoever closes
    assert running(guest, destination) == ["h2"]
    assert answers(network)


def test_quit_ends_the_paused_source_silently(network: Lab) -> None:
    guest = network.boot("h1")
    with entered_netns(network.namespaces["c"].pid):
        sock = socket.create_connection((GUEST_IP, 7), 10)
    with sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        engine, paused, destination = moved_up_to_load(network, guest)
        engine.quit()
        engine.close()
        assert guest.wait() == 0
        assert "vnet-g" not in network.namespaces["h1"].ip("link")
        assert destination.control.take(ANNOUNCE, paused.owner, paused.generation).taken
        sock.sendall(b"y")
        assert sock.recv(1) == b"y"


def test_quit_of_a_running_guest_sends_nothing(network: Lab) -> None:
    """No reset, no FIN: to a client a guest that quits is one whose cable was pulled."""
    guest = network.boot("h1")
    with entered_netns(network.namespaces["c"].pid):
        sock = socket.create_connection((GUEST_IP, 7), 10)
    with sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        guest.control.quit()
        assert guest.wait() == 0
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            sock.recv(1)


def test_a_skeleton_ends_with_its_creator(network: Lab) -> None:
    skeleton = network.skeleton("h2")
    with skeleton.connect() as other:
        assert other.stats()["state"] == "skeleton"
        skeleton.control.close()
        other.wait_gone(Deadline(10 * NS_PER_S))
    assert skeleton.wait() == 0


def test_sigkill_of_the_guest_ends_its_vcpus_and_frees_the_name(network: Lab) -> None:
    guest = network.boot("h1")
    pids = [writer.pid for writer in guest.control.track(True, "soft-dirty")]
    guest.process.kill()
    guest.wait()
    with pytest.raises(ChannelClosed):
        guest.control.stats()
    for pid in pids:
        wait_until(lambda pid=pid: not _alive(pid), Deadline(10 * NS_PER_S), f"vCPU {pid} gone")
    guest.socket.unlink()
    network.lease.unlink()
    assert state(network.boot("h1")) == "running"


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_sigterm_ends_a_guest_in_order(network: Lab) -> None:
    guest = network.boot("h1")
    guest.process.send_signal(signal.SIGTERM)
    assert guest.wait() == 0
    assert guest.event_names()[-1] == "stopped"
    assert not guest.socket.exists()


def test_a_dead_vcpu_ends_the_guest(network: Lab) -> None:
    guest = network.boot("h1")
    vcpu = guest.control.track(True, "soft-dirty")[1]
    os.kill(vcpu.pid, signal.SIGKILL)
    assert guest.wait() == 0
    assert "vCPU 0 ended by itself" in guest.log.read_text()


def test_an_engine_that_dies_leaves_no_tracking_and_an_open_door(network: Lab) -> None:
    guest = network.boot("h1")
    engine = guest.connect()
    memory = engine.memory()
    os.close(memory.fd)
    writers = engine.track(True, "pagemap-scan")
    assert writers == memory.writers
    assert writers[0].pid == guest.process.pid
    assert len({writer.pid for writer in writers}) == 2
    engine.close_door()
    assert not answers_within(network, 0.3)
    engine.close()
    # tracking can be armed anew, which one userfaultfd over the same memory would not allow another
    wait_until(lambda: answers(network), Deadline(10 * NS_PER_S), "the door is open")
    guest.control.track(True, "pagemap-scan")
    guest.control.track(False, "pagemap-scan")


def answers_within(network: Lab, seconds: float) -> bool:
    with entered_netns(network.namespaces["c"].pid), socket.socket() as sock:
        sock.settimeout(seconds)
        return sock.connect_ex((GUEST_IP, 7)) == 0


def test_the_lease_of_another_keeps_a_guest_from_starting(network: Lab) -> None:
    assert Lease(network.lease).claim("h2", "")
    guest = network.spawn("h1")
    guest.control.configure(network.config("h1", False))
    with pytest.raises(BenchError, match="runs at h2"):
        guest.control.start()
    assert state(guest) == "ready"
    assert not answers_within(network, 0.3)


@pytest.mark.parametrize("seed", range(6))
def test_the_worst_instant_leaves_exactly_one(network: Lab, seed: int) -> None:
    """The engines' links are cut within a fraction of a millisecond of the take: the lease decides."""
    guest = network.boot("h1")
    engine, paused, destination = moved_up_to_load(network, guest)
    rng = random.Random(seed)
    delays = rng.random() * 0.002, rng.random() * 0.002
    barrier = threading.Barrier(2)

    def cut() -> None:
        barrier.wait()
        threading.Event().wait(delays[0])
        engine.close()

    thread = threading.Thread(target=cut)
    thread.start()
    barrier.wait()
    threading.Event().wait(delays[1])
    taken = destination.control.take(ANNOUNCE, paused.owner, paused.generation)
    thread.join()
    destination.control.close()
    wait_until(lambda: state(guest) != "paused", Deadline(10 * NS_PER_S), "decided", interval_ns=20 * NS_PER_MS)
    assert running(guest, destination) == (["h2"] if taken.taken else ["h1"])
    assert Lease(network.lease).read().owner == ("h2" if taken.taken else "h1")
    assert answers(network)

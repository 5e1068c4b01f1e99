"""The storage side refuses what belongs to another generation, whoever sends it and however late; images stay whole."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.errors import DiskError, GuestError, StorageError
from bench.guest.disk import Disk, DiskDriver
from bench.guest.loop import Loop
from bench.storage.images import FORMATS, DiskSpec, LoopDevice
from bench.storage.server_client import StorageServer
from bench.timeline import Timeline

pytestmark = pytest.mark.root
MIB = 1 << 20
SIZE = 32 * MIB


class Lab:
    """One storage server on the loopback and the block layers of hypervisors beside it."""

    def __init__(self, stack):
        self.stack = stack
        self.directory = Path(tempfile.mkdtemp(prefix="fence-", dir="/tmp"))
        stack.callback(shutil.rmtree, self.directory)
        self.specs = []

    def serve(self, *kinds, **options):
        self.specs = [DiskSpec("g1", f"vd{'abcd'[at]}", kind, form, SIZE) for at, (kind, form) in enumerate(kinds)]
        self.server = self.make_server(self.specs, **options)
        self.server.start()
        self.stack.callback(self.server.stop)
        return self

    def make_server(self, specs, **options):
        return StorageServer(
            "st1",
            "127.0.0.1",
            0,
            specs,
            directory=self.directory / "images",
            events=self.directory / "storage.jsonl",
            log=self.directory / "storage.log",
            **options,
        )

    def hypervisor(self, holder):
        driver = DiskDriver(Loop(), pytest.fail)
        disks = [Disk(at, spec.name, spec.kind, "st1", SIZE) for at, spec in enumerate(self.specs)]
        self.stack.callback(driver.stop)
        driver.start("g1", holder, {"st1": ("127.0.0.1", self.server.port)}, disks)
        return driver

    def path(self, number=0):
        spec = self.specs[number]
        return self.directory / "images" / f"g1.{spec.name}.{spec.format}"

    def read(self, number=0, offset=0, length=4096):
        """By an independent reader, after everything was stopped."""
        spec = self.specs[number]
        raw = self.directory / "copy.raw"
        subprocess.run(
            ["qemu-img", "convert", "-f", FORMATS[spec.format], "-O", "raw", self.path(number), raw], check=True
        )
        with raw.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def check(self, number=0):
        spec = self.specs[number]
        if spec.format in ("qcow2", "vhdx"):
            subprocess.run(["qemu-img", "check", "-q", "-f", FORMATS[spec.format], self.path(number)], check=True)


def write(driver, offset, data, *, disk=0, fua=False):
    """Begin a write. :returns: a list that holds the error once it is done."""
    slot = driver.slot()
    driver.data(slot)[: len(data)] = data
    errors = []
    driver.write(disk, slot, offset, len(data), lambda error: (errors.append(error), driver.give_back(slot)), fua=fua)
    return errors


def done(driver, seconds=10):
    driver.drain(Deadline(seconds * NS_PER_S))


@pytest.fixture
def lab():
    with contextlib.ExitStack() as stack:
        yield Lab(stack)


@pytest.mark.parametrize("kind", [("shared", "raw"), ("shared", "qcow2"), ("pass-through", "raw")])
def test_a_write_of_the_older_generation_is_refused_by_the_storage_side(lab, kind):
    lab.serve(kind)
    first, second = lab.hypervisor("h1"), lab.hypervisor("h2")
    assert first.command("take")["generations"] == {"st1": 1}
    assert write(first, 0, b"one" * 1000, fua=True) == []
    done(first)
    first.command("flush")
    assert second.command("take", {"expect": {"st1": 1}})["generations"] == {"st1": 2}
    late = write(first, 0, b"late" * 1000)  # the source knows nothing of it
    written = write(second, 4096, b"two" * 1000, fua=True)
    done(second)
    assert written == [0]
    wait_until(lambda: lab.server.stats()["guests"]["g1"]["refused_writes"] >= 1, Deadline(5 * NS_PER_S), "refused")
    assert late == []  # not done, and never told that it were
    with pytest.raises(GuestError, match="h2 holds them in generation 2"):
        first.command("release")
    for driver in (first, second):
        driver.stop()
    lab.server.stop()
    assert lab.read(0, 0, 3000) == b"one" * 1000
    assert lab.read(0, 4096, 3000) == b"two" * 1000
    lab.check()
    names = [event.name for event in Timeline.read(lab.directory / "storage.jsonl")]
    taken = ["storage_fenced", "storage_first_write"]
    assert sorted(names) == sorted([*taken, *taken, "storage_refused"])


def test_only_one_of_two_takes_of_the_same_generation_succeeds(lab):
    lab.serve(("shared", "raw"))
    first, second = lab.hypervisor("h1"), lab.hypervisor("h2")
    first.command("take", {"expect": {"st1": 0}})
    with pytest.raises(GuestError, match="h1 holds them in generation 1"):
        second.command("take", {"expect": {"st1": 0}})


def test_a_source_that_gets_its_disk_back_goes_on_where_it_was(lab):
    lab.serve(("shared", "qcow2"))
    first, second = lab.hypervisor("h1"), lab.hypervisor("h2")
    first.command("take")
    first.command("release")
    waiting = write(first, 0, b"x" * 4096)
    second.command("take", {"expect": {"st1": 1}})
    first.command("retake")
    done(first)
    assert waiting == [0]
    assert lab.server.stats()["guests"]["g1"]["holder"] == "h1"
    assert lab.server.stats()["guests"]["g1"]["generation"] == 3


def test_an_order_waits_for_the_taking_back_that_is_under_way(lab):
    lab.serve(("shared", "raw"))
    first, second = lab.hypervisor("h1"), lab.hypervisor("h2")
    first.command("take")
    first.command("release")
    second.command("take", {"expect": {"st1": 1}})
    os.kill(lab.server.process.pid, signal.SIGSTOP)  # busy with something
    first.command("retake")
    go_on = threading.Timer(0.3, os.kill, (lab.server.process.pid, signal.SIGCONT))
    go_on.start()
    assert first.command("status")["servers"]["st1"]["generation"] >= 2
    go_on.join()
    wait_until(lambda: lab.server.stats()["guests"]["g1"]["holder"] == "h1", Deadline(5 * NS_PER_S), "taken back")


@pytest.mark.parametrize("fua", [True, False])
@pytest.mark.parametrize("victim", ["image server", "storage server"])
def test_requests_survive_the_death_of_the_storage_side(lab, victim, fua):
    """Also those that were acknowledged and never flushed, of which qcow2's server has the tables in its memory."""
    lab.serve(("shared", "qcow2"))
    driver = lab.hypervisor("h1")
    driver.command("take")
    contents = {}
    for number in range(32):
        offset = number * 65536
        contents[offset] = bytes([number + 1]) * 4096
        errors = write(driver, offset, contents[offset], fua=fua)
        if number == 15:
            done(driver)  # acknowledged, all of them
            pid = lab.server.process.pid if victim == "storage server" else lab.server.stats()["pids"]["g1/vda"]
            os.kill(pid, signal.SIGKILL)
            if victim == "storage server":
                wait_until(lab.server.check, Deadline(10 * NS_PER_S), "the server was started again")
        if number % 8 == 7:
            done(driver, 20)
            assert errors == [0]
    driver.stop()
    lab.server.stop()
    image = lab.read(0, 0, SIZE)
    for offset, data in contents.items():
        assert image[offset : offset + 4096] == data
    lab.check()


def test_the_server_keeps_to_its_rate_limit(lab):
    lab.serve(("shared", "raw"), rate_bytes_per_s=16 * MIB)
    driver = lab.hypervisor("h1")
    driver.command("take")
    begin = Deadline(0).at_ns
    for number in range(8):
        write(driver, number * MIB, b"r" * MIB)
    done(driver)
    assert Deadline(0).at_ns - begin >= 0.4 * NS_PER_S


def test_bad_images_are_refused_with_one_message(lab):
    lab.directory.joinpath("images").mkdir()
    image = lab.directory / "a.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "32M"], check=True)

    def refusal(*specs):
        with pytest.raises(StorageError) as caught:
            lab.make_server(specs).start()
        return caught.value.message

    assert "No such file" in refusal(DiskSpec("g1", "vda", "shared", "raw", 0, lab.directory / "none"))
    assert "the image is qcow2, not vhd" in refusal(DiskSpec("g1", "vda", "shared", "vhd", 0, image))
    assert "no block device" in refusal(DiskSpec("g1", "vda", "pass-through", "raw", 0, image))
    assert "no space" in refusal(DiskSpec("g1", "vda", "shared", "raw", 1 << 60))
    twice = [DiskSpec(guest, "vda", "shared", "qcow2", 0, image) for guest in ("g1", "g2")]
    assert "used by g1/vda and by g2/vda" in refusal(*twice)
    holder = subprocess.Popen(["qemu-nbd", "--persistent", f"--socket={lab.directory}/s", "-f", "qcow2", image])
    try:
        wait_until((lab.directory / "s").exists, Deadline(5 * NS_PER_S), "the other guest has the image")
        assert "in use by another guest" in refusal(DiskSpec("g1", "vda", "shared", "qcow2", 0, image))
    finally:
        holder.terminate()
        holder.wait(10)
    assert sorted(path.name for path in (lab.directory / "images").iterdir()) == []


def test_a_device_that_is_named_is_one_server_s_alone(lab):
    backing = lab.directory / "backing.raw"
    with backing.open("wb") as file:
        file.truncate(SIZE)
    device = LoopDevice(backing, lab.directory)
    lab.stack.callback(device.close)
    spec = DiskSpec("g1", "vda", "pass-through", "raw", 0, device.path)
    first, second = (lab.make_server([spec]) for _ in range(2))
    lab.stack.callback(first.stop)
    first.start()
    with pytest.raises(DiskError, match="the device is in use"):
        second.start()
    first.process.send_signal(signal.SIGKILL)  # a service manager starts it again
    wait_until(lambda: not first.process.alive, Deadline(5 * NS_PER_S), "it has died")
    assert first.check()
    first.stop()
    second.start()
    second.stop()


def test_a_local_disk_is_copied_while_the_guest_writes(lab):
    lab.serve(("local", "raw"))
    other = StorageServer(
        "h2",
        "127.0.0.1",
        0,
        lab.specs,
        directory=lab.directory / "there",
        events=lab.directory / "there.jsonl",
        log=lab.directory / "there.log",
    )
    lab.stack.callback(other.stop)
    other.start()
    driver = lab.hypervisor("h1")
    driver.command("take")
    driver.command("wait")
    for number in range(64):
        write(driver, number * 327_680, bytes([number + 1]) * 65536)
        done(driver)
    driver.command("mirror", {"disk": "vda", "server": "h2", "place": ["127.0.0.1", other.port]})
    written = 0

    def close():
        nonlocal written
        written += 1
        write(driver, written * 7919 % 400 * 65536, b"w" * 65536)
        done(driver)
        return driver.command("mirrors")["vda"]["close"]

    wait_until(close, Deadline(30 * NS_PER_S), "the copy is close")
    driver.command("flush")
    driver.command("finish")
    generations = driver.command("release")["generations"]
    second = DiskDriver(Loop(), pytest.fail)
    lab.stack.callback(second.stop)
    second.start("g1", "h2", {"h2": ("127.0.0.1", other.port)}, [Disk(0, "vda", "local", "h2", SIZE)])
    assert second.command("take", {"expect": {"h2": generations["h2"]}})["generations"] == {"h2": 2}
    for each in (driver, second):
        each.stop()
    for server in (lab.server, other):
        server.stop()
    assert (lab.directory / "there" / "g1.vda.raw").read_bytes() == lab.path().read_bytes()

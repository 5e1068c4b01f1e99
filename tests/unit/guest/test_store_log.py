"""The durable store's log: nothing is acknowledged before it is on the disk, and every reply is woken that may go."""

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.guest.disk import Disk
from bench.guest.services.base import Machine
from bench.guest.services.redis import RedisStream, replay
from bench.guest.store import Store
from bench.guest.store_log import StoreLog
from bench.storage import records

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "fakes"))
from fake_disk import FakeDriver

AREA = 1 << 20


def make(driver=None):
    driver = driver or FakeDriver(AREA)
    log = StoreLog(driver, Disk(0, "vda", "shared", "st1", AREA), AREA)
    return driver, log


def on_disk(driver):
    return [record for record, _end in records.decode_records(bytes(driver.disk[records.BLOCK_BYTES :]))]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.one_of(st.binary(max_size=6000), st.none()), max_size=40))
def test_what_is_durable_is_on_the_disk_and_a_log_opens_where_it_ended(steps):
    driver, log = make()
    assert log.open() == []
    for step in steps:
        if step is None:
            if driver.waiting:
                driver.step()
        elif not log.accepts(len(step)):
            log.append(step)
        found = on_disk(driver)
        assert [record.sequence for record in found][: log.durable] == list(range(1, log.durable + 1))
    driver.drain()
    assert log.settled
    _driver, again = make(driver)
    assert again.open() == [record.payload for record in on_disk(driver)]
    assert (again.appended, again.export()) == (log.appended, log.export())


def test_every_write_reaches_the_disk_before_it_is_done():
    driver, log = make()
    log.open()
    log.append(b"x")
    assert all(fua for _offset, _length, fua in driver.writes)


def test_a_full_log_refuses_and_a_failed_one_for_good():
    driver, log = make()
    log.open()
    while not log.accepts(60_000):
        log.append(b"x" * 60_000)
        driver.drain()
    assert "is full: a larger guest.log_size takes more" in log.accepts(60_000)
    assert log.accepts(10) == ""
    driver.fail = 28
    log.append(b"y")
    driver.drain()
    assert "No space left" in log.accepts(1)
    assert log.durable < log.appended


def test_a_log_moves():
    driver, log = make()
    log.open()
    log.append(b"one")
    with pytest.raises(Exception, match="not on the disk yet"):
        log.export()
    driver.drain()
    _driver, there = make(driver)
    there.load(log.export())
    there.append(b"two")
    driver.drain()
    assert [record.payload for record in on_disk(driver)] == [b"one", b"two"]


def test_replies_leave_when_what_they_tell_is_on_the_disk():
    driver, log = make()
    log.open()
    machine = Machine(memoryview(bytearray(1 << 20)), Store.format(memoryview(bytearray(1 << 18))), journal=log)
    log.mark_generation()  # a commit is under way when the first command comes
    streams, woken = [], []
    for number in range(3):
        stream = RedisStream(machine)
        stream.attach(lambda number=number: woken.append((number, stream_output(number))))
        streams.append(stream)

    def stream_output(number):
        data = bytes(streams[number].output(1000))
        streams[number].sent(len(data))
        return data

    streams[0].received(b"SET a 1\r\n")
    streams[1].received(b"GET a\r\n")  # sees what is not on the disk yet
    streams[2].received(b"PING\r\n")
    assert [stream_output(number) for number in range(3)] == [b"", b"", b""]
    driver.step()  # the generation's record
    assert b"".join(data for _number, data in woken) == b""
    driver.step()
    said = {number: data for number, data in woken if data}
    assert said == {0: b"+OK\r\n", 1: b"$1\r\n1\r\n", 2: b"+PONG\r\n"}
    fresh = Machine(memoryview(bytearray(1 << 20)), Store.format(memoryview(bytearray(1 << 18))))
    replay(fresh, [record.payload for record in on_disk(driver) if record.payload.startswith(b"*")])
    check = RedisStream(fresh)
    check.received(b"GET a\r\n")
    assert check.output(100) == b"$1\r\n1\r\n"

"""What a load by stress-ng really was."""

import os

from bench.load_meter import Reading, measured, memory_rate, take_reading

S = 10**9


def test_processor_time_and_bytes_become_rates():
    begin = Reading(0, {"cpu": S, "memory": 0, "io": 0}, 1000)
    end = Reading(2 * S, {"cpu": 2 * S, "memory": S // 2, "io": 0}, 1000 + (8 << 20))
    assert measured(begin, end) == {"cpu_processors": 0.5, "memory_processors": 0.25, "written_bytes_per_s": 4 << 20}


def test_what_did_nothing_is_not_told():
    idle = Reading(0, {"cpu": 0, "memory": 0, "io": 0}, 0)
    assert measured(idle, Reading(S, {"cpu": 0, "memory": 0, "io": 0}, 0)) == {}


def test_a_process_that_is_no_worker_counts_nothing():
    reading = take_reading(os.getpid())
    assert set(reading.cpu_ns.values()) == {0}


def test_the_memory_rate_is_of_reads_and_writes_of_all_workers(tmp_path):
    file = tmp_path / "m.yaml"
    file.write_text(
        "metrics:\n    - stressor: stream\n      memory-read-rate-mb-per-sec: 2.5\n"
        "      memory-write-rate-mb-per-sec: 1.5\n      memory-rate-mflop-per-sec: 370.4\n"
    )
    assert memory_rate(file, 1) == 4 << 20
    assert memory_rate(file, 2) == 8 << 20
    file.write_text("metrics:\n")
    assert memory_rate(file, 1) is None
    assert memory_rate(tmp_path / "missing", 1) is None

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.errors import CommandError, DeadlineError, HostError
from bench.host.channel import ChannelClosed
from bench.host.commands import describe_status, run, spawn, spawn_child
from bench.host.kernel import start_ticks

SHORT = 20 * NS_PER_S


def python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", program, *arguments]


def test_outputs_are_apart() -> None:
    done = run(python("import sys; print('out'); print('err', file=sys.stderr)"), deadline=Deadline(SHORT))
    assert (done.status, done.stdout, done.stderr) == (0, "out\n", "err\n")


def test_input_larger_than_a_pipe_comes_back_whole() -> None:
    data = "0123456789" * 100_000
    assert run(["cat"], input=data, deadline=Deadline(SHORT)).stdout == data


def test_program_that_does_not_read_its_input() -> None:
    assert run(["true"], input=b"x" * 1_000_000, deadline=Deadline(SHORT)).status == 0


def test_failure_names_arguments_status_and_last_lines() -> None:
    program = "import sys\nfor n in range(99): print('line', n, file=sys.stderr)\nsys.exit(3)"
    with pytest.raises(CommandError, match=r"exit status 3: line 94 \| line 95 \| line 96 \| line 97 \| line 98"):
        run(python(program), deadline=Deadline(SHORT))
    assert run(python(program), deadline=Deadline(SHORT), check=False).status == 3


def test_killed_by_a_signal() -> None:
    with pytest.raises(CommandError, match="killed by SIGKILL"):
        run(python("import os; os.kill(os.getpid(), 9)"), deadline=Deadline(SHORT))


def test_missing_program() -> None:
    with pytest.raises(CommandError, match="no-such-program: cannot be started"):
        run(["no-such-program"], deadline=Deadline(SHORT))


def test_deadline_kills_the_whole_group() -> None:
    program = "import os, time\npid = os.fork()\nif pid: print(pid, flush=True)\ntime.sleep(600)"
    with pytest.raises(CommandError, match="not finished within") as caught:
        run(python(program), deadline=Deadline(NS_PER_S))
    grandchild = int(caught.value.message.rpartition(": ")[2])
    wait_until(lambda: start_ticks(grandchild) is None, Deadline(SHORT), "the grandchild is gone")


def test_endless_output_is_cut() -> None:
    with pytest.raises(CommandError, match="printed more than 10000 bytes"):
        run(["yes"], deadline=Deadline(SHORT), max_output_bytes=10_000)


def test_daemon_that_keeps_the_pipe_open_does_not_hang() -> None:
    program = "import os, time\npid = os.fork()\nif pid: os.write(1, b'%d' % pid); os._exit(0)\ntime.sleep(600)"
    done = run(python(program), deadline=Deadline(SHORT))
    os.kill(int(done.stdout), signal.SIGKILL)


def test_closed_output_is_not_the_end() -> None:
    program = "import os, time; os.close(1); os.close(2); time.sleep(0.2); os._exit(4)"
    assert run(python(program), deadline=Deadline(SHORT), check=False).status == 4


def test_spawned_process_is_known_and_stops(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = spawn(python("import time; print('up', flush=True); time.sleep(600)"), log=log, name="sleeper")
    assert process.alive
    assert process.start_ticks == start_ticks(process.pid)
    assert os.getsid(process.pid) == process.pid
    with pytest.raises(DeadlineError, match="sleeper"):
        process.wait(Deadline(0))
    assert process.stop() == -signal.SIGTERM
    assert process.stop() == -signal.SIGTERM
    assert not process.alive
    with pytest.raises(HostError, match="killed by SIGTERM"):
        process.require_alive()


def test_stop_kills_what_ignores_sigterm(tmp_path: Path) -> None:
    program = (
        "import os, signal, time\nsignal.signal(15, signal.SIG_IGN)\nos.fork()\nos.write(1, b'%d\\n' % os.getpid())\n"
        "time.sleep(600)"
    )
    log = tmp_path / "log"
    process = spawn(python(program), log=log)
    wait_until(lambda: log.read_text().count("\n") == 2, Deadline(SHORT), "both are up")
    assert process.stop(Deadline(0)) == -signal.SIGKILL
    pids = list(map(int, log.read_text().split()))
    wait_until(lambda: not any(map(start_ticks, pids)), Deadline(SHORT), "both are gone")


def test_log_takes_both_outputs_and_is_quoted(tmp_path: Path) -> None:
    program = "import sys; print('one'); print('two', file=sys.stderr); sys.exit(1)"
    process = spawn(python(program), log=tmp_path / "log", name="teller")
    assert process.wait(Deadline(SHORT)) == 1
    with pytest.raises(HostError, match=r"teller ended: exit status 1: .*two"):
        process.require_alive()


def test_child_with_a_channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "answering.py").write_text(
        "import argparse\nfrom bench.host.channel import Channel\n"
        "p = argparse.ArgumentParser(); p.add_argument('--channel-fd', type=int); p.add_argument('--word')\n"
        "a = p.parse_args(); c = Channel.from_fd(a.channel_fd, 'runner'); m = c.receive()\n"
        "c.send_reply(m['id'], {'word': a.word, **m['args']})\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process, channel = spawn_child("answering", peer="answerer", extra_args=["--word", "hi"], log=tmp_path / "log")
    try:
        assert channel.call("any", {"n": 1}, deadline=Deadline(SHORT)) == {"word": "hi", "n": 1}
        with pytest.raises(ChannelClosed):
            channel.receive(Deadline(SHORT))
        assert process.wait(Deadline(SHORT)) == 0
    finally:
        process.stop()
        channel.close()


def test_statuses_read_well() -> None:
    assert describe_status(2) == "exit status 2"
    assert describe_status(-9) == "killed by SIGKILL"
    assert describe_status(-99) == "killed by signal 99"

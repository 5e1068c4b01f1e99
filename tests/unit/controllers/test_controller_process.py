"""The controller process: it starts under both frameworks, reports, and says why it ended. No switch, no root."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from bench.clock import NS_PER_S, Deadline
from bench.errors import ControllerError
from bench.host.commands import describe_status
from bench.host.controller import ControllerProcess
from bench.timeline import Timeline

FRAMEWORKS = ("ryu", "os-ken")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_it_listens_on_a_free_port_and_refuses_a_taken_one(framework: str, tmp_path: Path) -> None:
    with ControllerProcess(framework, "learning", tmp_path / "one", 0) as controller:
        controller.check()
        assert controller.port > 0
        with pytest.raises(ControllerError, match=f"cannot listen on 127.0.0.1 port {controller.port}"):
            ControllerProcess(framework, "learning", tmp_path / "two", controller.port).start()
        process = controller.process
        assert process is not None
    assert not process.alive
    names = [event.name for event in Timeline.read(controller.events)]
    assert names == ["started", "listening"]


def test_no_switch_in_time_is_said(tmp_path: Path) -> None:
    with ControllerProcess("os-ken", "learning", tmp_path, 0) as controller:
        controller.wait_connected(0, Deadline(0))
        with pytest.raises(ControllerError, match=r"2 switches connected: not within 0 s \(connected: none\)"):
            controller.wait_connected(2, Deadline(0))


def test_a_controller_that_dies_is_said(tmp_path: Path) -> None:
    with ControllerProcess("os-ken", "learning", tmp_path, 0) as controller:
        assert controller.pid is not None
        os.kill(controller.pid, signal.SIGKILL)
        with pytest.raises(ControllerError, match="killed by SIGKILL"):
            controller.wait_connected(1, Deadline(10 * NS_PER_S))
        with pytest.raises(ControllerError, match="killed by SIGKILL"):
            controller.check()
    controller.stop()
    with pytest.raises(ControllerError, match="not running"):
        controller.check()


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("code", "message"),
    [("import no_such_module", "No module named 'no_such_module'"), ("raise SystemExit(0)", "SystemExit: 0")],
)
def test_a_broken_app_is_said(framework: str, code: str, message: str, tmp_path: Path) -> None:
    app = tmp_path / "my app.py"
    app.write_text(code)
    with pytest.raises(ControllerError, match=message):
        ControllerProcess(framework, str(app), tmp_path, 0).start()


def test_a_missing_app_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        ControllerError, match=r"nowhere\.py: neither learning, stale, proactive, activation nor a readable \.py file"
    ):
        ControllerProcess("ryu", "nowhere.py", tmp_path, 0).start()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_it_ends_with_its_channel(framework: str, tmp_path: Path) -> None:
    controller = ControllerProcess(framework, "learning", tmp_path, 0)
    controller.start()
    process, channel = controller.process, controller._channel
    assert process is not None
    assert channel is not None
    try:
        channel.close()
        assert describe_status(process.wait(Deadline(10 * NS_PER_S))) == "exit status 0"
    finally:
        process.stop()

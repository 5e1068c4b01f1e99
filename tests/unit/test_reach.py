"""Whether hosts reach each other, without namespaces: every host is this machine."""

from __future__ import annotations

import contextlib
import os

import pytest

from bench import reach
from bench.clock import NS_PER_MS
from bench.errors import ControllerError

HERE, NOWHERE = "127.0.0.1", "255.255.255.255"  # TCP to a broadcast address fails without a packet


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The namespaces that were entered, by their processes; no root is needed."""
    pids: list[int] = []

    def enter(pid: int) -> contextlib.AbstractContextManager[None]:
        pids.append(pid)
        return contextlib.nullcontext()

    monkeypatch.setattr(reach, "entered_netns", enter)
    return pids


def test_a_refusal_is_an_answer(entered: list[int]) -> None:
    reach.wait_reachable({"h1": (1, HERE), "h2": (2, HERE)}, [("h1", "h2"), ("h2", "h1")], "a controller")
    assert entered == [1, 2]


def test_what_fails_at_once_is_tried_again_after_a_while(entered: list[int]) -> None:
    hosts = {"h1": (os.getpid(), HERE), "h2": (os.getpid(), NOWHERE)}
    tries = 4
    with pytest.raises(ControllerError, match="h1 does not reach h2") as caught:
        reach.wait_reachable(hosts, [("h1", "h2")], "faucet", wait_ns=(tries - 1) * reach.AGAIN_NS)
    assert "Network is unreachable, tried for 150 ms" in str(caught.value)
    assert 2 <= len(entered) <= tries
    assert reach.AGAIN_NS >= 10 * NS_PER_MS

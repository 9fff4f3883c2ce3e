"""Children that no signal reaches."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from agent import children
from agent.children import Child
from agent.loop import Loop
from tests.support.turns import until


def test_a_child_that_outlives_sigkill_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook in a broken driver: the engines behind it must still be told of a revert."""
    loop, ended = Loop(), list[int]()
    monkeypatch.setattr(children, "REAP_AFTER_S", 0.0)
    child = Child(
        loop,
        [sys.executable, "-c", "import time; time.sleep(60)"],
        name="hook",
        on_line=lambda _: None,
        on_end=ended.append,
        environment=dict(os.environ),
        timeout_s=0.01,
    )
    with monkeypatch.context() as stuck:
        stuck.setattr(child, "kill", lambda: None)
        until(loop, lambda: ended)
    child.kill()
    child.wait(10.0)
    assert ended == [-signal.SIGKILL]

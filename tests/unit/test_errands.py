"""Questions to a program on trial: an answer counts as long as the trial lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from agent import channel
from agent.channel import PROTOCOL, Greeting
from agent.guardian import errands
from agent.guardian.errands import Errands
from agent.guardian.programs import OWN, Program
from agent.loop import Loop
from tests.support.turns import Clock, settle

GREETING = channel.encode(Greeting(protocol=PROTOCOL, version="0.2.0"))


class Stagers:
    """Processes that were started to ask a stager; they say what the test has them say."""

    def __init__(self) -> None:
        self.heard: list[Callable[[bytes], None]] = []

    def __call__(self, _loop: Loop, _command: object, **options: Any) -> Stagers:
        self.heard.append(options["on_line"])
        return self

    def kill(self) -> None:
        """It is gone."""


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop(Clock())
    yield made
    made.close()


@pytest.fixture
def stagers(monkeypatch: pytest.MonkeyPatch) -> Stagers:
    made = Stagers()
    monkeypatch.setattr(errands, "Child", made)
    return made


@pytest.mark.parametrize("said", [GREETING, b"not a word\n"], ids=["good", "failed"])
def test_an_answer_that_comes_with_the_trials_end_is_nobodys(
    said: bytes, loop: Loop, stagers: Stagers
) -> None:
    """The verdict is due in the turn in which it is heard: nothing falls, no process starts."""
    asking = Errands(
        loop, Path("config.toml"), starter=cast("Any", None), answer_s=5, look=cast("Any", None)
    )
    asking.begin(Program(slot="b", folder=None, version="0.2.0"), OWN)
    loop.call_in(0, asking.end)
    (hear,) = stagers.heard
    hear(said)
    settle(loop, cast("Clock", loop.clock), 1)
    assert len(stagers.heard) == 1
    assert asking.samples == ()

"""The fetcher's side of the link: started when there is a server, restarted, held, ended."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import children
from agent.channel import Due, Looking, ServerNews, Situation
from agent.fetcher import tether as tethers
from agent.fetcher.tether import Tether
from agent.layout import Layout
from agent.loop import Loop
from tests.support.turns import until

SITUATION = Situation(host_id="h", region="global", platform="linux", agent_version="1")
NEWS = ServerNews(url="https://s", agent_id="a", connected=True, since=1.0)
ECHO = 'import sys; [print(\'{"type":"due","trigger":"x"}\', flush=True) for _ in sys.stdin]'


class Tethered:
    """A tether whose links are lines of Python."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.places = Layout(folder / "state", folder / "run", folder / "root.json")
        self.places.server.mkdir(parents=True)
        self.places.enrolment.write_bytes(b"{}")
        self.loop = Loop()
        self.said: list[Any] = []
        self.code = ECHO
        self.tether = Tether(self.loop, folder / "config.toml", self.places, say=self.said.append)
        plain = children.Child

        def child(loop: Loop, _command: list[str], **options: Any) -> children.Child:
            return plain(loop, [sys.executable, "-S", "-E", "-c", self.code], **options)

        monkeypatch.setattr(tethers, "Child", child)

    def close(self) -> None:
        if child := self.tether._child:
            child.kill()
            child.wait(5)
        self.loop.close()


@pytest.fixture
def tethered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tethered]:
    monkeypatch.setattr(tethers, "RESTART_MIN_S", 0.02)
    made = Tethered(tmp_path, monkeypatch)
    yield made
    made.close()


def test_there_is_a_link_once_there_is_a_server_and_something_to_tell(tethered: Tethered) -> None:
    tethered.tether.tell(Looking())
    assert tethered.tether.pid is None
    tethered.places.enrolment.unlink()
    tethered.tether.tell(SITUATION)
    assert tethered.tether.pid is None
    tethered.places.enrolment.write_bytes(b"{}")
    tethered.tether.tell(SITUATION)
    tethered.tether.tell(Looking())
    until(tethered.loop, lambda: len(tethered.said) == 2)
    assert tethered.said[0] == Due(trigger="x")


def test_a_link_that_dies_is_started_again_and_its_end_is_shown(tethered: Tethered) -> None:
    line = '{"type":"server_news","url":"https://s","agent_id":"a","connected":true,"since":1.0}'
    tethered.code = f"print({line!r}); raise SystemExit(7)"
    tethered.tether.tell(SITUATION)
    until(tethered.loop, lambda: tethered.said.count(NEWS) >= 3)
    shown = [item for item in tethered.said if item.code == "link_ended"]
    assert not shown[0].connected
    assert "status 7" in shown[0].problem


def test_a_link_without_an_enrolment_is_left_alone(tethered: Tethered) -> None:
    tethered.code = f"raise SystemExit({tethers.NOT_ENROLLED})"
    tethered.tether.tell(SITUATION)
    until(tethered.loop, lambda: tethered.tether.pid is None)
    assert tethered.tether._timer is None


@pytest.mark.parametrize("line", ["garbage", '{"type":"handed_over"}', '{"type":"due"}'])
def test_a_link_that_isnt_understood_is_killed(tethered: Tethered, line: str) -> None:
    tethered.code = f"import time; print({line!r}, flush=True); time.sleep(60)"
    tethered.tether.tell(SITUATION)
    first = tethered.tether.pid
    until(tethered.loop, lambda: tethered.tether.pid not in {None, first})
    assert tethered.said == []


def test_while_it_is_held_there_is_none(tethered: Tethered) -> None:
    tethered.tether.tell(SITUATION)
    gone: list[int | None] = []
    tethered.tether.hold(lambda: gone.append(tethered.tether.pid))
    until(tethered.loop, lambda: gone)
    assert gone == [None]
    tethered.tether.tell(SITUATION)
    assert tethered.tether.pid is None
    tethered.tether.let_go()
    assert tethered.tether.pid is not None
    tethered.places.enrolment.unlink()
    tethered.tether.hold(lambda: gone.append(None))
    until(tethered.loop, lambda: len(gone) == 2)
    tethered.tether.let_go()
    assert tethered.tether.pid is None
    assert tethered.said[-1] == ServerNews(url="")

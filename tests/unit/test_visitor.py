"""A fetcher that is a service of its own: who may come, what it becomes, how it ends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import host
from agent.channel import Reach, Reached, Scheduled, Word
from agent.errors import ConfigError
from agent.guardian import fetching
from agent.guardian.fetching import FetcherLink
from agent.guardian.visitor import Door
from agent.loop import Loop
from tests.support.turns import until

ROOT = Path(__file__).parents[2]
GREET = 'print(\'{"type":"scheduled","next_check":5}\', flush=True)\n'
ANSWER = (
    GREET + "import sys\nfor line in sys.stdin:\n"
    ' print(\'{"type":"reached","ok":true,"detail":""}\', flush=True)\n'
)


class House:
    """A link with a door, and what has been said through it."""

    def __init__(self, folder: Path, loop: Loop, code: str) -> None:
        self.loop = loop
        self.words: list[Word] = []
        self.lost: list[str] = []
        self.config = folder / "config.toml"
        self.config.write_text(
            'state_dir = "s"\nruntime_dir = "."\nsources = [{ url = "file:///nowhere" }]\n'
        )
        self.path = folder / "fetcher.sock"
        self.link = FetcherLink(
            loop,
            self.config,
            user=None,
            on_word=self.words.append,
            on_lost=self.lost.append,
            silence_max_s=0.3,
            door=Door(loop, self.path, user=None),
        )
        self.link._command = [sys.executable, "-S", "-E", "-c", code]
        self.link.start()

    def visit(self) -> subprocess.Popen[bytes]:
        """The service, started as its unit would."""
        command = [sys.executable, "-m", "agent.fetcher.connect", "--config", str(self.config)]
        return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def ended(house: House, process: subprocess.Popen[bytes]) -> int:
    until(house.loop, lambda: process.poll() is not None)
    return process.wait()


def test_a_visitor_becomes_the_program_that_the_guardian_names(tmp_path: Path, loop: Loop) -> None:
    house = House(tmp_path, loop, ANSWER)
    visitor = house.visit()
    until(loop, lambda: bool(house.words))
    assert house.words == [Scheduled(next_check=5)]
    assert house.link.pid == visitor.pid
    assert house.link.order(Reach())
    until(loop, lambda: len(house.words) == 2)
    assert house.words[1] == Reached(ok=True, detail="")
    house.link.stop()
    assert ended(house, visitor) == 0


def test_a_visitor_gets_what_the_guardian_adds_to_its_environment(
    tmp_path: Path, loop: Loop
) -> None:
    asked = "import os; n = int(os.environ['HOLDFAST_TEST'])\n"
    asked += 'print(\'{"type":"scheduled","next_check":%d}\' % n, flush=True)\n'
    house = House(tmp_path, loop, asked)
    house.link._extra = {"HOLDFAST_TEST": "7"}
    visitor = house.visit()
    until(loop, lambda: bool(house.words))
    assert house.words == [Scheduled(next_check=7)]
    ended(house, visitor)
    house.link.stop()


def test_a_large_order_arrives_whole(tmp_path: Path, loop: Loop) -> None:
    count = GREET + "import sys\nn = len(sys.stdin.readline())\n"
    count += 'print(\'{"type":"scheduled","next_check":%d}\' % n, flush=True)\nsys.stdin.read()'
    house = House(tmp_path, loop, count)
    visitor = house.visit()
    until(loop, lambda: bool(house.words))
    assert house.link._child is not None
    house.link._child.send(b"x" * 3_000_000 + b"\n")
    until(loop, lambda: len(house.words) == 2)
    assert house.words[1] == Scheduled(next_check=3_000_001)
    house.link.stop()
    ended(house, visitor)


def test_a_visitor_that_hangs_over_its_work_is_killed(tmp_path: Path, loop: Loop) -> None:
    house = House(tmp_path, loop, GREET + "import time; time.sleep(600)")
    visitor = house.visit()
    until(loop, lambda: bool(house.words))
    house.link.order(Reach())
    assert ended(house, visitor) == -9
    until(loop, lambda: bool(house.lost))
    assert house.link.pid is None
    house.link.stop()


def test_one_that_comes_again_takes_the_place_of_the_one_before(tmp_path: Path, loop: Loop) -> None:
    house = House(tmp_path, loop, GREET + "import time; time.sleep(600)")
    first = house.visit()
    until(loop, lambda: house.link.pid == first.pid)
    second = house.visit()
    until(loop, lambda: house.link.pid == second.pid)
    assert ended(house, first) == -9
    until(loop, lambda: len(house.words) >= 1)
    assert house.lost == []
    second.kill()
    second.wait()
    until(loop, lambda: len(house.lost) == 1)
    house.link.stop()


def test_a_flood_without_a_line_is_ended(tmp_path: Path, loop: Loop) -> None:
    house = House(tmp_path, loop, "import sys\nwhile True: sys.stdout.write('x' * 65536)")
    visitor = house.visit()
    assert ended(house, visitor) != 0
    until(loop, lambda: bool(house.lost))
    house.link.stop()


def test_a_stranger_is_turned_away(
    tmp_path: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(tmp_path, loop, GREET)
    real = host.peer_of

    def somebody_else(connection: socket.socket) -> host.Peer:
        peer = real(connection)
        peer.uid = 4321
        return peer

    monkeypatch.setattr("agent.guardian.visitor.host.peer_of", somebody_else)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(house.path))
        loop.turn(1)
        assert client.recv(10) == b""
    assert house.link.pid is None
    house.link.stop()


def test_a_fetcher_that_never_comes_is_missed(
    tmp_path: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "ABSENCE_MAX_S", 0.05)
    house = House(tmp_path, loop, GREET)
    until(loop, lambda: bool(house.lost))
    assert "no fetcher has connected" in house.lost[0]
    assert not house.link.order(Reach())
    house.link.stop()


def test_the_door_is_the_fetchers_group_and_nobody_elses(tmp_path: Path, loop: Loop) -> None:
    door = Door(loop, tmp_path / "d.sock", user=host.User(uid=os.geteuid(), gid=os.getegid()))
    door.open()
    assert (tmp_path / "d.sock").stat().st_mode & 0o777 == 0o660
    door.close()


def test_a_path_too_long_for_a_socket_is_said(tmp_path: Path, loop: Loop) -> None:
    with pytest.raises(ConfigError, match="too long"):
        Door(loop, tmp_path / ("x" * 120), user=None)


def test_a_service_without_a_guardian_says_so_and_ends(tmp_path: Path, capfd: Any) -> None:
    from agent.fetcher import connect

    config = tmp_path / "config.toml"
    config.write_text('state_dir = "s"\nruntime_dir = "."\nsources = [{ url = "file:///x" }]\n')
    assert connect.main(["--config", str(config)]) == connect.EXIT_ALONE
    assert connect.main(["--config", str(tmp_path / "none.toml")]) == connect.EXIT_CONFIG
    assert "fetcher.sock" in capfd.readouterr().err


@pytest.mark.parametrize(
    "said",
    [b"", b"[]\n", b"{}\n", b'{"command": [1]}\n', b"no json\n", b'{"command": ["/bin/true"]}'],
)
def test_nothing_is_become_of_what_isnt_a_program(said: bytes) -> None:
    from agent.fetcher import connect

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ValueError, match=r"guardian|Expecting"):
            connect._heard(ours)

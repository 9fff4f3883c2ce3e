"""Fetchers that are a service of their own: who may come, what they become, how they end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import host
from agent.errors import ConfigError
from agent.fetcher import connect
from agent.guardian import starter, visitor
from agent.guardian.visitor import WAITING_MAX, Door, Visitor
from agent.loop import Loop
from tests.support.turns import until

ROOT = Path(__file__).parents[2]
ECHO = "import sys\nfor line in sys.stdin:\n print('heard', len(line), flush=True)\n"
SLEEP = "import time\nprint('here', flush=True)\ntime.sleep(600)"


class Asked:
    """One program that the guardian has asked for."""

    def __init__(self, house: House, code: str, **variables: str) -> None:
        house.asked.append(self)
        self.lines: list[bytes] = []
        self.ends: list[int] = []
        self.visitor: Visitor = house.door.start(
            [sys.executable, "-S", "-E", "-c", code],
            name="test",
            variables=variables,
            on_line=self.lines.append,
            on_end=self.ends.append,
        )


class House:
    """A door, and the service that comes to it."""

    def __init__(self, folder: Path, loop: Loop) -> None:
        self.loop = loop
        self.config = folder / "config.toml"
        self.config.write_text(
            'state_dir = "s"\nruntime_dir = "."\nsources = [{ url = "file:///nowhere" }]\n'
        )
        self.path = folder / "fetcher.sock"
        self.door = Door(loop, self.path, user=None)
        self.asked: list[Asked] = []
        self.service: subprocess.Popen[bytes] | None = None

    def run_service(
        self, *, opened: bool = True, alone_s: float = connect.ALONE_S
    ) -> subprocess.Popen[bytes]:
        """As its unit does; the guardian is there, or not yet."""
        if opened:
            self.door.open()
        code = f"from agent.fetcher import connect as c; c.ALONE_S = {alone_s}; c.RETRY_S = 0.1\n"
        code += f"raise SystemExit(c.main(['--config', {str(self.config)!r}]))"
        command = [sys.executable, "-c", code]
        self.service = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
        return self.service

    def close(self) -> None:
        """The guardian goes; the service notices."""
        self.door.close()
        for asked in self.asked:
            asked.visitor.terminate()
        if self.service:
            self.service.kill()
            self.service.wait()


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def house(tmp_path: Path, loop: Loop) -> Iterator[House]:
    made = House(tmp_path, loop)
    yield made
    made.close()


def test_what_comes_becomes_the_program_that_the_guardian_names(house: House) -> None:
    asked = Asked(house, ECHO)
    asked.visitor.send(b"asked before it came\n")
    service = house.run_service()
    until(house.loop, lambda: bool(asked.lines))
    assert asked.lines == [b"heard 21"]
    assert asked.visitor.pid not in {None, service.pid}
    asked.visitor.terminate()
    assert asked.ends == [0]


def test_it_gets_what_the_guardian_adds_to_its_environment(house: House) -> None:
    code = "import os; print(os.environ['HOLDFAST_TEST'], flush=True)"
    asked = Asked(house, code, HOLDFAST_TEST="7")
    house.run_service()
    until(house.loop, lambda: bool(asked.ends))
    assert asked.lines == [b"7"]


def test_as_many_run_beside_each_other_as_are_asked_for(house: House) -> None:
    house.run_service()
    several = [Asked(house, ECHO) for _ in range(3)]
    for asked in several:
        asked.visitor.send(b"x\n")
    until(house.loop, lambda: all(asked.lines for asked in several))
    assert len({asked.visitor.pid for asked in several}) == 3


def test_a_large_order_arrives_whole(house: House) -> None:
    house.run_service()
    asked = Asked(house, ECHO)
    asked.visitor.send(b"x" * 3_000_000 + b"\n")
    until(house.loop, lambda: bool(asked.lines))
    assert asked.lines == [b"heard 3000001"]


def test_one_that_never_reads_is_ended_before_it_costs_memory(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visitor, "UNREAD_BYTES_MAX", 1 << 20)
    house.run_service()
    asked = Asked(house, SLEEP)
    until(house.loop, lambda: bool(asked.lines))
    for _ in range(40):
        asked.visitor.send(b"x" * (64 << 10))
        assert len(asked.visitor._outbox) <= 1 << 20
    until(house.loop, lambda: bool(asked.ends))


def test_one_that_is_killed_ends_and_the_next_takes_its_place(house: House) -> None:
    service = house.run_service()
    first = Asked(house, SLEEP)
    until(house.loop, lambda: bool(first.lines))
    first.visitor.kill()
    until(house.loop, lambda: bool(first.ends))
    second = Asked(house, SLEEP)
    until(house.loop, lambda: bool(second.lines))
    assert second.visitor.pid != first.visitor.pid
    assert service.poll() is None


def test_one_that_was_given_up_before_it_came_is_not_run(house: House) -> None:
    given_up, wanted = Asked(house, SLEEP), Asked(house, ECHO)
    given_up.visitor.kill()
    until(house.loop, lambda: bool(given_up.ends))
    wanted.visitor.send(b"x\n")
    house.run_service()
    until(house.loop, lambda: bool(wanted.lines))
    assert (given_up.lines, given_up.visitor.pid) == ([], None)


def test_the_service_ends_with_what_it_ran_once_the_guardian_is_gone(house: House) -> None:
    service = house.run_service()
    asked = Asked(house, SLEEP)
    until(house.loop, lambda: bool(asked.lines))
    until(house.loop, lambda: bool(house.door._waiting))
    house.door.close()
    assert service.wait(20) == connect.EXIT_ALONE
    until(house.loop, lambda: bool(asked.ends))


def test_a_service_that_comes_first_waits_for_the_guardian(house: House) -> None:
    service = house.run_service(opened=False)
    with pytest.raises(subprocess.TimeoutExpired):
        service.wait(1)
    house.door.open()
    asked = Asked(house, SLEEP)
    until(house.loop, lambda: bool(asked.lines))


def test_a_service_that_finds_nobody_ends_so_that_it_reads_its_configuration_anew(
    house: House,
) -> None:
    assert house.run_service(opened=False, alone_s=1.0).wait(20) == connect.EXIT_ALONE


def test_a_flood_without_a_line_is_ended(house: House) -> None:
    asked = Asked(house, "import sys\nwhile True: sys.stdout.write('x' * 65536)")
    house.run_service()
    until(house.loop, lambda: bool(asked.ends))
    assert asked.lines == []


def test_a_stranger_is_turned_away(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.door.open()
    real = host.peer_of

    def somebody_else(connection: socket.socket) -> host.Peer:
        peer = real(connection)
        peer.uid = 4321
        return peer

    monkeypatch.setattr("agent.guardian.visitor.host.peer_of", somebody_else)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(house.path))
        house.loop.turn(1)
        assert client.recv(10) == b""


def test_a_crowd_at_the_door_is_bounded(house: House) -> None:
    house.door.open()
    clients = [socket.socket(socket.AF_UNIX) for _ in range(WAITING_MAX + 3)]
    for client in clients:
        client.connect(str(house.path))
        house.loop.turn(1)
    assert len(house.door._waiting) == WAITING_MAX
    clients[-1].sendall(b"I am not awaited")
    until(house.loop, lambda: len(house.door._waiting) == WAITING_MAX - 1)
    for client in clients:
        client.close()
    until(house.loop, lambda: not house.door._waiting)


def test_a_service_that_never_comes_is_missed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starter, "ABSENCE_MAX_S", 0.05)
    asked = Asked(house, ECHO)
    until(house.loop, lambda: bool(asked.ends))
    assert asked.ends == [starter.ABSENT]


def test_those_that_were_missed_are_forgotten(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service is away for days, and one is awaited each time."""
    monkeypatch.setattr(starter, "ABSENCE_MAX_S", 0.0)
    for _ in range(20):
        asked = Asked(house, ECHO)
        until(house.loop, lambda asked=asked: bool(asked.ends))  # type: ignore[misc]
    assert len(house.door._awaited) == 1


def test_the_door_is_the_fetchers_group_and_nobody_elses(tmp_path: Path, loop: Loop) -> None:
    door = Door(loop, tmp_path / "d.sock", user=host.User(uid=os.geteuid(), gid=os.getegid()))
    door.open()
    assert (tmp_path / "d.sock").stat().st_mode & 0o777 == 0o660
    door.close()


def test_a_path_too_long_for_a_socket_is_said(tmp_path: Path, loop: Loop) -> None:
    with pytest.raises(ConfigError, match="a socket's path may have 107"):
        Door(loop, tmp_path / ("x" * 120), user=None).open()

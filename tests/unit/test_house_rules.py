"""What tests/conftest.py promises every other test."""

from __future__ import annotations

import fcntl
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import markers
from tests.support.loopback import LeftTheMachineError

# Waits until its parent lets go of the room, then says so and holds it too.
_ANOTHER_WORKER = """
import sys
from pathlib import Path
from tests.support import markers
room, door = map(Path, sys.argv[1:3])
with markers.turn(room, door, alone=sys.argv[3] == "alone"):
    print("in", flush=True)
    sys.stdin.read()
"""


def worker(room: Path, door: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _ANOTHER_WORKER, str(room), str(door), how],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    room, door = tmp_path / "room", tmp_path / "door"
    room.touch()
    door.touch()
    return room, door


def test_connecting_beyond_this_machine_raises() -> None:
    with socket.socket() as connecting, pytest.raises(LeftTheMachineError, match=r"192\.0\.2\.1"):
        connecting.connect(("192.0.2.1", 80))


def test_connecting_to_loopback_works() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()


def test_ordinary_tests_share_the_room(files: tuple[Path, Path]) -> None:
    with markers.turn(*files, alone=False), worker(*files, "shared") as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        other.communicate("")


def test_nobody_enters_beside_a_test_that_is_alone(files: tuple[Path, Path]) -> None:
    with worker(*files, "alone") as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with files[0].open("rb") as room, pytest.raises(BlockingIOError):
            fcntl.flock(room, fcntl.LOCK_SH | fcntl.LOCK_NB)
        other.communicate("")
    with markers.turn(*files, alone=True):
        pass


def is_free(room: Path) -> bool:
    with room.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_between_two_tests_that_are_alone_nobody_enters(files: tuple[Path, Path]) -> None:
    turns = markers.Turns(*files)
    with turns.take(alone=True, next_alone=True):
        assert not is_free(files[0])
    assert not is_free(files[0])
    with turns.take(alone=True, next_alone=False):
        assert not is_free(files[0])
    assert is_free(files[0])
    with turns.take(alone=False, next_alone=True):
        assert is_free(files[0])
    assert is_free(files[0])


def test_a_system_test_names_the_commands_it_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert markers.missing(["sh", "no-such-command"]) == "needs no-such-command"
    assert markers.missing(["sh"]) == ""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert markers.missing(["sh"]) == "needs root"

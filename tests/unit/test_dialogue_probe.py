"""Probes that must be answered, not only accepted."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import config
from agent.config import Probe
from agent.errors import ConfigError
from agent.guardian.commands import Commands
from agent.guardian.probes import ask


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "engine.sock"))
        server.listen(4)
        yield server


def _answer(probe: Probe, seconds: float = 5.0) -> tuple[bool, str] | None:
    question = ask(probe, Commands({}))
    deadline = time.monotonic() + seconds
    try:
        while (answer := question.poll()) is None and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        question.close()
    return answer


def _path(listener: socket.socket) -> str:
    return str(listener.getsockname())


def _serve(listener: socket.socket, said: bytes, heard: list[bytes]) -> threading.Thread:
    def run() -> None:
        connection, _ = listener.accept()
        with connection:
            heard.append(connection.recv(100))
            connection.sendall(said)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_an_engine_that_answers_as_expected_is_healthy(listener: socket.socket) -> None:
    heard: list[bytes] = []
    thread = _serve(listener, b"PONG\n", heard)
    answer = _answer(Probe(unix=_path(listener), send="PING\n", expect="PONG"))
    thread.join()
    assert answer == (True, "answered as expected")
    assert heard == [b"PING\n"]


def test_another_answer_is_a_failure_that_quotes_it(listener: socket.socket) -> None:
    thread = _serve(listener, b"ERROR\n", [])
    answer = _answer(Probe(unix=_path(listener), send="PING\n", expect="PONG"))
    thread.join()
    assert answer is not None
    assert not answer[0]
    assert "ERROR" in answer[1]


def test_a_hung_engine_whose_kernel_accepts_for_it_never_answers(listener: socket.socket) -> None:
    assert _answer(Probe(unix=_path(listener)), 0.5) == (True, "connected")
    assert _answer(Probe(unix=_path(listener), expect=""), 0.5) is None


@pytest.mark.parametrize(
    ("probe", "told"),
    [
        ('http = "http://127.0.0.1/", expect = "x"', "tcp or unix"),
        ('unix = "/run/x", send = "PING"', "expect"),
    ],
)
def test_a_dialogue_that_can_not_be_held_is_refused(probe: str, told: str) -> None:
    text = f'sources=[{{url="http://h"}}]\n[[watch]]\nname="e"\nprocess="e"\nprobe={{{probe}}}\n'
    with pytest.raises(ConfigError, match=told):
        config.parse(text.encode(), where="c.toml")

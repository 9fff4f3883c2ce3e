"""The fetcher's process: its schedule, its orders, its workers, and its end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent import __version__, channel, children, config
from agent.channel import (
    Begin,
    Checked,
    CycleFailed,
    Due,
    Host,
    LineBuffer,
    Reach,
    Reached,
    Scheduled,
    Word,
)
from agent.fetcher import main as program
from agent.fetcher.main import Fetcher
from agent.loop import Loop
from tests.support.turns import until

HOST = Host(
    host_id="h",
    region="global",
    platform="linux",
    agent_version="0.1.0",
    active_release=None,
    installed={},
    quarantine=(),
)
ANSWER = '{"type":"reached","ok":true,"detail":"d"}'


def begin(attempt: str) -> Begin:
    return Begin(attempt=attempt, trigger="t", download=True, host=HOST)


class Running:
    """A fetcher in this process whose pipes a test holds; workers are lines of Python."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, check: str = "") -> None:
        path = folder / "config.toml"
        path.write_text(f'sources = [{{ url = "file:///x" }}]\n[check]\njitter_s = 0\n{check}')
        orders, self.orders = os.pipe()
        self.words, words = os.pipe()
        self.stdin = os.fdopen(orders, "r")
        self.stdout = os.fdopen(words, "w")
        pipes = SimpleNamespace(stdin=self.stdin, stdout=self.stdout, executable=sys.executable)
        monkeypatch.setattr(program, "sys", pipes)  # pytest owns the real ones
        os.set_blocking(self.words, False)
        self.loop = Loop()
        self.fetcher = Fetcher(config.load(path), path, self.loop)
        self.heard: list[Any] = []
        self._buffer = LineBuffer()
        plain = children.Child

        def child(loop: Loop, _command: list[str], **options: Any) -> children.Child:
            return plain(loop, [sys.executable, "-S", "-E", "-c", self.worker], **options)

        monkeypatch.setattr(program, "Child", child)
        self.worker = f"import sys; sys.stdin.read(); print('{ANSWER}')"

    def send(self, order: Any) -> None:
        os.write(self.orders, channel.encode(order))

    def hear(self) -> list[Any]:
        try:
            data = os.read(self.words, 1 << 16)
        except BlockingIOError:
            return self.heard
        self.heard += [channel.decode(line, Word) for line in self._buffer.feed(data)]
        return self.heard

    def until(self, count: int) -> list[Any]:
        until(self.loop, lambda: len(self.hear()) >= count)
        return self.heard

    def close(self) -> None:
        if worker := self.fetcher._worker:
            worker.kill()
            worker.wait(5)
        self.loop.close()
        self.stdin.close()
        self.stdout.close()
        for descriptor in (self.orders, self.words):
            if descriptor >= 0:
                os.close(descriptor)


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    made = Running(tmp_path, monkeypatch)
    yield made
    made.close()


def test_it_says_when_it_checks_next_and_that_a_check_is_due(running: Running) -> None:
    running.fetcher.start()
    scheduled, due = running.until(2)
    assert isinstance(scheduled, Scheduled)
    assert due == Due(trigger="start")


def test_one_that_goes_on_for_another_makes_no_check_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Running(tmp_path, monkeypatch, check="interval_s = 1\n")
    made.fetcher._resumed = True
    made.fetcher.start()
    found = made.until(3)
    assert [type(item) for item in found[:3]] == [Scheduled, Scheduled, Due]
    assert found[0].version == __version__
    assert found[2] == Due(trigger="schedule")
    made.close()


def test_without_a_check_at_start_the_schedule_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Running(tmp_path, monkeypatch, check="at_start = false\ninterval_s = 1\n")
    made.fetcher.start()
    found = made.until(3)
    assert [type(item) for item in found[:3]] == [Scheduled, Scheduled, Due]
    assert found[2] == Due(trigger="schedule")
    made.close()


def test_orders_are_carried_out_one_after_the_other(running: Running) -> None:
    running.worker = (
        "import json, sys; order = json.loads(sys.stdin.read()); print(json.dumps("
        "dict(type='checked', attempt=order['attempt'], source='s', decision='d', sentence='s')))"
    )
    running.fetcher.start()
    for number in range(3):
        running.send(begin(str(number)))
    found = [item for item in running.until(5) if isinstance(item, Checked)]
    assert [item.attempt for item in found] == ["0", "1", "2"]


def test_a_worker_that_dies_is_answered_for(running: Running) -> None:
    running.worker = "raise SystemExit(7)"
    running.fetcher.start()
    running.send(begin("1"))
    running.send(Reach())
    answers = [item for item in running.until(4) if isinstance(item, CycleFailed | Reached)]
    failed, reached = answers
    assert (failed.attempt, failed.code) == ("1", "fetch_cycle_died")
    assert "status 7" in failed.sentence
    assert not reached.ok


def test_the_end_of_the_channel_ends_the_fetcher_and_its_worker(running: Running) -> None:
    running.worker = "import time; time.sleep(60)"
    running.fetcher.start()
    running.send(begin("1"))
    until(running.loop, lambda: running.fetcher._worker)
    worker = running.fetcher._worker
    assert worker is not None
    os.close(running.orders)
    running.orders = -1
    until(running.loop, lambda: running.loop._stopped)
    worker.wait(5)
    assert worker._process.returncode == -9


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(running: Running, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(program.log, "configure", lambda *_args, **_kwargs: None)
    path = str(running.fetcher._config_path)
    return program.main(["--config", path])


@pytest.mark.usefixtures("handlers")
def test_a_guardian_that_is_gone_is_a_quiet_end(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.close(running.orders)
    running.orders = -1
    assert run(running, monkeypatch) == 0


@pytest.mark.usefixtures("handlers")
def test_a_guardian_that_isnt_understood_is_an_error(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.write(running.orders, b"garbage\n")
    assert run(running, monkeypatch) == 1


@pytest.mark.usefixtures("handlers")
def test_nobody_listening_is_a_quiet_end(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_word: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(program, "_say", gone)
    assert run(running, monkeypatch) == 0

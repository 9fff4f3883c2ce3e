"""What the service manager says and hears: its watchdog, and the name of the boot."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import host
from agent.guardian import main
from agent.loop import Loop


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """systemd's end of NOTIFY_SOCKET."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(path)
        listening.settimeout(0)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        yield listening


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [
        ("30000000", "", 30.0),
        ("30000000", "own", 30.0),
        ("30000000", "1", None),
        ("0", "", None),
        ("soon", "", None),
        ("", "", None),
    ],
)
def test_the_interval_is_what_systemd_says_to_this_process(
    usec: str, pid: str, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert host.watchdog_s() == expected


def test_each_half_interval_a_turn_of_the_loop_says_that_it_turns(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    now = [0.0]
    loop = Loop(clock=lambda: now[0])
    main._beat(loop)
    for at, beats in ((0.0, 1), (29.0, 0), (30.0, 1), (59.0, 0), (200.0, 1)):
        now[0] = at
        loop.turn(0)
        for _ in range(beats):
            assert manager.recv(100) == b"WATCHDOG=1"
        with pytest.raises(BlockingIOError):
            manager.recv(100)
    loop.close()


def test_without_a_watchdog_nothing_wakes_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    loop = Loop()
    main._beat(loop)
    assert loop._patience(None) is None
    loop.close()


def test_the_boot_is_the_one_that_the_units_name(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = host.boot_id()
    monkeypatch.setenv("HOLDFAST_BOOT_ID", "27d4c8c8ed854affad1365ef0177a15f")
    assert host.boot_id() == "27d4c8c8-ed85-4aff-ad13-65ef0177a15f"
    monkeypatch.setenv("HOLDFAST_BOOT_ID", "%b")
    assert host.boot_id() == kernels
    monkeypatch.setenv("HOLDFAST_BOOT_ID", kernels.replace("-", ""))
    assert host.boot_id() == kernels

"""Hooks that reload or restart a unit, with a systemctl that is a few lines of shell."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import config
from agent.config import Hook
from agent.errors import ActivationError, ConfigError
from agent.guardian.activation import ActivationRun
from agent.loop import Loop
from tests.support.turns import until


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


class Systemd:
    """What `systemctl show` says, what the others do, and what was asked."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls_file = folder / "calls"
        self._path = folder / "bin" / "systemctl"
        self._path.parent.mkdir()
        monkeypatch.setenv("PATH", f"{self._path.parent}:{os.environ['PATH']}")
        self.answers()

    def answers(self, said: str = "LoadState=loaded\nActiveState=active", code: str = ":") -> None:
        self._path.write_text(
            f"#!/bin/sh\nif [ $1 = show ]; then printf '%s' '{said}'; exit 0; fi\n"
            f'echo "$@" >> {self.calls_file}\n{code}\n'
        )
        self._path.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    return Systemd(tmp_path, monkeypatch)


def run(loop: Loop, hook: Hook, *, reason: str = "flip") -> str:
    ends: list[ActivationError | None] = []
    ActivationRun(
        loop, (hook,), current=Path("/c"), release="r173", reason=reason, done=ends.append
    )
    until(loop, lambda: ends)
    return str(ends[0] or "")


RELOAD = Hook(name="scanner", reload_unit="x.service")
RESTART = Hook(name="scanner", restart_unit="x.service")


def test_a_running_unit_is_reloaded_or_restarted(loop: Loop, systemd: Systemd) -> None:
    assert run(loop, RELOAD) == ""
    assert run(loop, RESTART) == ""
    assert systemd.calls == ["reload -- x.service", "restart -- x.service"]


def test_a_stopped_unit_takes_the_release_when_it_starts(loop: Loop, systemd: Systemd) -> None:
    systemd.answers("LoadState=loaded\nActiveState=inactive")
    assert run(loop, RESTART) == ""
    assert systemd.calls == []


def test_a_unit_that_the_release_killed_is_brought_back(loop: Loop, systemd: Systemd) -> None:
    systemd.answers("LoadState=loaded\nActiveState=failed")
    assert run(loop, RELOAD, reason="revert") == ""
    assert systemd.calls == ["reset-failed -- x.service", "restart -- x.service"]


def test_a_unit_that_refuses_fails_the_activation_with_its_words(
    loop: Loop, systemd: Systemd
) -> None:
    systemd.answers(code="echo Job for x.service failed >&2; exit 1")
    error = run(loop, RELOAD)
    assert "'scanner' ended with status 1: Job for x.service failed" in error


def test_a_job_that_hangs_is_given_up_in_the_hooks_time(loop: Loop, systemd: Systemd) -> None:
    systemd.answers(code="exec sleep 60")
    slow = Hook(name="scanner", restart_unit="x.service", timeout_s=0.5)
    assert "didn't end within 0.5 s" in run(loop, slow)


def test_a_unit_that_doesnt_exist_is_named(loop: Loop, systemd: Systemd) -> None:
    systemd.answers("LoadState=not-found\nActiveState=inactive")
    assert "names x.service, and there is no such unit" in run(loop, RELOAD)


def test_without_systemd_the_hook_fails(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "needs systemd" in run(loop, RESTART)


@pytest.mark.parametrize(
    "keys",
    [
        'reload_unit = "x.service"\nrestart_unit = "x.service"',
        'reload_unit = "x.service"\ncommand = ["true"]',
        'reload_unit = "x"',
        'restart_unit = "--force"',
    ],
)
def test_a_hook_is_one_thing_with_a_whole_name(keys: str) -> None:
    text = f'sources = [{{ url = "file:///x" }}]\n[[activation]]\nname = "a"\n{keys}\n'
    with pytest.raises(ConfigError, match=r"activation|unit"):
        config.parse(text.encode(), where="test")

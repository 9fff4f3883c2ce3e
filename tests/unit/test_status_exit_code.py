"""What monitoring is told when the guardian answers with a refusal, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.ctl import client
from agent.ctl import main as ctl
from agent.ctl.client import AskError


@pytest.fixture
def configuration(tmp_path: Path) -> str:
    path = tmp_path / "config.toml"
    path.write_text('state_dir = "state"\nsources = [{ url = "file:///feed" }]\n')
    return str(path)


def test_a_status_that_may_not_be_asked_is_unknown_and_not_late(
    monkeypatch: pytest.MonkeyPatch, configuration: str
) -> None:
    def refused(*_arguments: object) -> None:
        raise AskError("status.sock may not be used by this account", reachable=True)

    monkeypatch.setattr(client, "status", refused)
    assert ctl.main(["status", "--config", configuration]) == 3


def test_a_machine_that_nobody_watches_is_at_risk(configuration: str) -> None:
    assert ctl.main(["status", "--config", configuration]) == 2


def test_a_command_that_the_guardian_refuses_has_failed(
    monkeypatch: pytest.MonkeyPatch, configuration: str
) -> None:
    def refused(*_arguments: object) -> None:
        raise AskError("an attempt is in progress", reachable=True)

    monkeypatch.setattr(client, "ask", refused)
    assert ctl.main(["update", "--config", configuration]) == 1

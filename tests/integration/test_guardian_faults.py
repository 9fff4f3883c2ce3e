"""A guardian that fails says so, ends, is started again, and goes back in the end (ADR 0009)."""

from __future__ import annotations

from pathlib import Path

from tests.support import machines
from tests.support.endpoint import Endpoint
from tests.support.sabotage import plant

BROKEN = """
from agent.guardian import trial

def judge(*_):
    raise RuntimeError("a figure nobody foresaw")

trial.verdict.judge = judge
"""
EXIT_FAULT = 70


def exit_status(endpoint: Endpoint) -> int:
    assert endpoint.process is not None
    return endpoint.process.wait(30)


def test_a_release_under_which_the_guardian_fails_each_time_is_reverted(tmp_path: Path) -> None:
    vendor = machines.vendor(tmp_path, upto="r173")
    endpoint = machines.installed(tmp_path, vendor.url)
    plant(endpoint, "guardian", BROKEN)
    with machines.up(endpoint):
        endpoint.ctl("update", "--no-wait", check=True)
        assert exit_status(endpoint) == EXIT_FAULT
    for _ in range(2):  # what the service manager does
        endpoint.start()
        assert exit_status(endpoint) == EXIT_FAULT
    assert "a figure nobody foresaw" in endpoint.log.read_text()
    with machines.up(endpoint):
        status = endpoint.wait_for_release("r171")
        assert status["state"]["reason"] == "guardian_faults"
        assert [item["reason"] for item in status["quarantine"]] == ["guardian_faults"]
        assert endpoint.slot_problems() == []

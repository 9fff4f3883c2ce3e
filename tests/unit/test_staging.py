"""The guardian's link to its stagers: one after the other."""

from __future__ import annotations

import sys
from pathlib import Path

from agent.channel import Result, Verified, VerifyJob
from agent.guardian.staging import StagerLink
from agent.loop import Loop
from tests.support.turns import until

ANSWER = """
import os, sys, time
job = sys.stdin.readline()
lock = sys.argv[1]
os.mkdir(lock)  # fails while another one is at work
time.sleep(0.05)
os.rmdir(lock)
print('{"type":"verified","reports":[]}')
"""


def link(loop: Loop, folder: Path, code: str = ANSWER) -> StagerLink:
    made = StagerLink(loop, folder / "config.toml")
    made._command = [sys.executable, "-c", code, str(folder / "lock")]
    return made


def test_a_job_waits_for_the_one_before_it_and_each_gets_its_own_result(tmp_path: Path) -> None:
    loop, results = Loop(), list[tuple[int, Result | None]]()
    stager = link(loop, tmp_path)
    for number in range(3):
        stager.run(VerifyJob(slots={}), lambda result, n=number: results.append((n, result)))
    until(loop, lambda: len(results) == 3)
    assert results == [(number, Verified(reports=())) for number in range(3)]
    assert not stager.busy


def test_a_stager_that_dies_holds_up_nobody_behind_it(tmp_path: Path) -> None:
    loop, results = Loop(), list[Result | None]()
    stager = link(loop, tmp_path, "raise SystemExit(3)")
    stager.run(VerifyJob(slots={}), results.append)
    stager.run(VerifyJob(slots={}), results.append)
    until(loop, lambda: len(results) == 2)
    assert results == [None, None]


def test_a_stager_that_cannot_be_started_holds_up_nobody_behind_it(tmp_path: Path) -> None:
    loop, results = Loop(), list[Result | None]()
    stager = link(loop, tmp_path)
    stager._command = [str(tmp_path / "no-python")]
    stager.run(VerifyJob(slots={}), results.append)
    stager.run(VerifyJob(slots={}), results.append)
    until(loop, lambda: len(results) == 2)
    assert results == [None, None]

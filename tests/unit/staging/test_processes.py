"""The fetcher's worker and the stager as processes: one line in, one line out."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

import msgspec
import pytest

from agent import channel, worker
from agent.channel import (
    Reach,
    Staged,
    StageJob,
    StageRefused,
)
from agent.fetcher import cycle
from agent.slots import seal as seals
from agent.stager import main as stager
from feed import durable
from feed.rollout import Decision, QuarantinedSet
from tests.support.staging import Machine

SAY = cycle.say


class _Pipe(io.TextIOWrapper):
    """Standard input or output whose bytes a test gives or reads."""

    def __init__(self, data: bytes = b"") -> None:
        self.bytes = io.BytesIO(data)
        super().__init__(self.bytes)


def serve(monkeypatch: pytest.MonkeyPatch, program: Any, machine: Machine, message: Any) -> bytes:
    out = _Pipe()
    monkeypatch.setattr(sys, "stdin", _Pipe(channel.encode(message)))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(worker.host, "end_with_parent", lambda _parent: True)
    monkeypatch.setattr(worker.host, "drop_network", lambda: True)
    monkeypatch.setattr(worker.log, "configure", lambda *_args, **_kwargs: None)
    monkeypatch.setattr(cycle, "say", SAY)
    assert program.main(["--config", str(machine.config)]) == 0
    return out.bytes.getvalue()


def test_the_worker_and_the_stager_answer_one_line_each(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = serve(monkeypatch, cycle, machine, Reach())
    assert channel.decode(line, channel.Word).ok
    order = machine.order()
    with monkeypatch.context() as patched:
        line = serve(patched, cycle, machine, order)
    job = StageJob(attempt="1", host=machine.host(), active=None, slot="a", reuse=False)
    with monkeypatch.context() as patched:
        line = serve(patched, stager, machine, job)
    assert isinstance(channel.decode(line, channel.Result), Staged)


def test_the_stager_decides_for_itself_whether_the_release_is_offered(machine: Machine) -> None:
    word = machine.fetch()
    staged = machine.stage()
    assert isinstance(staged, Staged)
    held = QuarantinedSet(changed=staged.changed, release=word.release, until=4e9)
    job = StageJob(
        attempt="1",
        host=msgspec.structs.replace(machine.host(), quarantine=(held,)),
        active=None,
        slot="a",
        reuse=False,
    )
    result = stager.serve(job, machine.places)
    assert isinstance(result, StageRefused)
    assert result.code == Decision.QUARANTINED


@pytest.mark.parametrize(("number", "code"), [(28, "disk_full"), (5, "io_error")])
def test_a_disk_that_fails_seals_nothing(machine: Machine, number: int, code: str) -> None:
    machine.fetch()

    def fail(point: str, where: str) -> None:
        if point == "fsync" and where.endswith(".dat"):
            raise OSError(number, os.strerror(number), where)

    durable.set_fault_hook(fail)
    try:
        result = machine.stage()
    finally:
        durable.set_fault_hook(None)
    assert isinstance(result, StageRefused)
    assert result.code == code
    assert "the active slot is untouched" in result.sentence
    assert not (machine.places.slot("a") / seals.SEAL_NAME).exists()

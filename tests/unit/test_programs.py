"""Which copy of the agent's program runs, and what it gets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import agent
from agent import channel
from agent.channel import Greet, Greeting, SlotReport, StageJob, VerifyJob
from agent.guardian import lifecycle, programs, quarantine
from agent.guardian.programs import OWN, Program, Programs
from agent.guardian.staging import StagerLink
from agent.loop import Loop
from agent.slots.record import Attempt, Held
from agent.stager import main as stager_main
from feed.manifest import Activation, HealthPolicy
from tests.support.rooms import Rooms, build, handed_over
from tests.support.turns import until
from tests.unit.test_fetching import HOST

CONFIGURED = '[program]\ncomponent = "agent-program"\n'
HELD = Held(reason="cpu_pinned", sentence="s", since=1.0)


@pytest.fixture
def rooms(tmp_path: Path) -> Rooms:
    made = Rooms(tmp_path, CONFIGURED)
    made.install("a", "r171", {"virus-pattern": "171", "agent-program": "0.2.0"})
    mark(made, "a")
    return made


def mark(rooms: Rooms, slot: str, text: str = '{"protocol": 2}') -> Path:
    path = rooms.layout.slot(slot) / "agent-program" / programs.MARKER
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def damaged(rooms: Rooms, component: str) -> None:
    held = rooms.ledger.record.slots["a"]
    rooms.ledger.reports["a"] = SlotReport(
        slot="a", known=held.seal, content=held, problems=("altered",), damaged=(component,)
    )


def test_the_protocol_is_the_same_in_both_places() -> None:
    marker = json.loads(Path(agent.__file__).with_name("program.json").read_text())
    assert marker == {"protocol": channel.PROTOCOL}


def test_the_active_slots_program_runs(rooms: Rooms) -> None:
    found = Programs(rooms.ledger).current()
    assert (found.slot, found.version) == ("a", "0.2.0")
    assert found.folder == rooms.layout.slot("a") / "agent-program"


def test_without_the_setting_or_the_component_the_packages_own_runs(tmp_path: Path) -> None:
    unset = Rooms(tmp_path / "unset")
    unset.install("a", "r171", {"agent-program": "0.2.0"})
    without = Rooms(tmp_path / "without", CONFIGURED)
    without.install("a", "r171", {"virus-pattern": "171"})
    empty = Rooms(tmp_path / "empty", CONFIGURED)
    for made in (unset, without, empty):
        chosen = Programs(made.ledger)
        assert chosen.current() == OWN
        assert chosen.problem == ""


@pytest.mark.parametrize(
    ("marker", "told"),
    [
        ('{"protocol": 1}', "speaks protocol 1, this guardian 2"),
        ("{", "no usable agent/program.json"),
        ('{"protocol": "1"}', "no usable agent/program.json"),
    ],
)
def test_a_program_of_another_protocol_doesnt_run(rooms: Rooms, marker: str, told: str) -> None:
    mark(rooms, "a", marker)
    chosen = Programs(rooms.ledger)
    assert chosen.current() == OWN
    assert told in chosen.problem


def test_a_damaged_program_doesnt_run_and_a_damaged_pattern_is_no_reason(rooms: Rooms) -> None:
    chosen = Programs(rooms.ledger)
    damaged(rooms, "virus-pattern")
    assert chosen.current().slot == "a"
    damaged(rooms, "agent-program")
    assert chosen.current() == OWN
    assert "is damaged" in chosen.problem


def test_nothing_of_a_slot_runs_while_both_are_bad(rooms: Rooms) -> None:
    rooms.ledger.commit(lifecycle.with_held(rooms.ledger.record, HELD))
    chosen = Programs(rooms.ledger)
    assert chosen.current() == OWN
    assert "both slots are bad" in chosen.problem


def test_a_program_that_failed_at_rest_is_tried_again_after_the_next_flip(rooms: Rooms) -> None:
    chosen = Programs(rooms.ledger)
    chosen.distrust("it ended with status 3")
    assert chosen.current() == OWN
    assert "status 3" in chosen.problem
    rooms.install("b", "r173", {"virus-pattern": "173", "agent-program": "0.3.0"})
    mark(rooms, "b")
    flip(rooms, {"agent-program": "d" * 64})
    assert chosen.current().version == "0.3.0"


def flip(rooms: Rooms, changed: dict[str, str]) -> None:
    attempt = Attempt(
        id="1", release="r173", from_release="r171", changed=changed, trigger="t", flipped_at=1.0
    )
    rooms.ledger.commit(lifecycle.flipped(rooms.ledger.record, attempt, tries=1, boot_id="1"))


def test_a_new_program_is_compared_with_the_one_of_the_prior_slot(rooms: Rooms) -> None:
    rooms.install("b", "r173", {"agent-program": "0.3.0"})
    mark(rooms, "b")
    chosen = Programs(rooms.ledger)
    assert chosen.on_trial() is None
    flip(rooms, {"agent-program": "d" * 64})
    pair = chosen.on_trial()
    assert pair is not None
    assert [item.version for item in pair] == ["0.3.0", "0.2.0"]
    mark(rooms, "a", "{}")
    pair = chosen.on_trial()
    assert pair is not None
    assert pair[1] == OWN  # which is what ran before the flip, too


def test_a_trial_of_other_components_asks_no_program(rooms: Rooms) -> None:
    rooms.install("b", "r173", {"virus-pattern": "173", "agent-program": "0.2.0"})
    flip(rooms, {"virus-pattern": "d" * 64})
    assert Programs(rooms.ledger).on_trial() is None


def test_a_slots_program_gets_its_own_path_and_leaves_nothing_in_the_slot() -> None:
    program = Program(slot="a", folder=Path("/slots/a/agent-program"), version="0.2.0")
    given = program.environment({"PYTHONPATH": "/elsewhere", "HOME": "/root", "LANG": "C"})
    assert given["PYTHONPATH"] == "/slots/a/agent-program"
    assert given["PYTHONDONTWRITEBYTECODE"] == given["PYTHONNOUSERSITE"] == "1"
    assert "HOME" not in given
    assert program.command("agent.fetcher", Path("c"))[:4] == [
        sys.executable,
        "-P",
        "-m",
        "agent.fetcher",
    ]
    assert OWN.environment({"PYTHONPATH": "/elsewhere"})["PYTHONPATH"] == "/elsewhere"


# Before the flip.


def test_a_release_with_a_program_for_another_guardian_is_held_back_untried(rooms: Rooms) -> None:
    rooms.attempts._unfit = lambda slot: programs.unfit(Programs(rooms.ledger).of(slot))
    order = rooms.begun()
    rooms.attempts.hear(handed_over(order.attempt))
    held = build(rooms.layout.slot("b"), "r173", {"agent-program": "0.3.0"})
    mark(rooms, "b", '{"protocol": 9}')
    rooms.stager.finish(
        channel.Staged(
            release="r173",
            content=held,
            changed={"agent-program": "d" * 64},
            activation=Activation(),
            health=HealthPolicy(),
            decision="offered",
        )
    )
    assert rooms.ledger.status.reason == quarantine.PROGRAM_INCOMPATIBLE
    assert list(rooms.ledger.record.slots) == ["a"]
    (entry,) = rooms.ledger.quarantine
    assert entry.reason == quarantine.PROGRAM_INCOMPATIBLE
    rooms.ledger.prepare()  # another guardian, which may speak that protocol
    assert rooms.ledger.quarantine == ()


# The stager.

ANSWER = 'print(\'{"type":"greeting","version":"own","protocol":2}\')'
STAGE = StageJob(attempt="1", host=HOST, active="a", slot="b", reuse=False)


class Copies(Program):
    """A program whose processes are a line of Python."""

    def command(self, module: str, config_path: Path, *more: str) -> list[str]:
        return [sys.executable, "-S", "-c", "raise SystemExit(3)"]


def stager(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[StagerLink, list]:  # type: ignore[type-arg]
    told: list[str] = []
    monkeypatch.setattr(
        Program, "command", lambda *_: [sys.executable, "-S", "-c", ANSWER], raising=True
    )
    broken = Copies(slot="a", folder=tmp_path, version="0.2.0")
    return StagerLink(loop, tmp_path, program=lambda: broken, on_unfit=told.append), told


def test_what_a_slots_stager_leaves_undone_the_packages_own_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop()
    link, told = stager(loop, tmp_path, monkeypatch)
    results: list[Any] = []
    link.run(STAGE, results.append)
    until(loop, lambda: results)
    assert results == [Greeting(version="own", protocol=channel.PROTOCOL)]
    assert "the stager 0.2.0 of slot a left no result (status 3)" in told[0]


def test_slots_are_verified_by_the_packages_own_stager_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop()
    link, told = stager(loop, tmp_path, monkeypatch)
    results: list[Any] = []
    link.run(VerifyJob(slots={}), results.append)
    until(loop, lambda: results)
    assert results == [Greeting(version="own", protocol=channel.PROTOCOL)]
    assert told == []


def test_a_stager_says_who_it_is_without_waiting_for_the_slots(rooms: Rooms) -> None:
    assert stager_main.serve(Greet(), rooms.layout) == Greeting(
        version=agent.__version__, protocol=channel.PROTOCOL
    )

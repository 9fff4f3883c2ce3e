"""The status document, what monitoring makes of it, and how people read it."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.ctl import explain, render
from agent.guardian import status
from agent.guardian.attempt import LastCheck
from agent.guardian.lifecycle import State
from agent.guardian.status import Facts, ProgramFacts, Standing
from agent.slots.record import BootRecord, Held, Phase
from tests.support.standings import (
    ATTEMPT,
    ENTRY,
    ERROR,
    NOW,
    RECORD,
    B,
    facts,
    on_trial,
    report,
)
from tests.support.standings import status as state
from tests.support.trials import Look, sample

FULL = facts(
    quarantine=(ENTRY,),
    last_error=ERROR,
    reports={"a": report("a"), "b": report("b", "x is missing", repaired=("y",))},
)
DOCUMENTS = [FULL, on_trial(), facts(record=BootRecord(), seals={}, reports={}, sample=None)]


def held(decision: str) -> LastCheck:
    return LastCheck(at=NOW, decision=decision, sentence=f"it is {decision}")


STANDINGS: dict[str, tuple[Facts, Standing, str]] = {
    "current": (facts(), Standing.CURRENT, "runs r173, healthy"),
    "on trial": (on_trial(), Standing.CURRENT, "r173 is on probation and healthy so far"),
    "not watched": (facts(sample=None), Standing.CURRENT, "runs r173, healthy"),
    "no check yet": (facts(last_check=None, started=NOW), Standing.CURRENT, "runs r173"),
    "nothing installed": (
        facts(record=BootRecord(), seals={}, reports={}),
        Standing.AT_RISK,
        "no release is installed",
    ),
    "reverted its first": (
        facts(record=BootRecord(phase=Phase.REVERTING, attempt=ATTEMPT)),
        Standing.AT_RISK,
        "no release is installed",
    ),
    "damaged": (
        facts(reports={"b": report("b", "virus-pattern/pattern.dat is missing")}),
        Standing.AT_RISK,
        "slot b is damaged: virus-pattern/pattern.dat is missing",
    ),
    "spare damaged": (
        facts(reports={"a": report("a", "x is missing"), "b": report("b")}),
        Standing.CURRENT,
        "runs r173, healthy",
    ),
    "no seal": (facts(seals={}), Standing.AT_RISK, "the seal of slot b can't be read"),
    "engine gone": (
        facts(sample=sample(Look(root=None), 1000.0)),
        Standing.AT_RISK,
        "not running: yara-engine",
    ),
    "optional engine gone": (
        facts(sample=sample(Look(root=None, required=False), 1000.0)),
        Standing.CURRENT,
        "runs r173",
    ),
    "halted": (facts(last_check=held("rollout_halted")), Standing.LATE, "it is rollout_halted"),
    "waiting": (facts(last_check=held("waiting_for_phase")), Standing.LATE, "it is waiting"),
    "quarantined": (facts(last_check=held("quarantined")), Standing.LATE, "it is quarantined"),
    "incompatible": (facts(last_check=held("incompatible")), Standing.LATE, "it is incompatible"),
    "failed": (
        facts(status=state(State.FAILED, reason="disk_full", sentence="the disk is full")),
        Standing.LATE,
        "the disk is full",
    ),
    "quiet": (
        facts(last_check=LastCheck(at=NOW - 20_000), last_error=ERROR),
        Standing.LATE,
        "no successful check for 20000 s: nobody answers",
    ),
    "checks that keep failing": (
        facts(
            last_check=LastCheck(at=NOW - 5, worked_at=NOW - 20_000, decision="disk_full"),
            last_error=ERROR,
        ),
        Standing.LATE,
        "no successful check for 20000 s: nobody answers",
    ),
    "quiet without a word": (
        facts(last_check=LastCheck(at=NOW - 20_000), next_check=NOW - 16_000),
        Standing.LATE,
        "no successful check for 20000 s: the fetcher doesn't check",
    ),
    "never checked": (
        facts(last_check=None, next_check=None),
        Standing.LATE,
        "no successful check for 86400 s: the fetcher doesn't check",
    ),
    "a long jitter": (
        facts(last_check=LastCheck(at=NOW - 20_000), next_check=NOW + 1),
        Standing.CURRENT,
        "runs r173",
    ),
    "trial overdue": (
        facts(status=state(State.TRIAL, reason="probation_overdue", sentence="it takes long")),
        Standing.LATE,
        "it takes long",
    ),
    "trial observed for too long": (
        on_trial(
            policy=msgspec.structs.replace(on_trial().policy, probation_max_s=5.0),
        ),
        Standing.LATE,
        "the trial is overdue: r173 is on probation",
    ),
    "damage before lateness": (
        facts(seals={}, last_check=held("rollout_halted")),
        Standing.AT_RISK,
        "the seal of slot b",
    ),
}


@pytest.mark.parametrize("case", STANDINGS)
def test_monitoring_is_told_the_standing_of_each_situation(case: str) -> None:
    given_facts, standing, sentence = STANDINGS[case]
    found = status.standing(given_facts)
    assert found[0] is standing
    assert found[1].startswith(sentence)
    document = status.document(given_facts)
    assert document["standing"]["code"] == int(standing)
    assert document["standing"]["word"] in render.COLOURS


def test_standings_are_the_exit_codes_of_monitoring_plugins() -> None:
    assert [int(item) for item in Standing] == [0, 1, 2, 3]


@pytest.mark.parametrize("made", DOCUMENTS)
def test_the_document_is_plain_json(made: Facts) -> None:
    document = status.document(made)
    assert json.loads(msgspec.json.encode(document)) == json.loads(json.dumps(document))


def test_the_document_shows_what_runs_and_what_is_wrong_with_it() -> None:
    document = status.document(FULL)
    assert (document["release"], document["active_slot"]) == ("r173", "b")
    assert document["components"][0]["version"] == "173"
    assert document["components"][0]["intact"] is False
    assert document["slots"]["b"]["problems"] == ["x is missing"]
    assert document["repaired"] == ["y"]
    assert [item["id"] for item in document["quarantine"]] == ["abc123"]
    assert document["check"]["last_error"]["code"] == "source_unreachable"
    assert document["trial"] is None
    assert document["processes"][0]["alive"] is True


def test_an_expired_quarantine_is_not_shown_as_one() -> None:
    expired = msgspec.structs.replace(ENTRY, until=NOW - 1)
    assert status.document(facts(quarantine=(expired,)))["quarantine"] == []


def test_an_emptied_slot_has_no_problems_left() -> None:
    record = BootRecord(active="b", slots={"b": B})
    found = status.document(facts(record=record, reports={"a": report("a", "x is missing")}))
    assert found["slots"]["a"] == {
        "active": False,
        "release": None,
        "digest": None,
        "sealed": False,
        "on_trial": False,
        "tries_left": None,
        "problems": [],
    }


def test_progress_has_a_unit_where_there_is_progress() -> None:
    units = {
        State.DOWNLOADING: "bytes",
        State.TRIAL: "healthy seconds",
        State.IDLE: None,
        State.STAGING: None,
    }
    for name, unit in units.items():
        shown = status.document(facts(status=state(name)))["state"]["progress"]
        assert (shown["unit"] if shown else None) == unit


def test_a_resumed_trial_shows_its_seconds_before_the_first_look() -> None:
    shown = status.document(on_trial(watching=None, sample=None))["trial"]
    assert (shown["healthy_s"], shown["gates"]) == (12.5, [])


# As people read it.


def gate_sentence(gate: dict[str, Any], sentences: list[str]) -> str:
    mark = "Held by" if gate["holding"] else "Passing"
    start = f"{mark} {gate['name']}: {render.plain(gate['sentence'])}"
    (found,) = [text for text in sentences if text.startswith(start)]
    return found


@pytest.mark.parametrize(
    "made",
    [
        on_trial(),
        on_trial(*[Look()] * 3, *[Look(cpu=1.9)] * 5),
        on_trial(*[Look(root=None)] * 4),
        on_trial(*[Look(probe=False)] * 4),
        on_trial(*[Look(busy=1.0, foreign=0.9)] * 4),
        on_trial(*[Look(source=False)] * 4),
    ],
)
def test_explain_gives_the_measured_value_and_the_threshold_of_each_gate(made: Facts) -> None:
    document = status.document(made)
    sentences = explain.sentences(document, [])
    gates = document["trial"]["gates"]
    assert len(gates) >= 6
    for gate in gates:
        text = gate_sentence(gate, sentences)
        if gate["measured"] is not None:
            assert f"measured {explain._figure(gate['measured'])} {gate['unit']}" in text
            limit = gate["threshold"]
            wanted = "not judged" if limit is None else f"threshold {explain._figure(limit)}"
            assert wanted in text


def test_explain_says_what_runs_why_and_what_is_next() -> None:
    last = {
        "outcome": "committed",
        "release": "r173",
        "from_release": "r171",
        "sentence": "60 healthy seconds",
        "reason": "healthy",
        "ended": NOW,
        "wire_bytes": 5_000,
        "full_bytes": 100_000,
    }
    text = "\n".join(explain.sentences(status.document(facts()), [last]))
    assert "release r173 from slot b (virus-pattern 173)" in text
    assert "5,000 bytes fetched instead of 100,000" in text
    assert "kept because: 60 healthy seconds" in text
    assert "Next: a check at " in text


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ({"outcome": "reverted", "from_release": "r171"}, "went back to r171 4 s after the flip"),
        ({"outcome": "reverted", "from_release": None}, "there was no prior one"),
        ({"outcome": "failed", "from_release": "r171"}, "attempt at r175 failed: it burned"),
        ({"outcome": "failed", "from_release": None, "release": ""}, "attempt at an update failed"),
    ],
)
def test_explain_tells_how_the_last_attempt_ended(last: dict[str, Any], said: str) -> None:
    outcome = {
        "release": "r175",
        "sentence": "it burned",
        "reason": "cpu_pinned",
        "ended": NOW,
        "seconds_in_trial": 4.2,
    }
    assert said in "\n".join(explain.sentences(status.document(facts()), [outcome | last]))


def test_explain_names_holds_quarantine_damage_and_the_last_error() -> None:
    waiting = LastCheck(
        at=NOW, decision="waiting_for_phase", sentence="its phase comes", ready_at=NOW + 60
    )
    made = msgspec.structs.replace(FULL, last_check=waiting)
    text = "\n".join(explain.sentences(status.document(made), []))
    assert "Held [waiting_for_phase]: its phase comes." in text
    assert "`agentctl quarantine clear abc123` allows it again" in text
    assert "Slot b isn't as it was sealed: x is missing" in text
    assert "The last try failed [source_unreachable]: nobody answers." in text
    assert "turn is expected at" in text


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (facts(record=BootRecord(), seals={}), "No release is installed"),
        (facts(next_check=None), "Next: a check when the fetcher is up."),
        (facts(status=state(State.STAGING, sentence="building")), "Now: staging; building."),
        (facts(last_check=None), "Next: a check at"),
    ],
)
def test_explain_always_says_what_happens_next(made: Facts, said: str) -> None:
    assert said in "\n".join(explain.sentences(status.document(made), []))


def test_the_status_shows_everything_on_lines_of_its_own() -> None:
    lines = render.status_lines(status.document(FULL), colour=False)
    labels = [line[: render.LABEL_WIDTH].strip() for line in lines[1:] if line[:1].strip()]
    assert labels == [
        "host",
        "release",
        "state",
        "slots",
        "components",
        "check",
        "quarantine",
        "processes",
        "agent",
    ]
    text = "\n".join(lines)
    for said in ("AT RISK", "DAMAGED: x is missing", "last error", "1,234,567 bytes", "abc123"):
        assert said in text


def test_a_trial_shows_its_progress_and_what_holds_it() -> None:
    made = on_trial(*[Look()] * 3, *[Look(cpu=1.9)] * 5)
    lines = render.status_lines(status.document(made), colour=False)
    text = "\n".join(lines)
    assert "back to r171 if it hurts" in text
    assert "held by cpu_pinned: yara-engine uses 1.90 of a core" in text
    assert "on trial, 1 tries left" in text
    first = on_trial(record=msgspec.structs.replace(made.record, attempt=first_install()))
    assert "the first release here" in "\n".join(
        render.status_lines(status.document(first), colour=False)
    )


def first_install() -> Any:
    return msgspec.structs.replace(ATTEMPT, from_release=None)


def test_colour_is_where_it_was_asked_for_and_nowhere_else() -> None:
    document = status.document(FULL)
    plain = render.status_lines(document, colour=False)
    coloured = render.status_lines(document, colour=True)
    assert "\x1b" not in "".join(plain)
    assert "\x1b[1;31mAT RISK\x1b[0m" in coloured[0]
    assert re.sub("\x1b\\[[0-9;]*m", "", "\n".join(coloured)) == "\n".join(plain)


NASTY = st.text(alphabet="a\x1b[2J\x07\r\n\u202e\x9b\x00é✓", max_size=12)
NUMBERS = st.integers(0, 1 << 60) | st.floats(0, 1e300)
EXTREME = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(1 << 70), 1 << 70)


def mangled(value: Any, draw: Any) -> Any:
    """`value` with every text and number in it replaced, its shape and its Nones kept."""
    if isinstance(value, dict):
        return {name: mangled(item, draw) for name, item in value.items()}
    if isinstance(value, list):
        return [mangled(item, draw) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        return draw(NASTY)
    return draw(EXTREME)


@given(st.sampled_from(DOCUMENTS), st.booleans(), st.data())
def test_no_document_breaks_the_screen(made: Facts, colour: bool, data: st.DataObject) -> None:
    whole = json.loads(json.dumps(status.document(made)))
    document = mangled(whole, data.draw) | {
        "active_slot": whole["active_slot"],
        "slots": mangled(whole["slots"], data.draw),
    }
    lines = render.status_lines(document, colour=colour)
    sentences = explain.sentences(document, [])
    head, *others = lines
    for line in (re.sub("^\x1b\\[[0-9;]*m([^\x1b]*)\x1b\\[0m", r"\1", head), *others, *sentences):
        assert line.isprintable()


OUTCOMES = st.fixed_dictionaries(
    {
        "ended": EXTREME,
        "outcome": NASTY,
        "release": NASTY,
        "from_release": st.none() | NASTY,
        "reason": NASTY,
        "sentence": NASTY,
    },
    optional={
        "seconds_in_trial": st.none() | EXTREME,
        "wire_bytes": st.none() | st.integers(0, 1 << 60),
        "full_bytes": st.none() | st.integers(0, 1 << 60),
    },
)


@given(st.lists(OUTCOMES, max_size=4))
def test_no_history_breaks_the_screen(outcomes: list[dict[str, Any]]) -> None:
    lines = render.history_lines(outcomes)
    assert len(lines) == max(len(outcomes) + 1, 1)
    for line in (*lines, *explain.sentences(status.document(facts()), outcomes)):
        assert line.isprintable()


def test_an_empty_history_says_so() -> None:
    assert render.history_lines([]) == ["no attempt has ended yet"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0.4 s"), (119, "119.0 s"), (120, "2.0 min"), (7200, "2.0 h"), (864_000, "10.0 d")],
)
def test_stretches_of_time_have_the_unit_that_suits_them(seconds: float, said: str) -> None:
    assert render.duration(seconds) == said


@given(st.floats(allow_nan=False))
def test_a_bar_is_always_as_wide(share: float) -> None:
    assert len(render.bar(share)) == 22


def test_the_record_and_the_document_agree_on_the_active_slot() -> None:
    document = status.document(facts())
    active = [name for name, slot in document["slots"].items() if slot["active"]]
    assert active == [RECORD.active] == [document["active_slot"]]


def test_two_bad_slots_are_a_risk_even_where_the_files_are_whole() -> None:
    held = Held(reason="cpu_pinned", sentence="it burned a core", since=NOW)
    document = status.document(facts(record=msgspec.structs.replace(RECORD, held=held)))
    assert document["standing"]["code"] == 2
    assert (
        "both slots are bad, b is the less bad one: it burned" in document["standing"]["sentence"]
    )
    assert document["held"] == {
        "reason": "cpu_pinned",
        "sentence": "it burned a core",
        "since": NOW,
    }


def test_a_program_that_the_package_had_to_replace_makes_the_machine_late() -> None:
    program = ProgramFacts(component="agent-program", version="0.1.0", problem="0.2.0 is damaged")
    code, sentence = status.standing(facts(program=program))
    assert code is status.Standing.LATE
    assert sentence == "0.2.0 is damaged; the package's own 0.1.0 does its work"
    assert status.document(facts(program=program))["program"]["problem"] == "0.2.0 is damaged"

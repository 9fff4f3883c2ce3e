"""What agentctl says of a status document and a history, word for word where it matters."""

from __future__ import annotations

from typing import Any

import pytest

from agent.ctl import explain, render

NOON = 1_790_000_000.0


def status(**changes: Any) -> dict[str, Any]:
    """A machine on 173 that reverted 175."""
    slot: dict[str, Any] = {
        "active": False,
        "release": "171",
        "digest": "b" * 64,
        "sealed": True,
        "on_trial": False,
        "tries_left": None,
        "problems": [],
    }
    document = {
        "host_id": "host-7",
        "region": "japan",
        "agent_version": "0.1.0",
        "now": NOON,
        "standing": {"code": 0, "word": "current", "sentence": "runs 173, healthy"},
        "active_slot": "a",
        "release": "173",
        "state": {
            "name": "reverted",
            "reason": "cpu_pinned",
            "sentence": "engine was pinned",
            "since": NOON - 60,
            "progress": None,
        },
        "components": [
            {
                "name": "virus-pattern",
                "kind": "pattern",
                "version": "173",
                "digest": "c" * 64,
                "bytes": 1000,
                "intact": True,
            }
        ],
        "slots": {"a": slot | {"active": True, "release": "173"}, "b": slot},
        "trial": None,
        "check": {
            "last": {
                "at": NOON - 90,
                "decision": "offered",
                "sentence": "release 175 is offered",
                "release": "175",
                "source": "http://feed",
                "ready_at": None,
            },
            "next": NOON + 3600,
            "last_error": None,
        },
        "quarantine": [quarantined()],
        "processes": [
            {
                "name": "engine",
                "pid": 42,
                "alive": True,
                "rss_bytes": 50 << 20,
                "cpu_share": 0.012,
            }
        ],
        "guardian": {"pid": 7, "uptime_s": 7300.0},
        "fetcher": {"pid": 8, "running": True},
    }
    return document | changes


def quarantined(**changes: Any) -> dict[str, Any]:
    entry = {
        "id": "4f0a5511f46b",
        "changed": {"virus-pattern": "d" * 64},
        "release": "175",
        "reason": "cpu_pinned",
        "sentence": "engine used 0.99 of a core",
        "since": NOON,
        "until": NOON + 86400,
    }
    return entry | changes


def trial(**changes: Any) -> dict[str, Any]:
    found = {
        "release": "175",
        "from_release": "173",
        "tries_left": 1,
        "healthy_s": 4.0,
        "needed_s": 600.0,
        "gates": [
            {
                "name": "memory_growth",
                "measured": 52_428_800.0,
                "threshold": 268_435_456.0,
                "unit": "bytes",
                "holding": False,
                "sentence": "engine holds 50 MiB",
            },
            {
                "name": "cpu_pinned",
                "measured": 0.994,
                "threshold": 0.5,
                "unit": "cores",
                "holding": True,
                "sentence": "engine uses 0.99 of a core",
            },
        ],
    }
    return found | changes


def outcome(**changes: Any) -> dict[str, Any]:
    found = {
        "ended": NOON,
        "outcome": "committed",
        "release": "173",
        "from_release": "171",
        "reason": "healthy",
        "sentence": "600 healthy seconds observed, 600 needed",
        "seconds_in_trial": 640.0,
        "wire_bytes": 1826,
        "full_bytes": 54_630,
    }
    return found | changes


def shown(**changes: Any) -> str:
    return "\n".join(render.status_lines(status(**changes), colour=False))


def explained(*history: dict[str, Any], **changes: Any) -> str:
    return "\n".join(explain.sentences(status(**changes), list(history)))


def test_every_row_of_the_status_begins_in_the_same_column() -> None:
    _, *rows = render.status_lines(status(), colour=False)
    assert all(row[render.LABEL_WIDTH - 1] == " " for row in rows)
    assert all(row[render.LABEL_WIDTH] != " " for row in rows)


def test_the_status_names_the_release_that_the_last_check_was_about() -> None:
    assert "offered 175  http://feed" in shown()


def test_the_status_says_since_when_the_state_is_as_it_is() -> None:
    assert f"since {render.clock(NOON - 60)}" in shown()


def test_the_status_tells_the_slot_that_runs_from_the_one_to_go_back_to() -> None:
    text = shown()
    assert "a  173  active, sealed" in text
    assert "b  171  sealed, to go back to" in text


def test_a_small_share_of_a_core_is_not_rounded_away() -> None:
    assert "1.2 % of a core" in shown()


def test_the_status_shows_the_agents_own_processes() -> None:
    assert "guardian pid 7, up 2.0 h; fetcher pid 8" in shown()
    assert "fetcher NOT RUNNING" in shown(fetcher={"pid": None, "running": False})


def test_a_first_release_on_trial_has_nothing_to_go_back_to() -> None:
    text = shown(trial=trial(from_release=None))
    assert "the first release here" in text
    assert "None" not in text
    assert "None" not in explained(trial=trial(from_release=None))


def test_the_status_of_a_machine_without_guardian_has_no_agent_row() -> None:
    document = status()
    del document["guardian"], document["fetcher"]
    assert "guardian pid" not in "\n".join(render.status_lines(document, colour=False))


def test_history_columns_line_up_whatever_they_hold() -> None:
    heading, *lines = render.history_lines(
        [
            outcome(from_release=None, release="171", wire_bytes=53_443, full_bytes=53_443),
            outcome(outcome="failed", seconds_in_trial=None, wire_bytes=None, full_bytes=None),
            outcome(outcome="reverted", release="17.591.00", seconds_in_trial=8.0),
        ]
    )
    for column in ("release", "why"):
        at = heading.index(column)
        assert all(line[at - 1] == " " and line[at] != " " for line in lines)
    end = heading.index("bytes fetched") + len("bytes fetched")
    assert [line[:end].split("  ")[-1].strip() for line in lines] == ["53,443", "", "1,826"]


def test_a_history_without_attempts_says_so() -> None:
    assert render.history_lines([]) == ["no attempt has ended yet"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.04, "8.0 s"), (119.0, "119.0 s"), (640.0, "10.7 min"), (7300.0, "2.0 h"), (2e5, "2.3 d")],
)
def test_a_duration_has_the_unit_that_suits_it(seconds: float, text: str) -> None:
    assert render.duration(seconds) == text


def test_a_kept_release_is_explained_with_when_it_came_and_what_it_cost() -> None:
    text = explained(outcome())
    assert f"It came on {render.clock(NOON)}, after 171" in text
    assert "with 1,826 bytes fetched instead of 54,630" in text
    assert "kept because: 600 healthy seconds observed" in text


def test_a_release_that_came_in_full_is_not_called_a_saving() -> None:
    text = explained(outcome(wire_bytes=54_630))
    assert "54,630 bytes fetched," in text
    assert "instead of" not in text


def test_a_revert_is_explained_with_its_reason_and_how_to_allow_it_again() -> None:
    text = explained(outcome(outcome="reverted", release="175", from_release="173"))
    assert "It tried 175 and went back to 173" in text
    assert "which was reverted here [cpu_pinned]: engine used 0.99 of a core." in text
    assert "`agentctl quarantine clear 4f0a5511f46b` allows it again." in text


def test_a_quarantine_that_is_over_is_not_explained() -> None:
    assert "Quarantined" not in explained(quarantine=[quarantined(until=NOON - 1)])


def test_a_trial_is_explained_by_each_gate_with_figure_and_threshold() -> None:
    text = explained(trial=trial())
    assert "Passing memory_growth: engine holds 50 MiB (measured 52,428,800 bytes" in text
    assert "threshold 268,435,456)" in text
    assert "Held by cpu_pinned: engine uses 0.99 of a core (measured 0.994 cores" in text
    assert "1 more start of the machine" in text


def test_a_machine_that_waits_for_its_phase_is_told_when_its_turn_is() -> None:
    check = status()["check"]
    waiting = check["last"] | {"decision": "waiting_for_phase", "ready_at": NOON + 600}
    text = explained(check=check | {"last": waiting})
    assert f"turn is expected at {render.clock(NOON + 600)}" in text
    quarantine = check["last"] | {"decision": "quarantined", "ready_at": NOON + 600}
    assert "turn is expected" not in explained(check=check | {"last": quarantine})


def test_a_machine_whose_guardian_is_down_is_told_to_start_it() -> None:
    down = status()["state"] | {"reason": "guardian_down", "name": "unknown"}
    text = explained(state=down)
    assert text.startswith("Nobody watches this machine")
    assert "start the guardian" in text


HELD = {"reason": "cpu_pinned", "sentence": "engine used 1.00 of a core", "since": NOON - 30}


def test_two_bad_slots_are_explained_with_what_is_known_and_what_helps() -> None:
    found = explain.sentences(status(held=HELD), [])
    (told,) = [text for text in found if text.startswith("Both slots are bad")]
    assert "slot a is held as the less bad one" in told
    assert "[cpu_pinned]: engine used 1.00 of a core" in told
    assert any("`agentctl repair`" in text for text in found)


def test_a_damaged_slot_isnt_said_to_be_repaired_while_both_are_bad() -> None:
    slots = status()["slots"]
    slots["a"]["problems"] = ["virus-pattern/p.dat is missing"]
    assert any("is repaired from" in text for text in explain.sentences(status(slots=slots), []))
    found = explain.sentences(status(slots=slots, held=HELD), [])
    assert any("nothing more is tried on it" in text for text in found)


def test_a_release_that_was_kept_although_it_failed_is_explained() -> None:
    past = [
        {
            "outcome": "held",
            "release": "173",
            "from_release": "171",
            "ended": NOON,
            "reason": "cpu_pinned",
            "sentence": "slot b is worse",
        }
    ]
    told = explain.sentences(status(), past)[1]
    assert "failed its trial [cpu_pinned], but is kept: slot b is worse" in told


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ({"slot": "a", "version": "0.2.0", "problem": ""}, "The program 0.2.0 of slot a fetches"),
        (
            {"slot": None, "version": "0.1.0", "problem": "the program 0.2.0 is damaged"},
            "The package's own program 0.1.0 fetches and stages, because the program 0.2.0",
        ),
    ],
)
def test_it_is_told_which_program_fetches(program: dict[str, Any], said: str) -> None:
    document = status(program={"component": "agent-program", **program})
    assert any(text.startswith(said) for text in explain.sentences(document, []))
    rows = "\n".join(render.status_lines(document, colour=False))
    assert f"{program['version']}  fetcher and stager from" in rows


def test_without_the_setting_nothing_is_said_of_the_program() -> None:
    program = {"component": None, "slot": None, "version": "0.1.0", "problem": ""}
    document = status(program=program)
    assert "fetcher and stager from" not in "\n".join(render.status_lines(document, colour=False))
    assert not any("program" in text for text in explain.sentences(document, []))

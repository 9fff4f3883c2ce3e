"""What systemctl says of a unit, and what is asked of it."""

from __future__ import annotations

import re

import pytest

from agent.config import UNIT_NAME
from agent.guardian import units
from agent.guardian.units import Unit

SAID = """MainPID=12
NRestarts=3
Result=exit-code
ControlGroup=/system.slice/a=b.service
LoadState=loaded
ActiveState=failed
"""


def test_what_systemctl_says_is_read_by_name_in_any_order() -> None:
    assert units.parse(SAID) == Unit(
        load="loaded",
        active="failed",
        result="exit-code",
        main_pid=12,
        group="/system.slice/a=b.service",
        restarts=3,
    )


def test_what_isnt_said_has_its_default() -> None:
    assert units.parse("MainPID=x\nnonsense\nNRestarts=-1\n") == Unit()


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        (Unit(load="not-found", active="inactive"), "no such unit"),
        (Unit(active="failed", result="oom-kill"), "oom-kill"),
        (Unit(active="activating"), "activating"),
    ],
)
def test_a_unit_without_a_process_says_why(unit: Unit, words: str) -> None:
    assert words in unit.problem


NO_NAMES = """
a a.slice ../a.service a/b.service -.mount/x a@b@c.service .service. @x.service a;b.service
"""


@pytest.mark.parametrize(
    "name", ["", "a b.service", "a.service\n", "a" * 250 + ".service", *NO_NAMES.split()]
)
def test_names_that_are_none(name: str) -> None:
    assert not re.search(UNIT_NAME, name)


@pytest.mark.parametrize(
    ("active", "verb", "reason", "calls"),
    [
        ("active", "reload", "flip", ["reload"]),
        ("active", "restart", "flip", ["restart"]),
        ("active", "reload", "revert", ["reload"]),
        ("inactive", "restart", "flip", []),
        ("inactive", "restart", "revert", []),  # an administrator has stopped it
        ("failed", "restart", "flip", []),
        ("failed", "reload", "revert", ["reset-failed", "restart"]),
        ("activating", "reload", "revert", ["restart"]),  # it crashes over and over
        ("activating", "reload", "flip", ["reload"]),
    ],
)
def test_how_a_unit_takes_a_release(active: str, verb: str, reason: str, calls: list[str]) -> None:
    found = units.steps(Unit(active=active), "x.service", verb=verb, reason=reason)
    assert [call[0] for call in found or ()] == calls
    assert all(call[-2:] == ("--", "x.service") for call in found or ())

"""Which tests one worker runs."""

from __future__ import annotations

from pathlib import Path

from tests.support.groups import GROUPS, group_of

ROOT = Path(__file__).parents[2]


def test_tests_of_one_machine_are_one_group_and_others_their_own() -> None:
    booted = "tests/system/systemd/test_boots.py::test_a"
    assert group_of(booted) == group_of("tests/system/systemd/test_service.py::test_b[x]")
    assert group_of(booted) != group_of("tests/system/windows/test_wine.py::test_c")
    assert group_of("tests/unit/test_groups.py::test_d") == "tests/unit/test_groups.py::test_d"


def test_the_places_are_there() -> None:
    assert all((ROOT / place).exists() for place in GROUPS)

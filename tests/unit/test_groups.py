"""Which tests one worker runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.groups import GROUPS, group_of

ROOT = Path(__file__).parents[2]


def test_tests_of_one_machine_are_one_group_and_others_their_own() -> None:
    booted = "tests/system/systemd/test_boots.py::test_a"
    assert group_of(booted) == group_of("tests/system/systemd/test_service.py::test_b[x]")
    assert group_of(booted) != group_of("tests/system/windows/test_wine.py::test_c")
    assert group_of("tests/unit/test_groups.py::test_d") == "tests/unit/test_groups.py::test_d"


def test_tests_that_are_alone_are_one_group() -> None:
    resting = "tests/integration/test_guardian_modules.py::test_guardian_and_fetcher_rest_within"
    assert group_of(resting) == group_of("tests/system/pressure/test_pressed_machine.py::test_e")
    another = "tests/integration/test_guardian_modules.py::test_f"
    assert group_of(another) == another


@pytest.mark.parametrize("place", GROUPS)
def test_the_places_are_there(place: str) -> None:
    path, _, test = place.partition("::")
    assert (ROOT / path).exists()
    assert not test or f"def {test}" in (ROOT / path).read_text()

"""What a check says and to whom: sources in turn, a look, room, a slow line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent import config
from agent.channel import (
    Checked,
    CycleFailed,
    HandedOver,
    Progress,
    Reached,
)
from agent.fetcher import cycle, handover
from feed.rollout import Decision
from tests.support.staging import PATTERN, Machine, edition
from tests.support.vendor import Vendor


def test_a_look_fetches_nothing_but_says_what_an_update_would(
    machine: Machine, vendor: Vendor
) -> None:
    machine.install()
    vendor.ship("r2", {PATTERN: ("2", edition(2))})
    word = machine.fetch(download=False)
    assert isinstance(word, Checked)
    assert (word.decision, word.release) == (Decision.OFFERED, "r2")
    assert 0 < word.fetch_bytes < word.full_bytes
    assert word.requests
    assert not (machine.places.incoming / "2").exists()


def test_a_handover_says_what_was_to_be_fetched_and_how_often_was_asked(
    machine: Machine, vendor: Vendor
) -> None:
    machine.install()
    vendor.ship("r2", {PATTERN: ("2", edition(2))})
    look = machine.fetch(download=False)
    word = machine.fetch()
    assert isinstance(word, HandedOver)
    assert 0 < word.fetch_bytes == look.fetch_bytes < word.full_bytes
    assert word.requests


def test_a_current_machine_is_told_so(machine: Machine) -> None:
    machine.install()
    word = machine.fetch()
    assert isinstance(word, Checked)
    assert word.decision == Decision.CURRENT


def test_the_next_source_answers_for_one_that_doesnt(
    tmp_path: Path, vendor: Vendor, said: list[Any]
) -> None:
    machine = Machine(
        tmp_path / "machine", (tmp_path / "nowhere").as_uri(), vendor.url, root=vendor.root
    )
    word = machine.fetch()
    assert isinstance(word, HandedOver)
    assert word.source == vendor.url


def test_all_sources_failing_is_reported_with_how_many_were_tried(
    tmp_path: Path, vendor: Vendor
) -> None:
    nowhere = [(tmp_path / name).as_uri() for name in ("x", "y")]
    machine = Machine(tmp_path / "machine", *nowhere, root=vendor.root)
    word = machine.fetch()
    assert isinstance(word, CycleFailed)
    assert word.sentence.endswith("(2 sources tried)")


def test_a_source_that_isnt_trusted_is_told_of_before_one_that_is_down(
    tmp_path: Path, vendor: Vendor
) -> None:
    stranger = Vendor(tmp_path / "stranger")
    stranger.ship("r9", {PATTERN: ("9", b"evil")})
    machine = Machine(
        tmp_path / "machine", (tmp_path / "x").as_uri(), stranger.url, root=vendor.root
    )
    word = machine.fetch()
    assert isinstance(word, CycleFailed)
    assert (word.code, word.source) == ("trust_refused", stranger.url)


def test_a_disk_without_room_starts_nothing_and_asks_no_other_source(
    tmp_path: Path, vendor: Vendor
) -> None:
    huge = f"room_reserve_bytes = {1 << 60}"
    machine = Machine(tmp_path / "machine", vendor.url, vendor.url, root=vendor.root)
    text = machine.config.read_text().replace("room_reserve_bytes = 0", huge)
    machine.config.write_text(text)
    machine.settings = config.load(machine.config)
    word = machine.fetch()
    assert isinstance(word, CycleFailed)
    assert word.code == "disk_full"
    assert "sources tried" not in word.sentence


def test_the_sources_can_be_asked_whether_they_answer(tmp_path: Path, machine: Machine) -> None:
    assert cycle.reach(machine.settings, machine.places) == Reached(
        ok=True, detail=machine.settings.sources[0].url
    )
    gone = Machine(tmp_path / "gone", (tmp_path / "x").as_uri(), root=b"{}")
    assert not cycle.reach(gone.settings, gone.places).ok


def test_a_slow_line_is_never_silent_for_long(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guardian takes three minutes of silence for a hang, however slow the line."""
    moments = iter(range(0, 100_000, 10))
    monkeypatch.setattr(handover.time, "monotonic", lambda: float(next(moments)))
    machine.fetch()
    words = [word for word in machine.said if isinstance(word, Progress)]
    assert len(words) > 1  # far less than 256 KiB came


def test_few_small_files_are_kept(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "SMALL_KEPT", 1)
    small = machine.places.cache / "small"
    small.mkdir()
    for number in range(5):
        (small / f"old{number}").touch()
    machine.install()
    assert len(list(small.iterdir())) <= 3

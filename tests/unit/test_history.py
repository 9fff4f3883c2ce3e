"""The history, the quarantine and a trial's notes: files that may be lost, never believed."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.guardian import history, notes, quarantine
from agent.guardian.history import Outcome
from agent.guardian.notes import Notes
from agent.guardian.quarantine import Entry
from agent.guardian.verdict import Baseline, Carried
from feed import durable


def outcome(number: int, sentence: str = "it was healthy") -> Outcome:
    return Outcome(
        attempt=f"{number:04}",
        outcome="committed",
        release=f"r{number}",
        from_release=None,
        trigger="schedule",
        reason="healthy",
        sentence=sentence,
        ended=float(number),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def test_the_history_lists_what_ended_oldest_first(path: Path) -> None:
    assert history.tail(path, 5) == []
    made = [outcome(number) for number in range(4)]
    for item in made:
        history.append(path, item)
    assert history.tail(path, 10) == made
    assert history.tail(path, 2) == made[2:]


def test_an_attempt_ends_once_however_often_it_is_finished(path: Path) -> None:
    for sentence in ("first", "again", "and again"):
        history.append(path, outcome(1, sentence))
    assert [item.sentence for item in history.tail(path, 10)] == ["first"]


@given(st.integers(1, 10_000), st.binary(max_size=50))
def test_a_line_torn_anywhere_costs_only_itself(
    tmp_path_factory: pytest.TempPathFactory, cut: int, rubbish: bytes
) -> None:
    path = tmp_path_factory.mktemp("history") / "file"
    history.append(path, outcome(1))
    whole = path.read_bytes()
    history.append(path, outcome(2))
    torn = path.read_bytes()[len(whole) :]
    path.write_bytes(whole + torn[: cut % len(torn)] + rubbish.replace(b"\n", b""))
    history.append(path, outcome(3))
    found = [item.attempt for item in history.tail(path, 10)]
    assert found[0] == "0001"
    assert found[-1] == "0003"


def test_lines_that_are_no_outcomes_are_skipped(path: Path) -> None:
    history.append(path, outcome(1))
    with path.open("ab") as file:
        file.write(b'\xff\n{}\nnull\n{"a":' + b"[" * 100_000 + b"\n")
    history.append(path, outcome(2))
    assert [item.attempt for item in history.tail(path, 10)] == ["0001", "0002"]


def test_a_long_history_is_cut_to_its_newest_lines(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "ROTATE_BYTES", 20_000)
    monkeypatch.setattr(history, "LINES_KEPT", 10)
    largest = 0
    for number in range(300):
        history.append(path, outcome(number))
        largest = max(largest, path.stat().st_size)
    assert largest < 21_000
    assert [item.release for item in history.tail(path, 10)] == [f"r{n}" for n in range(290, 300)]


def test_only_the_end_of_a_huge_history_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "TAIL_BYTES", 1000)
    for number in range(20):
        history.append(path, outcome(number))
    found = history.tail(path, 100)
    assert 1 < len(found) < 10
    assert found[-1] == outcome(19)


# Quarantine.


def entry(number: int, *, until: float = 100.0) -> Entry:
    changed = {"pattern": f"{number:064}"}
    return Entry(
        id=quarantine.entry_id(changed),
        changed=changed,
        release=f"r{number}",
        reason="cpu_pinned",
        sentence="it burned a core",
        since=0.0,
        until=until,
        attempt=str(number),
    )


def test_the_quarantine_outlives_the_guardian(path: Path) -> None:
    assert quarantine.load(path) == ()
    held = (entry(1), entry(2))
    quarantine.store(path, held)
    assert quarantine.load(path) == held


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff", b"[" * 100_000, b'[{"id":1}]'])
def test_an_unreadable_quarantine_is_kept_for_people_and_starts_anew(
    path: Path, content: bytes
) -> None:
    path.write_bytes(content)
    assert quarantine.load(path) == ()
    assert not path.exists()
    assert path.with_name("file.unreadable").read_bytes() == content


def test_an_endless_quarantine_is_no_quarantine(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(quarantine.FILE_BYTES_MAX + 1)
    assert quarantine.load(path) == ()


def test_the_same_set_is_renewed_and_another_added() -> None:
    held = quarantine.with_entry((), entry(1))
    held = quarantine.with_entry(held, entry(2))
    held = quarantine.with_entry(held, entry(1, until=999.0))
    assert [(item.release, item.until) for item in held] == [("r2", 100.0), ("r1", 999.0)]


def test_the_oldest_go_past_the_limit() -> None:
    held: tuple[Entry, ...] = ()
    for number in range(quarantine.ENTRIES_MAX + 3):
        held = quarantine.with_entry(held, entry(number))
    assert len(held) == quarantine.ENTRIES_MAX
    assert held[0].release == "r3"


def test_a_full_quarantine_can_be_read_again(path: Path) -> None:
    held = tuple(entry(number) for number in range(quarantine.ENTRIES_MAX))
    quarantine.store(path, held)
    assert quarantine.load(path) == held


def test_entries_are_cleared_by_id_by_release_or_all() -> None:
    held = (entry(1), entry(2), entry(3))
    assert quarantine.without(held, held[0].id[:6]) == held[1:]
    assert quarantine.without(held, "r2") == (held[0], held[2])
    assert quarantine.without(held, "r") == held
    assert quarantine.without(held, None) == ()


def test_an_empty_name_clears_nothing() -> None:
    assert quarantine.without((entry(1),), "") == (entry(1),)


def test_only_what_hasnt_expired_is_in_force() -> None:
    held = (entry(1, until=50.0), entry(2, until=51.0))
    assert [item.release for item in quarantine.in_force(held, now=50.0)] == ["r2"]


def test_evidence_has_a_file_name_whatever_the_attempt_is_called() -> None:
    name = quarantine.evidence_name("../../etc/passwd\x00" * 100)
    assert name.removesuffix(".json").isalnum()
    assert name != quarantine.evidence_name("other")


# A trial's notes.


def test_notes_come_back_to_their_own_attempt_only(path: Path) -> None:
    kept = Notes(
        attempt="1",
        baseline=Baseline(observed_s=30.0),
        carried=Carried(healthy_s=12.0, crashes={"engine": 1}),
        wire_bytes=10,
        full_bytes=1000,
    )
    notes.store(path, kept)
    assert notes.load(path, attempt="1") == kept
    assert notes.load(path, attempt="2") == Notes(attempt="2")


@pytest.mark.parametrize("content", [b"", b"{", b'{"attempt":1}', b"[" * 100_000, b"\xff"])
def test_a_trial_whose_notes_are_lost_goes_on_without(path: Path, content: bytes) -> None:
    assert notes.load(path, attempt="1") == Notes(attempt="1")
    path.write_bytes(content)
    assert notes.load(path, attempt="1") == Notes(attempt="1")
    path.unlink()
    path.mkdir()
    assert notes.load(path, attempt="1") == Notes(attempt="1")


def test_a_refused_write_leaves_the_previous_notes(path: Path) -> None:
    notes.store(path, Notes(attempt="1", wire_bytes=1))

    def full(point: str, _where: str) -> None:
        if point == "fsync":
            raise OSError(28, "No space left on device")

    durable.set_fault_hook(full)
    try:
        with pytest.raises(OSError, match="No space"):
            notes.store(path, msgspec.structs.replace(Notes(attempt="1"), wire_bytes=2))
    finally:
        durable.set_fault_hook(None)
    assert notes.load(path, attempt="1").wire_bytes == 1

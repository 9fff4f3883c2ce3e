"""Reports that wait: none lost but by rank, none twice, whatever ends the process."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import msgspec
import pytest

from agent.fetcher import spool, telling
from agent.fetcher.spool import Spool
from agent.guardian import history
from agent.guardian.history import Outcome
from agent.layout import Layout
from feed import durable
from feed.messages import EVIDENCE_BYTES_MAX, Report

_numbers = itertools.count()


@pytest.fixture
def places(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "state", tmp_path / "run", tmp_path / "root.json")
    made.server.mkdir(parents=True)
    made.evidence.mkdir()
    return made


def end(places: Layout, outcome: str = "committed", *, evidence: bytes | None = None) -> str:
    """An attempt ends, as the guardian writes it down."""
    number = next(_numbers)
    name = None
    if evidence is not None:
        name = f"{number}.json"
        (places.evidence / name).write_bytes(evidence)
    attempt = f"attempt-{number}"
    history.append(
        places.history,
        Outcome(
            attempt=attempt, outcome=outcome, release="r1", from_release=None, trigger="schedule",
            reason="healthy", sentence="s" * 5000, ended=float(number), evidence=name,
        ),
    )  # fmt: skip
    return attempt


def attempts(reports: tuple[Report, ...]) -> list[str]:
    return [item.attempt for item in reports]


def test_what_the_history_gets_is_taken_over_once(places: Layout) -> None:
    held = Spool(places)
    assert not held.gather()
    first = end(places)
    assert held.gather()
    assert not held.gather()
    second = end(places)
    assert Spool(places).gather()
    again = Spool(places)
    assert not again.gather()
    assert attempts(again.batch()) == [first, second]


def test_evidence_goes_with_the_verdict_cut_to_what_a_server_takes(places: Layout) -> None:
    samples = [{"number": number, "text": "x" * 100} for number in range(2000)]
    evidence = {"reason": "cpu_pinned", "before": {"samples": []}, "after": {"samples": samples}}
    end(places, "reverted", evidence=msgspec.json.encode(evidence))
    held = Spool(places)
    held.gather()
    (report,) = held.batch()
    assert len(bytes(report.evidence)) <= EVIDENCE_BYTES_MAX
    found = msgspec.json.decode(report.evidence)
    assert found["reason"] == "cpu_pinned"
    assert found["after"]["samples"][-1] == samples[-1]
    assert len(report.sentence) == telling.TEXT_CHARS_MAX


def test_evidence_that_is_gone_or_no_document_holds_no_report_up(places: Layout) -> None:
    end(places, "reverted", evidence=b"{torn")
    lost = end(places, "reverted", evidence=b"{}")
    for path in places.evidence.iterdir():
        if path.read_bytes() == b"{}":
            path.unlink()
    held = Spool(places)
    held.gather()
    assert [bytes(item.evidence) for item in held.batch()] == [b"null", b"null"]
    assert lost in attempts(held.batch())


def test_a_report_is_kept_until_the_server_names_it(places: Layout) -> None:
    first, second = end(places), end(places)
    held = Spool(places)
    held.gather()
    held.taken((first, "somebody else's"), dropped={})
    again = Spool(places)
    again.gather()
    assert attempts(again.batch()) == [second]


def test_an_overflow_costs_the_least_important_and_is_counted(places: Layout) -> None:
    held = Spool(places, count_max=3)
    reverts = []
    for outcome in ("reverted", "committed", "failed", "reverted", "committed", "reverted"):
        attempt = end(places, outcome)
        if outcome == "reverted":
            reverts.append(attempt)
        held.gather()
    again = Spool(places, count_max=3)
    assert attempts(again.batch()) == reverts
    assert again.dropped == {"committed": 2, "failed": 1}
    again.taken((), dropped={"committed": 1})
    assert Spool(places).dropped == {"committed": 1, "failed": 1}


def test_bytes_are_bounded_too(places: Layout) -> None:
    held = Spool(places, bytes_max=10_000)
    for _ in range(10):
        end(places)
        held.gather()
    size = sum(path.stat().st_size for path in places.spool.glob("*.json"))
    assert size <= 10_000
    assert held.waiting + held.dropped["committed"] == 10


def test_a_rotated_history_is_told_again_rather_than_lost(places: Layout) -> None:
    end(places)
    held = Spool(places)
    held.gather()
    places.history.unlink()
    fresh = end(places)
    held.gather()
    assert fresh in attempts(held.batch())


def test_enrolling_begins_after_what_the_history_has(places: Layout) -> None:
    end(places)
    spool.begin_anew(places)
    held = Spool(places)
    assert not held.gather()
    fresh = end(places)
    held.gather()
    assert attempts(held.batch()) == [fresh]
    spool.begin_anew(places)
    assert Spool(places).waiting == 0


def test_a_damaged_report_is_dropped_and_the_others_are_sent(places: Layout) -> None:
    first, second = end(places), end(places)
    held = Spool(places)
    held.gather()
    held._path(first).write_bytes(b"{torn")
    assert attempts(held.batch()) == [second]
    assert Spool(places).waiting == 1


class CutError(BaseException):
    """The process is gone."""


def test_a_process_killed_at_any_step_loses_nothing_and_repeats_only_what_has_a_name(
    places: Layout,
) -> None:
    """Each durable step is the last one once; a server counts each attempt once."""
    for last in itertools.count():
        wanted = {end(places, "reverted"), end(places)}
        known: set[str] = set()
        steps = 0

        def hook(_point: str, _where: str, last: int = last) -> None:
            nonlocal steps
            steps += 1
            if steps > last:
                raise CutError

        durable.set_fault_hook(hook)
        try:
            deliver(places, known)
            survived = True
        except CutError:
            survived = False
        finally:
            durable.set_fault_hook(None)
        deliver(places, known)
        assert wanted <= known
        assert Spool(places).waiting == 0
        if survived:
            break
    assert last > 10


def deliver(places: Layout, known: set[str]) -> None:
    held = Spool(places)
    held.gather()
    while reports := held.batch(count_max=1):
        known.update(attempts(reports))
        held.taken(tuple(attempts(reports)), dropped={})


def test_a_full_disk_leaves_it_to_the_next_time(places: Layout) -> None:
    attempt = end(places)
    held = Spool(places)

    def full(point: str, _where: str) -> None:
        if point == "write":
            raise OSError(28, os.strerror(28))

    durable.set_fault_hook(full)
    try:
        with pytest.raises(OSError, match="No space"):
            held.gather()
    finally:
        durable.set_fault_hook(None)
    held.gather()
    assert attempts(held.batch()) == [attempt]

"""Each attempt counts once; evidence is kept while there is room, the important longest."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feed.messages import EVIDENCE_BYTES_MAX, Enrolled, Report, Reports, ReportsTaken
from server.errors import RefusedError
from server.fleet import agents, reports
from server.fleet.reports import ReportView
from server.storage.database import Database
from server.web import lookups
from tests.server.machines import NOW, enrolled, report, token


def send(
    database: Database,
    agent: Enrolled,
    told: Sequence[Report],
    *,
    dropped: dict[str, int] | None = None,
    now: float = NOW,
) -> ReportsTaken:
    message = Reports(reports=tuple(told), dropped=dropped or {})
    return database.write_blocking(
        lambda session: reports.take(session, agent.agent_id, message, now=now)
    )


def kept(database: Database, **wanted: str) -> list[ReportView]:
    return database.read_blocking(
        lambda session: reports.recent(session, limit=500, **wanted)  # type: ignore[arg-type]
    )


def with_evidence(attempt: str, outcome: str, size: int) -> Report:
    return report(attempt, outcome, evidence=msgspec.Raw(b'"' + b"e" * (size - 2) + b'"'))


def test_a_report_is_kept_as_it_was_told(database: Database) -> None:
    agent = enrolled(database)
    told = report(
        "a1",
        "reverted",
        from_release="2026.11.0",
        trigger="notification",
        reason="cpu",
        sentence="CPU at 100 % for 30 s",
        seconds_in_trial=41.5,
        wire_bytes=1 << 40,
        full_bytes=1 << 41,
        evidence=msgspec.Raw(b'{"samples":[1,2]}'),
    )
    assert send(database, agent, [told], now=NOW + 5) == ReportsTaken(taken=("a1",))
    (view,) = kept(database)
    for name in ("attempt", "outcome", "release", "from_release", "trigger", "reason", "sentence"):
        assert getattr(view, name) == getattr(told, name)
    assert (view.agent_id, view.ended_at, view.received_at) == (agent.agent_id, NOW, NOW + 5)
    assert (view.wire_bytes, view.full_bytes) == (1 << 40, 1 << 41)
    found = database.read_blocking(lambda session: lookups.report(session, view.id)[1])
    assert found == b'{"samples":[1,2]}'


def test_the_same_reports_again_are_acknowledged_and_count_once(database: Database) -> None:
    agent = enrolled(database)
    told = [report("a1"), report("a2", "reverted"), report("a1")]
    for _ in range(3):
        assert send(database, agent, told, dropped={"committed": 2}).taken == ("a1", "a2")
    assert len(kept(database)) == 2
    detail = database.read_blocking(
        lambda s: agents.show(s, agent.agent_id, now=NOW, silent_after_s=60.0)
    )
    assert detail.dropped_reports == {"committed": 2}


def test_the_same_attempt_of_two_machines_is_two(database: Database) -> None:
    text = token(database)
    for number in range(2):
        send(database, enrolled(database, number, with_token=text), [report("a1")])
    assert len(kept(database)) == 2


def test_losses_add_up_by_outcome_and_unknown_outcomes_are_passed_over(
    database: Database,
) -> None:
    agent = enrolled(database)
    send(database, agent, [report("a1")], dropped={"committed": 2, "moon": 4})
    send(database, agent, [report("a2")], dropped={"committed": 1, "held": 1 << 53})
    send(database, agent, [], dropped={"held": 5})
    detail = database.read_blocking(
        lambda s: agents.show(s, agent.agent_id, now=NOW, silent_after_s=60.0)
    )
    assert detail.dropped_reports == {"committed": 3, "held": 1 << 53}


def test_a_report_is_a_sign_of_life(database: Database) -> None:
    agent = enrolled(database)
    send(database, agent, [report("a1")], now=NOW + 50)
    detail = database.read_blocking(
        lambda s: agents.show(s, agent.agent_id, now=NOW, silent_after_s=60.0)
    )
    assert detail.seen_at == NOW + 50


def test_nobody_reports_for_a_machine_that_is_not_there(database: Database) -> None:
    agent = enrolled(database)
    database.write_blocking(lambda s: agents.revoke(s, agent.agent_id, now=NOW, by="ada"))
    with pytest.raises(RefusedError):
        send(database, agent, [report("a1")])
    assert kept(database) == []


def test_evidence_that_is_too_large_is_left_out_and_the_report_is_kept(
    database: Database,
) -> None:
    agent = enrolled(database)
    told = [
        with_evidence("fits", "reverted", EVIDENCE_BYTES_MAX),
        with_evidence("large", "reverted", EVIDENCE_BYTES_MAX + 1),
        report("none", evidence=msgspec.Raw(b"null")),
    ]
    assert send(database, agent, told).taken == ("fits", "large", "none")
    by_attempt = {view.attempt: view for view in kept(database)}
    assert by_attempt["fits"].evidence_bytes == EVIDENCE_BYTES_MAX
    large = by_attempt["large"].id
    found = database.read_blocking(lambda session: lookups.report(session, large)[1])
    assert msgspec.json.decode(found) == {"omitted_bytes": EVIDENCE_BYTES_MAX + 1}
    none = by_attempt["none"].id
    assert database.read_blocking(lambda session: lookups.report(session, none)[1]) is None
    for report_id in (0, -1, 1 << 80):
        with pytest.raises(RefusedError) as caught:
            database.read_blocking(
                lambda session, which=report_id: lookups.report(session, which)  # type: ignore[misc]
            )
        assert caught.value.status == 404


def test_evidence_that_is_no_text_is_left_out_and_the_report_is_kept(database: Database) -> None:
    body = b'{"reports": [{"attempt": "a", "outcome": "held", "release": "r", "ended": 1, '
    told = msgspec.json.decode(body + b'"evidence": {"x": "\xff\xfe"}}]}', type=Reports)
    agent = enrolled(database)
    assert send(database, agent, list(told.reports)).taken == ("a",)
    (view,) = kept(database)
    _, found = database.read_blocking(lambda session: lookups.report(session, view.id))
    assert found is not None
    assert msgspec.json.decode(found) == {"omitted_bytes": len(b'{"x": "\xff\xfe"}')}


def test_the_least_important_evidence_goes_first(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "EVIDENCE_TOTAL_MAX", 5_000)
    text = token(database)
    outcomes = ["reverted", "failed", "committed", "held", "committed"]
    for number, outcome in enumerate(outcomes):
        agent = enrolled(database, number, with_token=text)
        send(database, agent, [with_evidence("a", outcome, 1_000)], now=NOW + number)
    gone: list[list[str]] = []
    for number in range(5, 10):
        agent = enrolled(database, number, with_token=text)
        send(database, agent, [with_evidence("a", "reverted", 1_000)], now=NOW + number)
        gone.append([view.outcome for view in reversed(kept(database)) if view.evidence_bytes == 0])
    assert gone[0] == ["committed"]
    assert gone[1] == ["committed", "committed"]
    assert sorted(gone[3]) == ["committed", "committed", "failed", "held"]
    assert sorted(gone[4]) == ["committed", "committed", "failed", "held", "reverted"]
    oldest = min(view.id for view in kept(database) if view.outcome == "reverted")
    assert [view.id for view in kept(database, outcome="reverted") if not view.evidence_bytes] == [
        oldest
    ]


def test_an_agent_that_reports_without_end_loses_its_own_and_nobody_elses(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "AGENT_EVIDENCE_MAX", 3_000)
    monkeypatch.setattr(reports, "AGENT_REPORTS_MAX", 6)
    text = token(database)
    quiet = enrolled(database, 1, with_token=text)
    loud = enrolled(database, 2, with_token=text)
    send(database, quiet, [with_evidence("a", "committed", 1_000)])
    for number in range(10):
        outcome = "committed" if number % 2 else "reverted"
        send(database, loud, [with_evidence(f"a{number}", outcome, 1_000)], now=NOW + number)
    mine = kept(database, agent_id=loud.agent_id)
    assert len(mine) == 6
    assert [view.outcome for view in mine].count("reverted") == 5
    assert sum(view.evidence_bytes for view in mine) == 3_000
    assert [view.evidence_bytes for view in kept(database, agent_id=quiet.agent_id)] == [1_000]


def test_many_that_report_without_end_empty_nobody_elses(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "AGENT_EVIDENCE_MAX", 3_000)
    monkeypatch.setattr(reports, "EVIDENCE_TOTAL_MAX", 8_000)
    text = token(database)
    quiet = enrolled(database, 0, with_token=text)
    send(database, quiet, [with_evidence("a", "committed", 1_000)])
    for number in range(1, 5):
        loud = enrolled(database, number, with_token=text)
        told = [with_evidence(f"a{n}", "reverted", 1_000) for n in range(4)]
        send(database, loud, told, now=NOW + number)
    assert sum(view.evidence_bytes for view in kept(database)) == 8_000
    assert [view.evidence_bytes for view in kept(database, agent_id=quiet.agent_id)] == [1_000]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["committed", "failed", "held", "reverted"]), st.integers(2, 900)
        ),
        max_size=12,
    )
)
def test_whatever_comes_the_evidence_fits(database: Database, told: list[tuple[str, int]]) -> None:
    agent = enrolled(database)
    limit = reports.EVIDENCE_TOTAL_MAX
    reports.EVIDENCE_TOTAL_MAX = 2_000
    try:
        for number, (outcome, size) in enumerate(told):
            send(database, agent, [with_evidence(f"a{number}", outcome, size)])
    finally:
        reports.EVIDENCE_TOTAL_MAX = limit
    assert sum(view.evidence_bytes for view in kept(database)) <= 2_000


def test_outcomes_are_counted_by_release(database: Database) -> None:
    agent = enrolled(database)
    send(
        database,
        agent,
        [
            report("1"),
            report("2"),
            report("3", "reverted"),
            report("4", "held", release="2026.11.2"),
        ],
    )
    assert database.read_blocking(reports.outcomes) == {
        "2026.11.1": {"committed": 2, "reverted": 1},
        "2026.11.2": {"held": 1},
    }


def test_reports_are_paged_and_filtered_from_the_newest(database: Database) -> None:
    agent = enrolled(database)
    send(database, agent, [report(f"a{n}", "reverted" if n == 2 else "held") for n in range(5)])
    first = database.read_blocking(lambda session: reports.recent(session, limit=3))
    rest = database.read_blocking(
        lambda session: reports.recent(session, limit=3, before_id=first[-1].id)
    )
    assert [view.attempt for view in first + rest] == ["a4", "a3", "a2", "a1", "a0"]
    assert [view.attempt for view in kept(database, outcome="reverted")] == ["a2"]
    assert kept(database, release="none") == []
    assert len(database.read_blocking(lambda s: reports.recent(s, before_id=1 << 70))) == 5

"""Who is offered what: the vendor's decisions hold, and phases are even."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feed import rollout
from feed.errors import ManifestError
from feed.manifest import Compatibility, Component, Form, Kind, Release
from feed.rollout import Decision, Offer, Phase, QuarantinedSet, RolloutPlan, RolloutState

NOW = 1_000_000.0
OLD = {"pattern": "1" * 64, "engine": "2" * 64}
NEW = {"pattern": "3" * 64, "engine": "4" * 64}


def release(contents: dict[str, str] = NEW, *, name: str = "r175", **changes: Any) -> Release:
    made = Release(
        schema=1,
        id=name,
        created="",
        components=tuple(
            Component(
                name=component,
                kind=Kind.PATTERN,
                version="1",
                form=Form.FILE,
                filename="f",
                length=1,
                digest=digest,
            )
            for component, digest in contents.items()
        ),
    )
    return msgspec.structs.replace(made, **changes)


def plan(state: RolloutState = RolloutState.COMPLETE, **changes: Any) -> RolloutPlan:
    made = RolloutPlan(
        schema=1, region="global", state=state, release="r175", decided="", fallback="r173"
    )
    return msgspec.structs.replace(made, **changes)


def decide(
    made: RolloutPlan,
    offered: Release | None = None,
    *,
    host: str = "host",
    active_id: str | None = "r173",
    active: dict[str, str] = OLD,
    quarantine: tuple[QuarantinedSet, ...] = (),
    now: float = NOW,
    platform: str = "linux",
) -> Offer:
    return rollout.decide(
        made,
        offered,
        host_id=host,
        platform=platform,
        agent_version="0.1.0",
        active_id=active_id,
        active=active,
        quarantine=quarantine,
        now=now,
    )


PHASE = Phase(start=NOW, end=NOW + 1000, share_from=0.5, share_to=0.75)
HOSTS = [f"host-{number}" for number in range(4000)]


def test_a_complete_rollout_is_offered_to_everyone() -> None:
    for state in (RolloutState.COMPLETE, RolloutState.ROLLING):
        offer = decide(plan(state), release())
        assert (offer.decision, offer.release) == (Decision.OFFERED, "r175")


def test_a_host_that_runs_the_content_is_current_whatever_the_release_is_called() -> None:
    offer = decide(plan(), release(), active_id="r174", active=NEW)
    assert (offer.decision, offer.release) == (Decision.CURRENT, None)


def test_a_damaged_component_makes_the_same_release_an_offer_again() -> None:
    intact = {"engine": NEW["engine"]}
    offer = decide(plan(), release(), active_id="r175", active=intact)
    assert offer.decision is Decision.OFFERED


def test_under_another_file_name_the_same_content_is_an_offer() -> None:
    named = dict.fromkeys(NEW, "f")
    offers = {
        names: rollout.decide(
            plan(),
            release(),
            host_id="h",
            platform="linux",
            agent_version="0.1.0",
            active_id="r174",
            active=NEW,
            filenames=dict(named, pattern=names),
            quarantine=(),
            now=NOW,
        ).decision
        for names in ("f", "renamed")
    }
    assert offers == {"f": Decision.CURRENT, "renamed": Decision.OFFERED}


def test_a_repair_doesnt_wait_for_its_phase() -> None:
    later = plan(
        RolloutState.ROLLING,
        phases=(msgspec.structs.replace(PHASE, start=NOW + 9e5, end=NOW + 9e6),),
    )
    offer = decide(later, release(), active_id="r175", active={})
    assert offer.decision is Decision.OFFERED


def test_a_halt_leaves_every_host_where_it_is() -> None:
    halted = plan(RolloutState.HALTED, reason="pins the CPU")
    assert rollout.target(halted, active="r173", host_id="h", now=0.0) is None
    offer = decide(halted)
    assert (offer.decision, offer.release) == (Decision.HALTED, None)
    assert "halted r175 in region global (pins the CPU); stays on r173" in offer.sentence


def test_a_halt_doesnt_take_the_release_from_those_who_run_it() -> None:
    halted = plan(RolloutState.HALTED)
    assert rollout.target(halted, active="r175", host_id="h", now=0.0) == "r175"
    assert decide(halted, release(), active_id="r175", active=NEW).decision is Decision.CURRENT


def test_a_first_install_during_a_halt_gets_the_fallback() -> None:
    halted = plan(RolloutState.HALTED)
    assert rollout.target(halted, active=None, host_id="h", now=0.0) == "r173"
    offer = decide(halted, release(OLD, name="r173"), active_id=None, active={})
    assert (offer.decision, offer.release) == (Decision.OFFERED, "r173")


def test_a_first_install_during_a_halt_without_fallback_waits() -> None:
    halted = plan(RolloutState.HALTED, fallback=None)
    assert rollout.target(halted, active=None, host_id="h", now=0.0) is None
    offer = decide(halted, active_id=None, active={})
    assert offer.decision is Decision.HALTED
    assert "there is no release to install meanwhile" in offer.sentence


def test_a_withdrawn_release_sends_hosts_back_to_the_older_one() -> None:
    withdrawn = plan(RolloutState.WITHDRAWN, reason="false positive")
    for active in ("r175", "r173", None):
        assert rollout.target(withdrawn, active=active, host_id="h", now=0.0) == "r173"
    offer = decide(withdrawn, release(OLD, name="r173"), active_id="r175", active=NEW)
    assert (offer.decision, offer.release) == (Decision.RETURN, "r173")
    assert "r175 was withdrawn (false positive)" in offer.sentence


def test_a_host_that_never_took_the_withdrawn_release_is_current() -> None:
    withdrawn = plan(RolloutState.WITHDRAWN)
    offer = decide(withdrawn, release(OLD, name="r173"), active=OLD)
    assert offer.decision is Decision.CURRENT


def test_a_release_for_another_system_is_not_offered() -> None:
    windows = release(compatibility=Compatibility(os=("win32",)))
    offer = decide(plan(), windows)
    assert (offer.decision, offer.release) == (Decision.INCOMPATIBLE, None)
    assert "is for win32; this machine is linux" in offer.sentence
    assert decide(plan(), windows, platform="win32").decision is Decision.OFFERED


def failed(changed: dict[str, str], *, until: float = NOW + 10) -> QuarantinedSet:
    return QuarantinedSet(changed=changed, release="r175", until=until)


def test_a_release_that_was_reverted_here_is_not_offered_until_the_quarantine_ends() -> None:
    entry = failed(NEW)
    offer = decide(plan(), release(), quarantine=(entry,))
    assert (offer.decision, offer.ready_at) == (Decision.QUARANTINED, NOW + 10)
    assert offer.sentence == "release r175 was reverted here; it isn't tried again yet"
    late = decide(plan(), release(), quarantine=(entry,), now=NOW + 10)
    assert late.decision is Decision.OFFERED


def test_the_same_content_under_another_name_stays_quarantined() -> None:
    offer = decide(plan(), release(name="r176"), quarantine=(failed(NEW),))
    assert offer.decision is Decision.QUARANTINED
    assert "r176 carries engine, pattern of r175, which was reverted here" in offer.sentence


def test_a_component_that_worked_is_not_punished_for_the_other_one() -> None:
    # r175 changed both and was reverted; r177 keeps the engine and fixes the pattern.
    fix = release({"pattern": "5" * 64, "engine": NEW["engine"]}, name="r177")
    assert decide(plan(), fix, quarantine=(failed(NEW),)).decision is Decision.OFFERED


def test_what_alone_was_changed_and_reverted_is_refused_in_any_company() -> None:
    other = release({"pattern": NEW["pattern"], "engine": "5" * 64})
    entry = failed({"pattern": NEW["pattern"]})
    assert decide(plan(), other, quarantine=(entry,)).decision is Decision.QUARANTINED


def test_an_entry_without_components_refuses_nothing() -> None:
    assert decide(plan(), release(), quarantine=(failed({}),)).decision is Decision.OFFERED


def test_quarantine_also_holds_against_a_withdrawal() -> None:
    withdrawn = plan(RolloutState.WITHDRAWN)
    back = release(OLD, name="r173")
    offer = decide(withdrawn, back, active_id="r175", active=NEW, quarantine=(failed(OLD),))
    assert offer.decision is Decision.QUARANTINED


def test_half_of_a_phase_is_offered_by_its_midpoint() -> None:
    rolling = plan(RolloutState.ROLLING, phases=(PHASE,))

    def offered(now: float) -> int:
        return sum(
            decide(rolling, release(), host=host, now=now).decision is Decision.OFFERED
            for host in HOSTS
        )

    everyone = offered(PHASE.end)
    assert everyone == pytest.approx(len(HOSTS) / 4, rel=0.1)
    for quarter in (1, 2, 3):
        arrived = offered(PHASE.start + quarter * 250)
        assert arrived == pytest.approx(everyone * quarter / 4, rel=0.15)
    assert offered(PHASE.start - 1) == 0


def test_positions_are_even_stable_and_another_for_each_release() -> None:
    first = [rollout.position(host, plan()) for host in HOSTS]
    assert first == [rollout.position(host, plan()) for host in HOSTS]
    for tenth in range(10):
        share = sum(tenth / 10 <= found < (tenth + 1) / 10 for found in first) / len(HOSTS)
        assert share == pytest.approx(0.1, abs=0.02)
    second = [rollout.position(host, plan(release="r177")) for host in HOSTS]
    early = [at for at, found in enumerate(first) if found < 0.1]
    assert sum(second[at] < 0.1 for at in early) / len(early) < 0.2


def test_a_waiting_host_is_told_when_and_is_offered_then() -> None:
    rolling = plan(RolloutState.ROLLING, phases=(PHASE,))
    for host in HOSTS[:200]:
        offer = decide(rolling, release(), host=host)
        if offer.ready_at is None:
            assert not 0.5 <= rollout.position(host, rolling) < 0.75
            assert "no phase of release r175 reaches this host yet" in offer.sentence
            continue
        at = decide(rolling, release(), host=host, now=offer.ready_at)
        before = decide(rolling, release(), host=host, now=offer.ready_at - 1e-3)
        assert (at.decision, before.decision) == (
            Decision.OFFERED,
            Decision.WAITING_FOR_PHASE,
        )
        place = rollout.position(host, rolling)
        assert rollout.admitted_share((PHASE,), offer.ready_at) == pytest.approx(place)
        assert f"its place is {place:.1%} of the way, 50.0% of the machines" in offer.sentence


@given(st.floats(0, 1, exclude_max=True), st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_phases_that_follow_each_other_admit_every_position_below_their_end(
    position: float, shares: list[float]
) -> None:
    bounds = [0.0, *sorted(shares)]
    phases = tuple(
        Phase(start=number, end=number + 1, share_from=low, share_to=high)
        for number, (low, high) in enumerate(itertools.pairwise(bounds))
    )
    admitted = rollout.admitted_at(position, phases)
    assert (admitted is not None) == (position < bounds[-1])
    if admitted is not None:
        assert 0 <= admitted <= len(phases)


def edited(**changes: object) -> bytes:
    data = json.loads(rollout.serialize(plan(phases=(PHASE,))))
    return json.dumps(data | changes).encode()


def phase(start: float, end: float, low: float, high: float) -> dict[str, float]:
    return {"start": start, "end": end, "share_from": low, "share_to": high}


def test_what_is_written_is_read_back() -> None:
    made = plan(phases=(PHASE,), reason="größer")
    data = rollout.serialize(made)
    assert rollout.parse(data, region="global") == made
    assert rollout.serialize(rollout.parse(data, region="global")) == data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "doesn't parse"),
        (b"[" * 100_000, "doesn't parse"),
        (b"\xff", "doesn't parse"),
        (b" " * (rollout.PLAN_BYTES_MAX + 1), "the limit is 262,144"),
        (edited(schema=2), "schema 2, this version reads 1"),
        (edited(region="japan"), "the plan is for 'japan'"),
        (edited(state="paused"), "Invalid enum value 'paused'"),
        (edited(release="../../etc"), "is not a release id"),
        (edited(fallback="a/b"), "is not a release id"),
        (edited(release=""), "is not a release id"),
        (edited(fallback=""), "is not a release id"),
        (edited(state="withdrawn", fallback=None), "withdrawn without another release"),
        (edited(state="withdrawn", fallback="r175"), "withdrawn without another release"),
        (edited(phases=[phase(0, 1, 0, 1)]).replace(b'"start": 0', b'"start": 1e999'), "parse"),
        (edited(phases=[phase(5, 4, 0, 1)]), "phase 1 doesn't follow"),
        (edited(phases=[phase(0, 1, 0, 2)]), "phase 1 doesn't follow"),
        (edited(phases=[phase(0, 1, -0.1, 1)]), "phase 1 doesn't follow"),
        (edited(phases=[phase(0, 1, 0.6, 0.5)]), "phase 1 doesn't follow"),
        (edited(phases=[phase(0, 1, 0, 0.5), phase(1, 2, 0.4, 1)]), "phase 2 doesn't follow"),
        (edited(phases=[phase(0, 1, 0, 0)] * 65), "65 phases, at most 64"),
    ],
)
def test_an_unusable_plan_is_refused_with_its_region(data: bytes, said: str) -> None:
    with pytest.raises(ManifestError, match=r"^rollout plan for global: ") as caught:
        rollout.parse(data, region="global")
    assert said in str(caught.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_error(data: bytes) -> None:
    with pytest.raises(ManifestError):
        rollout.parse(data, region="global")


def test_a_host_without_any_release_gets_the_fallback_until_its_phase_comes() -> None:
    phase = rollout.Phase(start=1000.0, end=2000.0, share_from=0.0, share_to=1.0)
    plan = rollout.RolloutPlan(
        schema=1,
        region="global",
        state=rollout.RolloutState.ROLLING,
        release="r175",
        decided="2026-01-01T00:00:00Z",
        fallback="r173",
        phases=(phase,),
    )
    assert rollout.target(plan, active=None, host_id="h", now=0.0) == "r173"
    assert rollout.target(plan, active=None, host_id="h", now=2000.0) == "r175"
    assert rollout.target(plan, active="r171", host_id="h", now=0.0) == "r175"


def test_a_release_that_needs_a_newer_agent_is_incompatible() -> None:
    newer = release(compatibility=Compatibility(agent_min="0.2"))
    offer = decide(plan(), newer)
    assert offer.decision is Decision.INCOMPATIBLE
    assert "needs agent 0.2 or newer; this is 0.1.0" in offer.sentence
    same = release(compatibility=Compatibility(agent_min="0.1.0"))
    assert decide(plan(), same).decision is Decision.OFFERED


def test_a_machine_that_reverted_its_first_release_is_given_the_one_before_it() -> None:
    made = plan()
    hurt = QuarantinedSet(changed={"x": "1"}, release="r175", until=100.0)

    def given(active: str | None, now: float) -> str | None:
        return rollout.target(made, active=active, host_id="h", now=now, quarantine=(hurt,))

    assert given(None, 50.0) == "r173"
    assert given(None, 150.0) == "r175"
    assert given("r171", 50.0) == "r175"  # decide() tells such a machine that it is quarantined

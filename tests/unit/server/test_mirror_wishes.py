"""What a mirror should have, from plans, manifests and the fleet: no disk, no network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feed import manifest
from feed.errors import ManifestError, TrustError
from feed.manifest import Component, Form, Kind, Release
from feed.rollout import RolloutPlan, RolloutState
from server.mirror import duplication, retention, signed, wishes
from server.mirror.signed import Catalogue
from server.mirror.wishes import Needs, Wishes

NAME = "virus-pattern"
FULL = 1_000_000
VERSIONS = tuple(str(number) for number in range(151, 181, 2))  # 15 of them, to 179


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def component(version: str, *, name: str = NAME, back: int = 14) -> Component:
    older = [item for item in VERSIONS if int(item) < int(version)][-back:]
    return Component(
        name=name,
        kind=Kind.PATTERN,
        version=version,
        form=Form.FILE,
        filename="p.dat",
        length=FULL,
        digest=digest(f"{name} {version}"),
        predecessors=tuple(reversed(older)),
    )


def release(version: str, *names: str) -> Release:
    return Release(
        schema=1,
        id=f"r{version}",
        created="2026-01-01T00:00:00Z",
        components=tuple(component(version, name=name) for name in names or (NAME,)),
    )


def signed_targets(
    versions: Iterable[str], *, name: str = NAME, span: int = 1000, delta_bytes: int = 2_000
) -> list[tuple[str, int, str | None, object]]:
    """Fulls, and increments between versions that are at most `span` apart, forwards."""
    versions = tuple(versions)
    found: list[tuple[str, int, str | None, object]] = [
        (manifest.payload_path(name, item), FULL, digest(f"{name} {item}"), None)
        for item in versions
    ]
    for old in versions:
        for new in versions:
            apart = int(new) - int(old)
            if 0 < apart <= span:
                promise = {
                    "base_digest": digest(f"{name} {old}"),
                    "result_digest": digest(f"{name} {new}"),
                    "result_length": FULL,
                    "format": "segments-1",
                }
                path = manifest.increment_path(name, old=old, new=new)
                found.append((path, delta_bytes * apart - apart, digest(path), promise))
    return found


def catalogue(*releases: str, span: int = 1000, more: Iterable[object] = ()) -> Catalogue:
    listed = signed_targets(VERSIONS, span=span)
    listed += [(f"releases/r{item}.json", 500, digest(f"r{item}"), None) for item in releases]
    listed += [("rollout/global.json", 300, digest("global"), None), *more]  # type: ignore[list-item]
    return signed.sort(listed)


def plan(
    offered: str,
    fallback: str | None = None,
    *,
    state: RolloutState = RolloutState.ROLLING,
    region: str = "global",
) -> RolloutPlan:
    return RolloutPlan(
        schema=1,
        region=region,
        state=state,
        release=f"r{offered}",
        fallback=f"r{fallback}" if fallback else None,
        decided="2026-01-01T00:00:00Z",
    )


def decide(
    listed: Catalogue,
    *plans: RolloutPlan,
    needs: Needs | None = None,
    versions_kept: int = 14,
    increments: wishes.Increments = "needed",
    pinned: tuple[str, ...] = (),
) -> Wishes:
    names = wishes.named(plans, pinned)
    return wishes.decide(
        listed,
        {item.region: item for item in plans},
        {name: release(name.removeprefix("r")) for name in names},
        needs=needs or {},
        increments=increments,
        versions_kept=versions_kept,
        pinned=pinned,
    )


def fulls(found: Wishes) -> list[str]:
    return [goal.component.version for goal in found.goals]


def edges(found: Wishes) -> set[tuple[str, str]]:
    return {(item.edge.old, item.edge.new) for item in found.increments}


def test_what_is_offered_and_what_it_falls_back_to_are_had_in_full() -> None:
    found = decide(catalogue("179", "177"), plan("179", "177"))
    assert fulls(found) == ["177", "179"]
    assert edges(found) == set()
    paths = {item.path for item in found.files}
    assert paths == {"rollout/global.json", "releases/r179.json", "releases/r177.json"}


def test_every_region_has_its_own_release() -> None:
    found = decide(catalogue("179", "175"), plan("179"), plan("175", region="japan"))
    assert fulls(found) == ["175", "179"]


def test_increments_lead_from_the_versions_that_agents_run() -> None:
    needs = {NAME: {"171": 4, "175": 1, "173": 0, "179": 9}}
    found = decide(catalogue("179"), plan("179"), needs=needs)
    assert edges(found) == {("171", "179"), ("175", "179")}


def test_where_no_increment_leads_directly_the_chain_is_had() -> None:
    found = decide(catalogue("179", span=4), plan("179"), needs={NAME: {"173": 1}})
    assert len(edges(found)) == 2
    reached = "173"
    for old, new in sorted(edges(found)):
        assert old == reached
        reached = new
    assert reached == "179"


def test_what_a_fallback_is_begun_with_needs_no_increments() -> None:
    found = decide(catalogue("179", "177"), plan("179", "177"), needs={NAME: {"171": 1}})
    assert edges(found) == {("171", "179")}


def test_after_a_withdrawal_the_older_release_is_what_is_offered() -> None:
    back = plan("179", "175", state=RolloutState.WITHDRAWN)
    found = decide(catalogue("179", "175"), back, needs={NAME: {"171": 1}})
    assert fulls(found) == ["175"]
    assert edges(found) == {("171", "175")}


@pytest.mark.parametrize("state", [RolloutState.HALTED, RolloutState.COMPLETE])
def test_a_halted_or_complete_release_is_kept_whole(state: RolloutState) -> None:
    found = decide(catalogue("179", "177"), plan("179", "177", state=state))
    assert fulls(found) == ["177", "179"]


def test_a_pinned_release_is_had_with_the_roads_to_it() -> None:
    found = decide(catalogue("179", "161"), plan("179"), needs={NAME: {"159": 1}}, pinned=("r161",))
    assert fulls(found) == ["161", "179"]
    assert ("159", "161") in edges(found)


def test_versions_that_nobody_signs_need_nothing() -> None:
    needs = {NAME: {"1.2.3": 4, "not a version": 1, "../..": 1}, "unknown": {"1": 1}}
    assert edges(decide(catalogue("179"), plan("179"), needs=needs)) == set()


def test_too_old_versions_are_not_helped() -> None:
    needs = {NAME: {"171": 1, "175": 1}}
    found = decide(catalogue("179"), plan("179"), needs=needs, versions_kept=2)
    assert edges(found) == {("175", "179")}


def test_all_increments_are_those_within_the_versions_kept() -> None:
    found = decide(catalogue("179"), plan("179"), increments="all", versions_kept=2)
    assert edges(found) == {("175", "177"), ("175", "179"), ("177", "179")}


def test_what_is_older_than_the_versions_kept_goes_and_newer_ones_stay() -> None:
    listed = catalogue("175")
    aims = decide(listed, plan("175")).goals
    kept = set(wishes.kept(listed, aims, versions_kept=2))
    part = listed.parts[NAME]
    stays = {item.version for item in part.payloads if item.target.served in kept}
    assert stays == {"171", "173", "175", "177", "179"}
    assert all(part.payload(item).target.copy in kept for item in stays)  # type: ignore[union-attr]


def test_a_release_that_names_what_is_not_signed_is_refused() -> None:
    listed = signed.sort([("rollout/global.json", 1, digest("x"), None)])
    with pytest.raises(ManifestError, match="component virus-pattern 179 isn't signed"):
        wishes.goals(listed, [plan("179")], {"r179": release("179")})


def test_a_release_that_names_other_bytes_than_are_signed_is_refused() -> None:
    path = manifest.payload_path(NAME, "179")
    listed = signed.sort([(path, FULL, digest("other"), None)])
    with pytest.raises(ManifestError, match="the release says 1,000,000"):
        wishes.goals(listed, [plan("179")], {"r179": release("179")})


def test_a_target_without_a_sha256_is_refused() -> None:
    with pytest.raises(TrustError, match="without a SHA-256"):
        signed.sort([("releases/r1.json", 1, None, None)])


def test_what_this_version_does_not_know_is_mirrored_whole() -> None:
    odd = [
        ("news/today.txt", 5, digest("news"), None),
        (f"components/{NAME}/not-a-version/full", 5, digest("odd"), None),
    ]
    found = decide(catalogue("179", more=odd), plan("179"))
    assert {path for path, *_ in odd} <= {item.path for item in found.files}


def test_an_increment_that_does_not_say_what_it_makes_is_nobodys_road() -> None:
    path = manifest.increment_path(NAME, old="999", new="179")
    listed = catalogue("179", more=[(path, 5, digest("odd"), {"format": 7})])
    assert ("999", "179") not in {(edge.old, edge.new) for edge in listed.parts[NAME].edges}


@given(
    st.dictionaries(st.sampled_from(VERSIONS), st.integers(0, 50)),
    st.integers(1, 14),
    st.sampled_from([2, 4, 10, 1000]),
    st.sampled_from(VERSIONS[2:]),
)
def test_every_agent_within_reach_finds_its_whole_road(
    run: dict[str, int], kept: int, span: int, offered: str
) -> None:
    listed = catalogue(offered, span=span)
    found = decide(listed, plan(offered), needs={NAME: run}, versions_kept=kept)
    had = edges(found)
    ((_, part, window),) = wishes.windows(listed, found.goals, kept)
    for old, agents in run.items():
        chain = wishes.road(part, found.goals[0], old, window) if agents else ()
        assert {(edge.old, edge.new) for edge in chain} <= had
    assert all(old in window and new in window for old, new in had)


@given(st.dictionaries(st.sampled_from(VERSIONS), st.integers(0, 50)))
def test_keeping_more_never_costs_agents_and_never_saves_room(run: dict[str, int]) -> None:
    listed = catalogue("179")
    table = retention.table(
        listed,
        {"global": plan("179")},
        {"r179": release("179")},
        needs={NAME: run},
        increments="needed",
        here={item.served: item.length for item in listed.targets()},
    )
    assert [item.versions_kept for item in table] == list(range(1, 15))
    agents = [item.agents for item in table]
    assert agents == sorted(agents, reverse=True)
    sizes = [item.disk_bytes for item in table]
    assert sizes == sorted(sizes)
    assert table[-1].agents == 0  # 14 versions back is all there are


def test_retention_counts_who_no_increment_reaches() -> None:
    listed = catalogue("179")
    table = retention.table(
        listed,
        {"global": plan("179")},
        {"r179": release("179")},
        needs={NAME: {"151": 30, "163": 8, "165": 500, "1.1": 0}},
        increments="needed",
        here={},
    )
    assert (table[6].versions_kept, table[6].agents) == (7, 38)


def roads(
    listed: Catalogue, found: Wishes, *, here: Iterable[str], paid: Iterable[str] = ()
) -> tuple[duplication.Road, ...]:
    lacking = [goal for goal in found.goals if goal.component.version not in set(here)]
    return duplication.plan(lacking, listed.parts, here={NAME: list(here)}, paid=set(paid))


def test_a_full_is_rebuilt_from_the_nearest_one_that_is_here() -> None:
    listed = catalogue("179")
    (road,) = roads(listed, decide(listed, plan("179")), here=["161", "175", "171"])
    assert road.base is not None
    assert (road.base.version, len(road.chain)) == ("175", 1)
    assert road.fetch_bytes == road.chain[0].target.length


def test_an_increment_that_agents_need_costs_nothing_more() -> None:
    listed = catalogue("179")
    found = decide(listed, plan("179"), needs={NAME: {"161": 1}})
    paid = [item.target.served for item in found.increments]
    (road,) = roads(listed, found, here=["161", "175"], paid=paid)
    assert road.base is not None
    assert (road.base.version, road.fetch_bytes) == ("161", 0)


def test_without_a_base_the_first_full_travels_and_the_next_is_built_on_it() -> None:
    listed = catalogue("179", "177")
    first, second = roads(listed, decide(listed, plan("179", "177")), here=[])
    assert first.base is None
    assert first.fetch_bytes == FULL
    assert second.base is not None
    assert second.base.version == "177"


def test_an_increment_that_saves_nothing_is_not_taken() -> None:
    listed = signed.sort(
        [
            *signed_targets(("171", "179"), delta_bytes=FULL),
            ("releases/r179.json", 1, digest("r"), None),
            ("rollout/global.json", 1, digest("g"), None),
        ]
    )
    (road,) = roads(listed, decide(listed, plan("179")), here=["171"])
    assert road.base is None

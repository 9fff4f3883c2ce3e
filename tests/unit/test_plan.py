"""What is downloaded: the cheapest road that works, and only if the disk can hold it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feed import plan
from feed.errors import RoomError
from feed.manifest import Component, Form, Kind
from feed.plan import Edge, Full, Installed, Keep, Reason, Rebuild, Wanted


def digest(version: int) -> str:
    return f"{version:064x}"


def component(
    version: int = 177, length: int = 1000, *, name: str = "virus-pattern", form: Form = Form.FILE
) -> Component:
    return Component(
        name=name,
        kind=Kind.PATTERN,
        version=str(version),
        form=form,
        filename="" if form is Form.TREE else "rules.yar",
        length=length,
        digest=digest(version),
    )


def installed(version: int = 171, length: int = 900, *, intact: bool = True) -> Installed:
    return Installed(version=str(version), digest=digest(version), length=length, intact=intact)


def edge(old: int, new: int, length: int, *, result_length: int = 1000) -> Edge:
    return Edge(
        old=str(old),
        new=str(new),
        length=length,
        base_digest=digest(old),
        result_digest=digest(new),
        result_length=result_length,
    )


def wanted(*edges: Edge, have: Installed | None = None, compressed: int | None = None) -> Wanted:
    return Wanted(component=component(), installed=have, edges=edges, compressed_length=compressed)


def step(item: Wanted, forbidden: frozenset[str] = frozenset()) -> plan.Step:
    return plan.decide([item], forbid_incrementals=forbidden).steps[0]


def reason(item: Wanted, forbidden: frozenset[str] = frozenset()) -> Reason:
    found = step(item, forbidden)
    assert isinstance(found, Full)
    return found.reason


def versions(item: Wanted) -> list[tuple[str, str]]:
    found = step(item)
    assert isinstance(found, Rebuild)
    return [(link.old, link.new) for link in found.chain]


def test_what_is_installed_intact_is_kept_and_costs_nothing() -> None:
    made = plan.decide([wanted(edge(171, 177, 5), have=installed(177, 1000))])
    assert isinstance(made.steps[0], Keep)
    assert (made.fetch_bytes, made.incoming_bytes, made.saved_bytes) == (0, 0, 0)


def test_a_direct_incremental_is_taken() -> None:
    item = wanted(edge(171, 177, 50), edge(173, 177, 20), have=installed(171))
    assert versions(item) == [("171", "177")]
    made = plan.decide([item])
    assert (made.fetch_bytes, made.saved_bytes) == (50, 950)


def test_a_chain_is_taken_when_it_is_cheaper() -> None:
    links = (edge(171, 173, 10), edge(173, 177, 20))
    assert versions(wanted(edge(171, 177, 50), *links, have=installed())) == [
        ("171", "173"),
        ("173", "177"),
    ]


def test_the_direct_incremental_wins_a_tie() -> None:
    links = (edge(171, 173, 10), edge(173, 177, 20))
    for edges in ((*links, edge(171, 177, 30)), (edge(171, 177, 30), *links)):
        assert versions(wanted(*edges, have=installed())) == [("171", "177")]


def test_a_chain_that_is_too_long_gives_way_to_a_dearer_short_one() -> None:
    stops = [171, *range(10, 10 + plan.CHAIN_EDGES_MAX), 177]
    many = [edge(old, new, 1) for old, new in itertools.pairwise(stops)]
    assert reason(wanted(*many, have=installed())) is Reason.NO_ROAD
    # reaches the last stop at a higher price, but with a link to spare
    shortcut = edge(171, stops[-2], 100)
    assert versions(wanted(*many, shortcut, have=installed())) == [
        ("171", str(stops[-2])),
        (str(stops[-2]), "177"),
    ]


def test_a_full_says_why() -> None:
    road = edge(171, 177, 5)
    assert reason(wanted(road)) is Reason.FIRST_INSTALL
    assert reason(wanted(road, have=installed(intact=False))) is Reason.BASE_DAMAGED
    assert reason(wanted(road, have=installed(169))) is Reason.NO_ROAD
    assert reason(wanted(have=installed())) is Reason.NO_ROAD
    assert reason(wanted(edge(171, 177, 1000), have=installed())) is Reason.NOT_SMALLER
    failed = frozenset({"virus-pattern"})
    assert reason(wanted(road, have=installed()), failed) is Reason.INCREMENTAL_FAILED


def test_a_damaged_component_is_fetched_even_when_its_version_is_the_wanted_one() -> None:
    assert reason(wanted(have=installed(177, intact=False))) is Reason.BASE_DAMAGED


def test_what_just_failed_for_one_component_is_still_done_for_the_other() -> None:
    both = [
        Wanted(component=component(name=name), installed=installed(), edges=(edge(171, 177, 5),))
        for name in ("engine", "pattern")
    ]
    made = plan.decide(both, forbid_incrementals=frozenset({"engine"}))
    assert [type(item) for item in made.steps] == [Full, Rebuild]
    assert made.fetch_bytes == 1005


def test_an_incremental_is_held_against_the_compressed_full() -> None:
    item = wanted(edge(171, 177, 300), have=installed(), compressed=300)
    assert reason(item) is Reason.NOT_SMALLER
    assert plan.decide([item]).fetch_bytes == 300
    assert versions(wanted(edge(171, 177, 299), have=installed(), compressed=300))


def test_a_base_with_the_right_version_and_another_content_is_no_base() -> None:
    forged = Installed(version="171", digest=digest(999), length=900)
    assert reason(wanted(edge(171, 177, 5), have=forged)) is Reason.NO_ROAD


def test_a_chain_whose_links_disagree_on_the_content_between_is_no_road() -> None:
    second = Edge(
        old="173",
        new="177",
        length=5,
        base_digest=digest(999),
        result_digest=digest(177),
        result_length=1000,
    )
    assert reason(wanted(edge(171, 173, 5), second, have=installed())) is Reason.NO_ROAD


def test_an_incremental_to_another_content_or_length_is_no_road() -> None:
    assert reason(wanted(edge(171, 177, 5, result_length=999), have=installed())) is Reason.NO_ROAD


def test_a_circle_of_incrementals_ends() -> None:
    circle = (edge(171, 173, 0), edge(173, 171, 0), edge(173, 173, 0))
    assert reason(wanted(*circle, have=installed())) is Reason.NO_ROAD


def test_room_counts_everything_fetched_and_the_whole_release() -> None:
    items = [
        Wanted(
            component=component(name="kept", version=1, length=700), installed=installed(1, 700)
        ),
        Wanted(component=component(name="new", version=2, length=400), compressed_length=90),
        Wanted(
            component=component(name="chain", version=177, length=1000),
            installed=installed(171, 900),
            edges=(edge(171, 173, 10, result_length=2000), edge(173, 177, 20)),
        ),
    ]
    made = plan.decide(items)
    assert made.fetch_bytes == 90 + 10 + 20
    assert made.incoming_bytes == (400 + 90) + (10 + 20)
    # fullest while 177 is made: 2,000 of the version between, the incremental, the result
    assert made.slots_bytes == 700 + 400 + 1000 + (2000 + 20 + 1000 - 1000)


def test_a_tree_needs_room_for_its_tar_beside_it() -> None:
    made = plan.decide([Wanted(component=component(form=Form.TREE))])
    assert made.slots_bytes == 2000


def test_an_empty_release_plan_needs_nothing() -> None:
    made = plan.decide([])
    assert (made.steps, made.fetch_bytes, made.slots_bytes) == ((), 0, 0)


def room(*, incoming: int, slots: int, same: bool, reserve: int = 10) -> None:
    made = plan.decide([wanted()])
    assert (made.incoming_bytes, made.slots_bytes) == (1000, 1000)
    plan.check_room(
        made,
        free_incoming=incoming,
        free_slots=slots,
        same_filesystem=same,
        reserve=reserve,
    )


def test_room_is_enough_to_the_byte() -> None:
    room(incoming=2010, slots=2010, same=True)
    room(incoming=1010, slots=1010, same=False)


@pytest.mark.parametrize(
    ("incoming", "slots", "same", "message"),
    [
        (2009, 2009, True, "needs 2,010 bytes, 2,009 are free in the state folder"),
        (1009, 9999, False, "needs 1,010 bytes, 1,009 are free in the incoming folder"),
        (9999, 1009, False, "needs 1,010 bytes, 1,009 are free in the slots folder"),
    ],
)
def test_a_byte_too_little_is_said_with_the_numbers(
    incoming: int, slots: int, same: bool, message: str
) -> None:
    with pytest.raises(RoomError, match=f"{message}; nothing was downloaded"):
        room(incoming=incoming, slots=slots, same=same)


def test_nothing_to_fetch_needs_no_room_in_incoming() -> None:
    made = plan.decide([wanted(have=installed(177, 1000))])
    plan.check_room(made, free_incoming=0, free_slots=1010, same_filesystem=False, reserve=10)


stops = st.integers(1, 8)
edges = st.lists(
    st.builds(
        lambda old, new, length, size: edge(old, new, length, result_length=size),
        stops, stops, st.integers(0, 400), st.sampled_from([1000, 1500]),
    ),
    max_size=25,
)  # fmt: skip
anything = st.builds(
    lambda have, roads, packed, goal: Wanted(
        component=component(goal), installed=have, edges=tuple(roads), compressed_length=packed
    ),
    st.none() | st.builds(lambda v, ok: installed(v, 1000, intact=ok), stops, st.booleans()),
    edges,
    st.none() | st.integers(0, 1200),
    stops,
)


@given(st.lists(anything, max_size=4), st.booleans())
def test_a_plan_never_costs_more_than_fulls_and_its_sums_are_its_steps(
    items: list[Wanted], forbid: bool
) -> None:
    forbidden = frozenset({"virus-pattern"}) if forbid else frozenset()
    made = plan.decide(items, forbid_incrementals=forbidden)
    assert len(made.steps) == len(items)
    assert made.saved_bytes >= 0
    assert made.slots_bytes >= sum(item.component.length for item in items)
    assert made.incoming_bytes >= made.fetch_bytes
    assert not (forbid and any(isinstance(item, Rebuild) for item in made.steps))


@given(anything)
def test_every_chain_is_connected_short_and_cheaper_than_the_full(item: Wanted) -> None:
    found = step(item)
    if not isinstance(found, Rebuild):
        return
    assert item.installed is not None
    assert item.installed.intact
    assert 1 <= len(found.chain) <= plan.CHAIN_EDGES_MAX
    assert found.chain[0].base_digest == item.installed.digest
    assert found.chain[-1].result_digest == item.component.digest
    assert found.chain[-1].result_length == item.component.length
    for first, second in itertools.pairwise(found.chain):
        assert (first.new, first.result_digest) == (second.old, second.base_digest)
    assert found.fetch_bytes < item.full_bytes


@given(anything)
def test_no_other_road_is_cheaper(item: Wanted) -> None:
    if item.installed is None or not item.installed.intact:
        return
    if item.installed.digest == item.component.digest:
        return
    cheapest: dict[str, int] = {item.installed.version: 0}
    usable = [
        road
        for road in item.edges
        if road.new != item.component.version or road.result_length == item.component.length
    ]
    for _ in range(plan.CHAIN_EDGES_MAX):
        further = dict(cheapest)
        for road in usable:
            if road.old in cheapest:
                cost = cheapest[road.old] + road.length
                further[road.new] = min(cost, further.get(road.new, cost))
        cheapest = further
    best = min(cheapest.get(item.component.version, item.full_bytes), item.full_bytes)
    assert plan.decide([item]).fetch_bytes == best

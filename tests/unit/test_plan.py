"""What is downloaded: the cheapest road that works, and only if the disk can hold it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feed import plan
from feed.errors import LimitError, RoomError
from feed.manifest import Component, Form, Kind
from feed.plan import Full, Installed, Keep, Reason, Rebuild, Room, Wanted
from feed.roads import CHAIN_LINKS_MAX, Edge, Limits


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


def step(
    item: Wanted, forbidden: frozenset[str] = frozenset(), limits: Limits | None = None
) -> plan.Step:
    return plan.decide([item], limits=limits, forbid_incrementals=forbidden).steps[0]


def reason(
    item: Wanted, forbidden: frozenset[str] = frozenset(), limits: Limits | None = None
) -> Reason:
    found = step(item, forbidden, limits)
    assert isinstance(found, Full)
    return found.reason


def versions(item: Wanted, limits: Limits | None = None) -> list[tuple[str, str]]:
    found = step(item, limits=limits)
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
    stops = [171, *range(10, 10 + CHAIN_LINKS_MAX), 177]
    many = [edge(old, new, 1) for old, new in itertools.pairwise(stops)]
    assert reason(wanted(*many, have=installed())) is Reason.REBUILD_LIMIT
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


def test_a_trees_base_is_packed_beside_what_is_made_of_it() -> None:
    item = Wanted(
        component=component(form=Form.TREE),
        installed=installed(171, 1900),
        edges=(edge(171, 177, 30),),
    )
    assert plan.decide([item]).slots_bytes == 1900 + 30 + 1000


def test_an_empty_release_plan_needs_nothing() -> None:
    made = plan.decide([])
    assert (made.steps, made.fetch_bytes, made.slots_bytes) == ((), 0, 0)


def room(*, incoming: int, slots: int, same: bool, reserve: int = 10) -> None:
    made = plan.decide([wanted()])
    assert (made.incoming_bytes, made.slots_bytes) == (1000, 1000)
    plan.check_room(
        made, Room(incoming=incoming, slots=slots, same_filesystem=same, reserve=reserve)
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
    plan.check_room(made, Room(incoming=0, slots=1010, same_filesystem=False, reserve=10))


def test_a_rebuild_over_the_limit_gives_way_to_a_shorter_chain_then_to_the_full() -> None:
    links = (edge(171, 173, 10, result_length=3000), edge(173, 177, 20))
    item = wanted(edge(171, 177, 50), *links, have=installed())
    for rebuild_bytes_max in (0, 4000):
        limits = Limits(rebuild_bytes_max=rebuild_bytes_max)
        assert len(versions(item, limits)) == 2
    for limits in (Limits(rebuild_bytes_max=3999), Limits(chain_links_max=1)):
        assert versions(item, limits) == [("171", "177")]
    for limits in (Limits(rebuild_bytes_max=999), Limits(chain_links_max=0)):
        assert reason(item, limits=limits) is Reason.REBUILD_LIMIT
        assert reason(wanted(have=installed()), limits=limits) is Reason.NO_ROAD


def test_a_chain_without_room_gives_way_to_a_dearer_one_then_to_the_full() -> None:
    links = (edge(171, 173, 10, result_length=3000), edge(173, 177, 20))
    item = wanted(edge(171, 177, 50), *links, have=installed())
    # side by side: 3,000 of the version between, 20, and 1,000; 30 in incoming
    for free, links_taken in ((4050, 2), (4049, 1), (1100, 1)):
        disk = Room(incoming=free, slots=free, same_filesystem=True, reserve=0)
        (found,) = plan.decide([item], room=disk).steps
        assert isinstance(found, Rebuild)
        assert len(found.chain) == links_taken
    # a full needs less beside the slot than any chain, and more in incoming
    disk = Room(incoming=5000, slots=1049, same_filesystem=False, reserve=0)
    (found,) = plan.decide([item], room=disk).steps
    assert isinstance(found, Full)
    assert found.reason is Reason.REBUILD_ROOM


def test_a_plan_that_fits_nowhere_is_the_cheapest_and_says_what_it_needs() -> None:
    item = wanted(edge(171, 177, 50), have=installed())
    disk = Room(incoming=10, slots=10, same_filesystem=True, reserve=0)
    made = plan.decide([item], room=disk)
    assert made == plan.decide([item])
    with pytest.raises(RoomError, match="needs 1,100 bytes, 10 are free"):
        plan.check_room(made, disk)


def test_a_run_may_fetch_its_limit_to_the_byte() -> None:
    limits = Limits(fetch_bytes_max=100)
    plan.check_bytes(100, limits)
    plan.check_bytes(40, limits, spent=60)
    plan.check_bytes(0, limits, spent=500)
    plan.check_bytes(1 << 60, Limits(), spent=1 << 60)
    with pytest.raises(LimitError, match="needs 101 bytes, 100 may be fetched in a run") as caught:
        plan.check_bytes(101, limits)
    assert caught.value.needed == 101
    with pytest.raises(LimitError, match="needs 41 bytes beside the 60 that were") as caught:
        plan.check_bytes(41, limits, spent=60)
    assert caught.value.needed == 101


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


limited = st.builds(
    Limits,
    chain_links_max=st.integers(0, 5),
    rebuild_bytes_max=st.just(0) | st.integers(1, 6000),
)
disks = st.builds(
    Room,
    incoming=st.integers(0, 6000),
    slots=st.integers(0, 8000),
    same_filesystem=st.booleans(),
    reserve=st.integers(0, 50),
)


def roads(item: Wanted, limits: Limits) -> Iterator[plan.Step]:
    """Every step the limits allow, by trying: the full, and each chain that saves something."""
    found = step(item, forbidden=frozenset({item.component.name}))
    yield found
    if not isinstance(found, Full) or found.reason is not Reason.INCREMENTAL_FAILED:
        return
    have, goal = item.installed, item.component
    assert have is not None
    chains: list[tuple[Edge, ...]] = [()]
    for _ in range(limits.chain_links_max):
        chains = [
            (*chain, link)
            for chain in chains
            for link in item.edges
            if (link.old, link.base_digest)
            == ((chain[-1].new, chain[-1].result_digest) if chain else (have.version, have.digest))
            and (link.new != goal.version or link.result_length == goal.length)
        ]
        for chain in chains:
            made = sum(link.result_length for link in chain)
            cost = sum(link.length for link in chain)
            if limits.rebuild_bytes_max and made > limits.rebuild_bytes_max:
                continue
            if chain[-1].result_digest == goal.digest and cost < item.full_bytes:
                yield Rebuild(component=goal, chain=chain, base_copy=0)


def cost(found: plan.Step) -> int:
    return 0 if isinstance(found, Keep) else found.fetch_bytes


few = st.builds(
    lambda item: msgspec.structs.replace(item, edges=item.edges[:9]), anything
)  # every chain of them is tried


@given(few, limited)
def test_the_cheapest_road_within_the_limits_is_taken(item: Wanted, limits: Limits) -> None:
    found = step(item, limits=limits)
    tried = list(roads(item, limits))
    assert cost(found) == min(map(cost, tried))
    assert isinstance(found, Full) or found in tried


@settings(deadline=None)
@given(st.lists(few, min_size=1, max_size=2), limited, disks)
def test_the_cheapest_plan_that_the_disk_can_hold_is_taken(
    items: list[Wanted], limits: Limits, disk: Room
) -> None:
    made = plan.decide(items, limits=limits, room=disk)
    fitting = [
        sum(map(cost, steps))
        for steps in itertools.product(*(roads(item, limits) for item in items))
        if holds(items, steps, disk)
    ]
    if fitting:
        plan.check_room(made, disk)
        assert made.fetch_bytes == min(fitting)
    else:
        assert made == plan.decide(items, limits=limits)
        with pytest.raises(RoomError):
            plan.check_room(made, disk)


def holds(items: list[Wanted], steps: tuple[plan.Step, ...], disk: Room) -> bool:
    """Whether there is room, counted anew: everything fetched, all contents, the fullest link."""
    incoming, beside = 0, [0]
    for item, found in zip(items, steps, strict=True):
        if isinstance(found, Full):
            incoming += item.component.length + (item.compressed_length or 0)
        if isinstance(found, Rebuild):
            incoming += found.fetch_bytes
            base = found.base_copy
            for link in found.chain:
                beside.append(base + link.length + link.result_length - item.component.length)
                base = link.result_length
    slots = sum(item.component.length for item in items) + max(beside)
    if disk.same_filesystem:
        return incoming + slots + disk.reserve <= min(disk.incoming, disk.slots)
    is_tight = incoming and incoming + disk.reserve > disk.incoming
    return not is_tight and slots + disk.reserve <= disk.slots


@given(anything)
def test_every_chain_is_connected_short_and_cheaper_than_the_full(item: Wanted) -> None:
    found = step(item)
    if not isinstance(found, Rebuild):
        return
    assert item.installed is not None
    assert item.installed.intact
    assert 1 <= len(found.chain) <= CHAIN_LINKS_MAX
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
    for _ in range(CHAIN_LINKS_MAX):
        further = dict(cheapest)
        for road in usable:
            if road.old in cheapest:
                cost = cheapest[road.old] + road.length
                further[road.new] = min(cost, further.get(road.new, cost))
        cheapest = further
    best = min(cheapest.get(item.component.version, item.full_bytes), item.full_bytes)
    assert plan.decide([item]).fetch_bytes == best

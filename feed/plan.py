"""What to download for a release: keep, rebuild or fetch in full, per component.

Pure. The cheapest road in bytes is taken; on ties the shorter chain, and a
full rather than an incremental that saves nothing.

 * A base counts only when it is intact and its digest is the edge's own.
 * A component whose incremental just failed goes in full, in the same run.
 * Room is counted from the plan before the first byte is fetched: everything
   fetched lies in incoming at once; the slot takes the whole release, kept
   components too, since it holds a complete installation.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from feed.errors import RoomError
from feed.manifest import Component, Form

# Each link rebuilds the whole component once, and a failed one wastes them all.
CHAIN_EDGES_MAX = 4


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """An incremental the feed offers; lengths in bytes, digests of contents.

    length is the incremental's own; result_length what it rebuilds.
    """

    old: str
    new: str
    length: int
    base_digest: str
    result_digest: str
    result_length: int


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """What the active slot holds of a component.

    length is of the content (a tree's tar). intact: it is as sealed.
    """

    version: str
    digest: str
    length: int
    intact: bool = True


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A component of the release, what is installed of it and which roads exist.

    compressed_length is that of the full's compressed copy, None when there is
    none or its size isn't known.
    """

    component: Component
    installed: Installed | None = None
    edges: tuple[Edge, ...] = ()
    compressed_length: int | None = None

    @property
    def full_bytes(self) -> int:
        """What the full costs on the road."""
        if self.compressed_length is None:
            return self.component.length
        return min(self.component.length, self.compressed_length)


class Reason(StrEnum):
    """Why a component goes in full."""

    FIRST_INSTALL = "first_install"
    BASE_DAMAGED = "base_damaged"
    NO_ROAD = "no_incremental_from_installed"
    NOT_SMALLER = "incremental_not_smaller"
    INCREMENTAL_FAILED = "incremental_failed"


class Keep(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Nothing to fetch: copied from the active slot."""

    component: Component


class Rebuild(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Rebuilt from the active slot by `chain`, applied in order."""

    component: Component
    chain: tuple[Edge, ...]
    base_length: int

    @property
    def fetch_bytes(self) -> int:
        return sum(edge.length for edge in self.chain)


class Full(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Fetched whole; fetch_bytes is its compressed copy when that is smaller."""

    component: Component
    reason: Reason
    fetch_bytes: int


Step = Keep | Rebuild | Full


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One step a component, in the release's order; all sizes in bytes.

    fetch_bytes: over the road. full_bytes: what fulls of all that isn't kept
    would have cost. incoming_bytes: room for what is
    fetched. slots_bytes: room for the release's content and, since components
    are put together one at a time, for the neediest one's intermediates.
    """

    steps: tuple[Step, ...]
    fetch_bytes: int
    full_bytes: int
    incoming_bytes: int
    slots_bytes: int

    @property
    def saved_bytes(self) -> int:
        """What the incrementals save against fulls."""
        return self.full_bytes - self.fetch_bytes


def decide(wanted: Iterable[Wanted], *, forbid_incrementals: frozenset[str] = frozenset()) -> Plan:
    """The plan that fetches the fewest bytes.

    forbid_incrementals names the components whose incremental just failed.
    """
    items = tuple(wanted)
    steps = tuple(_step(item, forbid_incrementals) for item in items)
    pairs = tuple(zip(items, steps, strict=True))
    content = sum(item.component.length for item in items)
    return Plan(
        steps=steps,
        fetch_bytes=sum(step.fetch_bytes for step in steps if not isinstance(step, Keep)),
        full_bytes=sum(item.full_bytes for item, step in pairs if not isinstance(step, Keep)),
        incoming_bytes=sum(_incoming(item, step) for item, step in pairs),
        slots_bytes=content + max((_scratch(step) for step in steps), default=0),
    )


def check_room(
    plan: Plan, *, free_incoming: int, free_slots: int, same_filesystem: bool, reserve: int
) -> None:
    """Refuse a plan that the disk can't hold with `reserve` bytes left over.

    free_slots counts what emptying the spare slot sets free, if the stager
    empties it first.

    Raises RoomError: what is needed and what is free.
    """
    if same_filesystem:
        need = plan.incoming_bytes + plan.slots_bytes
        _check_free(need + reserve, min(free_incoming, free_slots), "the state folder")
        return
    if plan.incoming_bytes:
        _check_free(plan.incoming_bytes + reserve, free_incoming, "the incoming folder")
    _check_free(plan.slots_bytes + reserve, free_slots, "the slots folder")


def _check_free(need: int, free: int, where: str) -> None:
    if need > free:
        raise RoomError(
            f"needs {need:,} bytes, {free:,} are free in {where}; nothing was downloaded"
        )


def _step(item: Wanted, forbidden: frozenset[str]) -> Step:
    component, installed = item.component, item.installed
    if installed is None:
        return _full(item, Reason.FIRST_INSTALL)
    if not installed.intact:
        return _full(item, Reason.BASE_DAMAGED)
    if installed.digest == component.digest:
        return Keep(component=component)
    if component.name in forbidden:
        return _full(item, Reason.INCREMENTAL_FAILED)
    chain = cheapest_chain(item.edges, installed=installed, component=component)
    if chain is None:
        return _full(item, Reason.NO_ROAD)
    if sum(edge.length for edge in chain) >= item.full_bytes:
        return _full(item, Reason.NOT_SMALLER)
    return Rebuild(component=component, chain=chain, base_length=installed.length)


def _full(item: Wanted, reason: Reason) -> Full:
    return Full(component=item.component, reason=reason, fetch_bytes=item.full_bytes)


def cheapest_chain(
    edges: Iterable[Edge], *, installed: Installed, component: Component
) -> tuple[Edge, ...] | None:
    """The edges from what is installed to `component` with the fewest bytes.

    At most CHAIN_EDGES_MAX of them; the shorter chain on ties; None if none
    leads there. Dijkstra over (version, digest); a place is worth visiting
    again only with fewer edges, since the chain is capped.
    """
    roads = _by_base(edges)
    goal = (component.version, component.digest)
    fewest: dict[tuple[str, str], int] = {}
    tried = 0  # breaks ties in the heap before chains would be compared
    heap: list[tuple[int, int, int, tuple[Edge, ...]]] = [(0, 0, 0, ())]
    while heap:
        cost, hops, _, chain = heapq.heappop(heap)
        place = (
            (chain[-1].new, chain[-1].result_digest)
            if chain
            else (installed.version, installed.digest)
        )
        if place == goal:
            return chain
        if hops >= fewest.get(place, CHAIN_EDGES_MAX):
            continue
        fewest[place] = hops
        for edge in roads.get(place, ()):
            if _leads_astray(edge, component):
                continue
            tried += 1
            heapq.heappush(heap, (cost + edge.length, hops + 1, tried, (*chain, edge)))
    return None


def _by_base(edges: Iterable[Edge]) -> dict[tuple[str, str], list[Edge]]:
    found: dict[tuple[str, str], list[Edge]] = {}
    for edge in edges:
        found.setdefault((edge.old, edge.base_digest), []).append(edge)
    return found


def _leads_astray(edge: Edge, component: Component) -> bool:
    """Whether the edge claims the wanted version with another content."""
    claimed = (edge.result_digest, edge.result_length)
    return edge.new == component.version and claimed != (component.digest, component.length)


def _incoming(item: Wanted, step: Step) -> int:
    """Room in incoming: a full lies beside its compressed copy while it is unpacked."""
    match step:
        case Keep():
            return 0
        case Rebuild():
            return step.fetch_bytes
        case Full():
            return step.component.length + (item.compressed_length or 0)


def _scratch(step: Step) -> int:
    """Room for staging beyond the component itself, at its fullest moment.

    The stager works on copies: a link needs its base, its incremental and its
    result side by side; a tree lies beside its tar while it is unpacked.
    """
    length = step.component.length
    fullest = 2 * length if step.component.form is Form.TREE else length
    if isinstance(step, Rebuild):
        sizes = (step.base_length, *(edge.result_length for edge in step.chain))
        pairs = zip(itertools.pairwise(sizes), step.chain, strict=True)
        fullest = max(fullest, *(base + made + edge.length for (base, made), edge in pairs))
    return fullest - length

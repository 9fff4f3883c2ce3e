"""The chain of incrementals from one version to another that costs the fewest bytes.

Pure. Dijkstra over (version, content digest) within bounds: how many links, how
many bytes they make, how much room the fullest of them takes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from feed.manifest import Component

# Each link rebuilds the whole component once, and a failed one wastes them all.
CHAIN_LINKS_MAX = 4

# Four links of 1 GiB each; docs/performance.md says how fast links are.
REBUILD_BYTES_MAX = 4 << 30

Place = tuple[str, str]  # a version and the digest of its content


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


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan may take; 0 is no limit where bytes are meant.

    fetch_bytes_max: payloads of one run. chain_links_max: incrementals applied
    one after the other for a component, 0: none. rebuild_bytes_max: what they
    make, links between included.
    """

    fetch_bytes_max: int = 0
    chain_links_max: int = CHAIN_LINKS_MAX
    rebuild_bytes_max: int = REBUILD_BYTES_MAX

    def allow_rebuild(self, *, links: int, made: int) -> bool:
        """Whether a chain may have so many links, which make so many bytes in all."""
        return links <= self.chain_links_max and made <= (self.rebuild_bytes_max or made)


class Bounds(NamedTuple):
    """What a chain has to stay within.

    room: bytes beside the component at the fullest link, None: as many as it takes.
    """

    limits: Limits
    room: int | None = None


class _Road(NamedTuple):
    """A chain that has come so far, ordered by bytes, then links.

    made: bytes that its links make. length: what the next one's base takes of the room.
    """

    cost: int
    links: int
    tried: int  # breaks ties in the heap before chains would be compared
    made: int
    length: int
    chain: tuple[Edge, ...]

    def beats(self, other: _Road) -> bool:
        """Whether, found earlier, it leaves the other nothing to gain from the same place."""
        return self.links <= other.links and self.made <= other.made and self.length <= other.length


def cheapest_chain(
    edges: Iterable[Edge], *, base: Place, base_copy: int, component: Component, bounds: Bounds
) -> tuple[Edge, ...] | None:
    """The edges from `base` to `component` with the fewest bytes.

    base_copy is what the base itself takes of the room.
    The shorter chain on ties; None if none within the bounds leads there. A
    place is worth visiting again only with less of what the bounds count.
    """
    by_base = _by_base(edges)
    goal = (component.version, component.digest)
    visited: dict[Place, list[_Road]] = {}
    tried = 0
    heap = [_Road(0, 0, 0, 0, base_copy, ())]
    while heap:
        road = heapq.heappop(heap)
        place = _end(road.chain) or base
        if place == goal:
            return road.chain
        known = visited.setdefault(place, [])
        if any(other.beats(road) for other in known):
            continue
        known.append(road)
        for edge in by_base.get(place, ()):
            tried += 1
            longer = _with(road, edge, tried)
            is_allowed = bounds.limits.allow_rebuild(links=longer.links, made=longer.made)
            if is_allowed and _fits(road, edge, component, bounds.room):
                heapq.heappush(heap, longer)
    return None


def _with(road: _Road, edge: Edge, tried: int) -> _Road:
    return _Road(
        cost=road.cost + edge.length,
        links=road.links + 1,
        tried=tried,
        made=road.made + edge.result_length,
        length=edge.result_length,
        chain=(*road.chain, edge),
    )


def _end(chain: tuple[Edge, ...]) -> Place | None:
    return (chain[-1].new, chain[-1].result_digest) if chain else None


def _by_base(edges: Iterable[Edge]) -> dict[Place, list[Edge]]:
    found: dict[Place, list[Edge]] = {}
    for edge in edges:
        found.setdefault((edge.old, edge.base_digest), []).append(edge)
    return found


def _fits(road: _Road, edge: Edge, component: Component, room: int | None) -> bool:
    """Whether a link leads to what was signed, within the room."""
    claimed = (edge.result_digest, edge.result_length)
    if edge.new == component.version and claimed != (component.digest, component.length):
        return False
    return room is None or room_at(road.length, edge) - component.length <= room


def room_at(base_length: int, edge: Edge) -> int:
    """Bytes on the disk while a link is applied: its base, itself and what it makes."""
    return base_length + edge.length + edge.result_length

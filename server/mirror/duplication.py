"""By which road a full comes here: rebuilt from one that is here, or over the network.

Pure. Component duplication: an increment that is fetched for the agents
anyway, or is here already, costs nothing more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from feed import plan as planning
from feed.plan import Installed, Rebuild, Wanted
from server.mirror.signed import Increment, Part, Payload
from server.mirror.wishes import Goal


class Road(msgspec.Struct, frozen=True, kw_only=True):
    """How to get one full: by `chain` from `base`; without a base, in full.

    fetch_bytes is what it costs beyond what is fetched anyway.
    """

    goal: Goal
    fetch_bytes: int
    base: Payload | None = None
    chain: tuple[Increment, ...] = ()

    @property
    def room_bytes(self) -> int:
        """What it takes of the disk at its fullest: the copy beside it, links between, itself."""
        target = self.goal.payload.target
        copy = self.goal.payload.compressed_length
        links = sorted((item.edge.result_length for item in self.chain[:-1]), reverse=True)
        increments = sum(item.target.length for item in self.chain)
        return (
            target.length + (target.length if copy is None else copy) + sum(links[:2]) + increments
        )


def choose(goal: Goal, part: Part, *, bases: Iterable[str], paid: Collection[str]) -> Road:
    """The cheapest road to `goal` from the versions in `bases`, whose fulls are here.

    paid: where increments are served that cost nothing more.
    """
    payload = goal.payload
    roads = [Road(goal=goal, fetch_bytes=payload.road_bytes)]
    for which in bases:
        base = part.payload(which)
        chain = _chain(goal, part, base, paid) if base and base != payload else ()
        if chain:
            cost = sum(item.target.length for item in chain if item.target.served not in paid)
            roads.append(Road(goal=goal, fetch_bytes=cost, base=base, chain=chain))
    return min(roads, key=lambda road: (road.fetch_bytes, len(road.chain)))


def _chain(goal: Goal, part: Part, base: Payload, paid: Collection[str]) -> tuple[Increment, ...]:
    edges = tuple(
        msgspec.structs.replace(item.edge, length=0) if item.target.served in paid else item.edge
        for item in part.increments
    )
    wanted = Wanted(
        component=goal.component,
        installed=Installed(
            version=base.version, digest=base.target.digest, length=base.target.length
        ),
        edges=edges,
        compressed_length=goal.payload.compressed_length or None,
    )
    step = planning.decide([wanted]).steps[0]
    return tuple(map(part.increment, step.chain)) if isinstance(step, Rebuild) else ()


def plan(
    lacking: Iterable[Goal],
    parts: Mapping[str, Part],
    *,
    here: Mapping[str, Collection[str]],
    paid: Collection[str],
) -> tuple[Road, ...]:
    """The roads to all that is lacking, in order: what came earlier is a base for what follows.

    here: {component: versions whose fulls are here}.
    """
    bases = {name: set(versions) for name, versions in here.items()}
    free = set(paid)
    roads = []
    for goal in lacking:
        item = goal.component
        known = bases.setdefault(item.name, set())
        road = choose(goal, parts[item.name], bases=sorted(known), paid=free)
        roads.append(road)
        known.add(item.version)
        free |= {increment.target.served for increment in road.chain}
    return tuple(roads)


def room_bytes(roads: Iterable[Road], increments: Iterable[Increment]) -> int:
    """What the disk has to have free for all of it at once; an upper bound."""
    return sum(item.target.length for item in increments) + sum(item.room_bytes for item in roads)

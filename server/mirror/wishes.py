"""What a mirror should have: fulls that are offered, increments that agents can use.

Pure. What isn't here of it is fetched before a new release is served.

 * In full: every component of each release that a plan offers, and of the one
   that it falls back to.
 * Increments: those on the roads that agents will choose (feed.plan, with the
   same edges as theirs) from the versions they run; or all of them.
 * Both within the versions kept: the newest that is offered, and so many
   signed before it. What is here of these stays, what is older goes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Literal

import msgspec

from feed import plan as planning
from feed import version
from feed.manifest import Component, Release
from feed.plan import Installed, Rebuild, Wanted
from feed.roads import Edge
from feed.rollout import RolloutPlan, RolloutState
from server.mirror.signed import Catalogue, Increment, Part, Payload, Target

# {component: {version: agents that run it}}
Needs = Mapping[str, Mapping[str, int]]
Increments = Literal["needed", "all"]


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """A component version that agents may come to; release names one that has it.

    is_offered: agents are sent here from others, not only to begin with.
    """

    component: Component
    payload: Payload
    release: str
    is_offered: bool


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What to have: whole files, fulls (with their compressed copies), and increments."""

    files: tuple[Target, ...]
    goals: tuple[Goal, ...]
    increments: tuple[Increment, ...]

    def served(self) -> Iterator[str]:
        """Where all of it lies below the feed's targets, compressed copies included."""
        yield from (item.served for item in self.files)
        yield from (item.target.served for item in self.increments)
        for goal in self.goals:
            yield from (goal.payload.target.served, goal.payload.target.copy)


def named(plans: Iterable[RolloutPlan], pinned: Collection[str] = ()) -> tuple[str, ...]:
    """The releases whose manifests decide the rest."""
    found: dict[str, None] = {}
    for plan in plans:
        found |= dict.fromkeys(item for item in (plan.release, plan.fallback) if item)
    return tuple(found | dict.fromkeys(pinned))


def is_urgent(before: Mapping[str, RolloutPlan], after: Mapping[str, RolloutPlan]) -> bool:
    """Whether a region is stopped or sent back by `after`: nothing that is lacking delays that."""
    stops = (RolloutState.HALTED, RolloutState.WITHDRAWN)
    return any(
        plan.state in stops and (region not in before or before[region].state != plan.state)
        for region, plan in after.items()
    )


def goals(
    catalogue: Catalogue,
    plans: Iterable[RolloutPlan],
    releases: Mapping[str, Release],
    pinned: Collection[str] = (),
) -> tuple[Goal, ...]:
    """What agents may come to, oldest versions first. pinned: releases that are held here.

    Raises ManifestError: a release names what isn't signed.
    """
    offered, begun_with = set(pinned), set[str]()
    for plan in plans:
        if plan.state is RolloutState.WITHDRAWN:
            offered |= {plan.fallback or plan.release}
        else:
            offered.add(plan.release)
            begun_with |= {plan.fallback} if plan.fallback else set()
    found: dict[tuple[str, str], Goal] = {}
    for release in (*sorted(offered), *sorted(begun_with - offered)):
        for item in releases[release].components:
            goal = Goal(
                component=item,
                payload=catalogue.payload(item, release=release),
                release=release,
                is_offered=release in offered,
            )
            found.setdefault((item.name, item.version), goal)
    return tuple(sorted(found.values(), key=_age))


def _age(goal: Goal) -> tuple[str, tuple[int, ...]]:
    return goal.component.name, version.parse(goal.component.version)


def decide(
    catalogue: Catalogue,
    plans: Mapping[str, RolloutPlan],
    releases: Mapping[str, Release],
    *,
    needs: Needs,
    increments: Increments,
    versions_kept: int,
    pinned: Collection[str] = (),
) -> Wishes:
    """All that there should be. Raises ManifestError: a release names what isn't signed."""
    aims = goals(catalogue, plans.values(), releases, pinned)
    wanted: dict[str, Increment] = {}
    for name, part, window in windows(catalogue, aims, versions_kept):
        found = (
            inside(part, window)
            if increments == "all"
            else _needed(part, [aim for aim in aims if aim.component.name == name], window, needs)
        )
        wanted |= {item.target.path: item for item in found}
    manifests = (catalogue.releases[item] for item in named(plans.values(), pinned))
    return Wishes(
        files=(*catalogue.others, *catalogue.plans.values(), *manifests),
        goals=aims,
        increments=tuple(wanted.values()),
    )


def kept(catalogue: Catalogue, aims: Iterable[Goal], *, versions_kept: int) -> Iterator[str]:
    """Where all lies that may stay if it is here: what is signed, within the versions kept."""
    for target in (*catalogue.others, *catalogue.plans.values(), *catalogue.releases.values()):
        yield target.served
    for _, part, window in windows(catalogue, aims, versions_kept):
        for payload in part.payloads:
            if payload.version in window:
                yield from (payload.target.served, payload.target.copy)
        yield from (item.target.served for item in inside(part, window))


def windows(
    catalogue: Catalogue, aims: Iterable[Goal], versions_kept: int
) -> Iterator[tuple[str, Part, frozenset[str]]]:
    """Each offered component with the versions of it that are kept."""
    by_name: dict[str, set[str]] = {}
    for aim in aims:
        by_name.setdefault(aim.component.name, set()).add(aim.component.version)
    for name, reached in by_name.items():
        part = catalogue.parts[name]
        yield name, part, frozenset(reached | _window(part, reached, versions_kept))


def _window(part: Part, reached: set[str], versions_kept: int) -> set[str]:
    """All but what is too old. Newer ones than any offered are kept: they were withdrawn."""
    known = {item.version for item in part.payloads} | reached
    known |= {end for edge in part.edges for end in (edge.old, edge.new)}
    newest = max(map(version.parse, reached))
    older = sorted((v for v in known if version.parse(v) < newest), key=version.parse)
    return known - set(older[: max(len(older) - versions_kept, 0)])


def inside(part: Part, window: Collection[str]) -> list[Increment]:
    """The increments that begin and end at versions that are kept."""
    return [item for item in part.increments if {item.edge.old, item.edge.new} <= set(window)]


def _needed(
    part: Part, aims: Iterable[Goal], window: Collection[str], needs: Needs
) -> Iterator[Increment]:
    for aim in aims:
        if not aim.is_offered:
            continue
        for old, agents in needs.get(aim.component.name, {}).items():
            if agents > 0:
                yield from map(part.increment, road(part, aim, old, window))


def road(part: Part, aim: Goal, old: str, window: Collection[str]) -> tuple[Edge, ...]:
    """The increments by which an agent comes from version `old`; none if it takes the full."""
    if old not in window or old == aim.component.version:
        return ()
    chain = _agents_choice(part, aim, old)
    return chain if all(edge.old in window and edge.new in window for edge in chain) else ()


def _agents_choice(part: Part, aim: Goal, old: str) -> tuple[Edge, ...]:
    item = aim.component
    looked_at = {old, *item.predecessors, item.version}
    edges = tuple(edge for edge in part.edges if {edge.old, edge.new} <= looked_at)
    start = _place(part, old)
    if start is None:
        return ()
    wanted = Wanted(
        component=item,
        installed=start,
        edges=edges,
        compressed_length=aim.payload.compressed_length or None,
    )
    step = planning.decide([wanted]).steps[0]
    return step.chain if isinstance(step, Rebuild) else ()


def _place(part: Part, which: str) -> Installed | None:
    """What an agent on that version has, by what is signed about it; None: nothing is."""
    payload = part.payload(which)
    if payload is not None:
        target = payload.target
        return Installed(version=which, digest=target.digest, length=target.length)
    digests = (edge.base_digest for edge in part.edges if edge.old == which)
    digest = next(digests, None)
    return Installed(version=which, digest=digest, length=0) if digest else None

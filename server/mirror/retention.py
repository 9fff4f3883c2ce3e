"""What it costs to keep more or fewer versions: bytes on the disk, agents sent to fulls.

Pure. "7 versions: 38 agents would download fulls."
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from feed.manifest import INCREMENTALS_KEPT, Release
from feed.rollout import RolloutPlan
from server.mirror import wishes
from server.mirror.signed import Catalogue, Part
from server.mirror.wishes import Goal, Increments, Needs


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Keeping so many versions of each component before the newest.

    disk_bytes: all that would be served. agents: at least so many have a component
    from whose version no increment leads to what is offered, the most of one component.
    """

    versions_kept: int
    disk_bytes: int
    agents: int


def table(
    catalogue: Catalogue,
    plans: Mapping[str, RolloutPlan],
    releases: Mapping[str, Release],
    *,
    needs: Needs,
    increments: Increments,
    here: Mapping[str, int],
) -> tuple[Choice, ...]:
    """Every choice there is. here: {where it is served: bytes}."""
    aims = wishes.goals(catalogue, plans.values(), releases)
    lengths = {target.served: target.length for target in catalogue.targets()}
    for part in catalogue.parts.values():
        for payload in part.payloads:
            lengths[payload.target.copy] = payload.compressed_length or 0
    lengths |= here
    choices = []
    for kept in range(1, INCREMENTALS_KEPT + 1):
        wanted = wishes.decide(
            catalogue,
            plans,
            releases,
            needs=needs,
            increments=increments,
            versions_kept=kept,
        )
        stays = set(here) & set(wishes.kept(catalogue, aims, versions_kept=kept))
        fulls = (
            _sent_to_fulls(part, [aim for aim in aims if aim.component.name == name], window, needs)
            for name, part, window in wishes.windows(catalogue, aims, kept)
        )
        choices.append(
            Choice(
                versions_kept=kept,
                disk_bytes=sum(lengths[path] for path in stays | set(wanted.served())),
                agents=max(fulls, default=0),
            )
        )
    return tuple(choices)


def _sent_to_fulls(part: Part, aims: list[Goal], window: frozenset[str], needs: Needs) -> int:
    offered = [aim for aim in aims if aim.is_offered]
    name = aims[0].component.name
    return sum(
        agents
        for old, agents in needs.get(name, {}).items()
        if all(aim.component.version != old for aim in aims)
        and not any(wishes.road(part, aim, old, window) for aim in offered)
    )

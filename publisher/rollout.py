"""Who is offered which release: the signed plans of the regions.

Each command changes plans in memory and signs once: the rollout role, snapshot
and timestamp. Neither the components' keys nor the releases' are needed, so a
halt can come from a machine that could never author a release.

A new plan's fallback is the release the region was on before, unless that one
was halted or withdrawn: then it is what that one fell back to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from feed import durable, manifest, rollout
from feed.rollout import RolloutPlan, RolloutState
from publisher.catalogue import Catalogue
from publisher.errors import RefusedError
from publisher.home import Desk, make_folder
from publisher.metadata import PUBLIC_MODE, ROLLOUT, digest_of
from publisher.staging import StagedTarget

OFFERED = (RolloutState.ROLLING, RolloutState.COMPLETE)


def start(desk: Desk, release_id: str, *, regions: Sequence[str] = ()) -> list[RolloutPlan]:
    """Offer `release_id` to everybody in `regions` (none named: all configured), now.

    Raises RefusedError: not published, or an unknown region. SigningError.
    """
    catalogue = Catalogue(desk.repository, desk.home.targets)
    catalogue.sequence(release_id)
    plans = []
    for region in _configured(desk, regions):
        before = catalogue.plan(region)
        plans.append(
            RolloutPlan(
                schema=rollout.SCHEMA,
                region=region,
                state=RolloutState.ROLLING,
                release=release_id,
                decided=_now(desk),
                fallback=_fallback(before, release_id),
            )
        )
    _sign(desk, plans)
    return plans


def halt(desk: Desk, *, reason: str, regions: Sequence[str] = ()) -> list[RolloutPlan]:
    """Offer the current release to nobody new, in `regions` (none named: everywhere).

    Raises RefusedError: nothing is rolling there. SigningError.
    """
    return _decide(
        desk,
        regions,
        lambda plan: plan.state in OFFERED,
        nothing="nothing is being rolled out",
        state=RolloutState.HALTED,
        reason=reason,
    )


def resume(desk: Desk, *, regions: Sequence[str] = ()) -> list[RolloutPlan]:
    """Go on with what was halted, in `regions` (none named: everywhere).

    Raises RefusedError: nothing is halted there. SigningError.
    """
    return _decide(
        desk,
        regions,
        lambda plan: plan.state is RolloutState.HALTED,
        nothing="nothing is halted",
        state=RolloutState.ROLLING,
        reason="",
    )


def withdraw(desk: Desk, *, to: str, reason: str, regions: Sequence[str] = ()) -> list[RolloutPlan]:
    """Send everybody in `regions` (none named: everywhere) back to the older release `to`.

    Raises RefusedError: `to` isn't published or isn't older. SigningError.
    """
    catalogue = Catalogue(desk.repository, desk.home.targets)
    sequence = catalogue.sequence(to)
    return _decide(
        desk,
        regions,
        lambda plan: catalogue.sequence(plan.release) > sequence,
        nothing=f"no region is on a release newer than {to}",
        state=RolloutState.WITHDRAWN,
        reason=reason,
        fallback=to,
    )


def _decide(
    desk: Desk,
    regions: Sequence[str],
    applies: Callable[[RolloutPlan], bool],
    *,
    nothing: str,
    **changes: object,
) -> list[RolloutPlan]:
    """Change the plans that `applies` to; if regions are named, it has to apply to each."""
    catalogue = Catalogue(desk.repository, desk.home.targets)
    candidates = map(catalogue.plan, regions) if regions else catalogue.plans()
    chosen = [plan for plan in candidates if plan and applies(plan)]
    if not chosen or (regions and len(chosen) < len(regions)):
        where = f" in {', '.join(regions)}" if regions else ""
        raise RefusedError(f"{nothing}{where}; see `publisher rollout show`")
    plans = [msgspec.structs.replace(plan, decided=_now(desk), **changes) for plan in chosen]
    _sign(desk, plans)
    return plans


def _configured(desk: Desk, regions: Sequence[str]) -> Sequence[str]:
    unknown = set(regions) - set(desk.settings.regions)
    if unknown:
        raise RefusedError(
            f"region {', '.join(sorted(unknown))} isn't configured; add it to `regions` in "
            f"{desk.home.settings} (now: {', '.join(desk.settings.regions)})"
        )
    return regions or desk.settings.regions


def _fallback(before: RolloutPlan | None, release_id: str) -> str | None:
    if before is None:
        return None
    if before.release == release_id or before.state not in OFFERED:
        return before.fallback if before.fallback != release_id else None
    return before.release


def _sign(desk: Desk, plans: list[RolloutPlan]) -> None:
    repository = desk.repository
    role = repository.change(ROLLOUT)
    repository.require_keys()
    for plan in plans:
        data = rollout.serialize(plan)
        rollout.parse(data, region=plan.region)
        target = StagedTarget(
            role=ROLLOUT,
            path=manifest.rollout_path(plan.region),
            length=len(data),
            sha256=digest_of(data),
        ).as_target()
        _write(desk.home.targets / target.get_prefixed_paths()[0], data)
        role.targets[target.path] = target
    repository.save()


def _write(path: Path, data: bytes) -> None:
    make_folder(path.parent)
    durable.replace(path, data, mode=PUBLIC_MODE)


def _now(desk: Desk) -> str:
    return desk.repository.now.strftime("%Y-%m-%dT%H:%M:%SZ")

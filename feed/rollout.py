"""Is this host offered this release now, and if not, why and when.

A rollout plan says which release a region's hosts belong on. It travels at
`rollout/<region>.json`, signed by the `rollout` role alone, which can choose
among signed releases and never author one. A replayed plan is refused by the
trust layer, so a plan that names an older release is a decision, not an attack.

 * rolling, complete: hosts belong on `release`, phase by phase.
 * halted: nobody is newly offered `release`; a host without any release is
   given `fallback`.
 * withdrawn: nobody belongs on `release`; everybody goes to `fallback`.
 * A release this host reverted is never offered again while quarantined.

Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

from feed import manifest, version
from feed.errors import ManifestError
from feed.manifest import Release

SCHEMA = 1
PLAN_BYTES_MAX = 256 << 10
PHASES_MAX = 64


class RolloutState(StrEnum):
    """What the vendor is doing with the release."""

    ROLLING = "rolling"
    HALTED = "halted"
    COMPLETE = "complete"
    WITHDRAWN = "withdrawn"


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of time in which a share of the hosts is admitted, evenly.

    Times are Unix seconds; shares run from 0 to 1 and a phase admits the
    hosts whose position lies between them.
    """

    start: float
    end: float
    share_from: float
    share_to: float


class RolloutPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A region's signed plan. No phases: everyone, now."""

    schema: int
    region: str
    state: RolloutState
    release: str
    decided: str  # RFC 3339 UTC, for people
    fallback: str | None = None
    reason: str = ""
    phases: tuple[Phase, ...] = ()


class Decision(StrEnum):
    """Reason codes of an offer."""

    OFFERED = "offered"
    RETURN = "return_to_older"
    CURRENT = "current"
    HALTED = "rollout_halted"
    WAITING_FOR_PHASE = "waiting_for_phase"
    QUARANTINED = "quarantined"
    INCOMPATIBLE = "incompatible"


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What the plan means for one host.

    release is the id the host belongs on, None to stay. ready_at is the Unix
    time at which a waiting host is admitted, None when that isn't known.
    """

    decision: Decision
    sentence: str
    release: str | None = None
    ready_at: float | None = None


class QuarantinedSet(msgspec.Struct, frozen=True, kw_only=True):
    """Content that was reverted here: the components a failed flip had changed.

    Each is {name: content digest}. Only together are they known to hurt, so a
    release is refused when it carries all of them (docs/adr/0006).
    """

    changed: dict[str, str]
    release: str
    until: float  # Unix seconds


def parse(data: bytes, *, region: str) -> RolloutPlan:
    """The plan in `data`, checked whole.

    Raises ManifestError.
    """
    where = f"rollout plan for {region}"
    if len(data) > PLAN_BYTES_MAX:
        raise ManifestError(f"{where}: {len(data):,} bytes, the limit is {PLAN_BYTES_MAX:,}")
    try:
        plan = msgspec.json.decode(data, type=RolloutPlan)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"{where}: doesn't parse: {error}") from error
    if plan.schema != SCHEMA:
        raise ManifestError(f"{where}: schema {plan.schema}, this version reads {SCHEMA}")
    if plan.region != region:
        raise ManifestError(f"{where}: the plan is for {plan.region!r}")
    for release in (plan.release, plan.fallback):
        if release is not None and not manifest.is_release_id(release):
            raise ManifestError(f"{where}: {release!r} is not a release id")
    if plan.state is RolloutState.WITHDRAWN and plan.fallback in {None, plan.release}:
        raise ManifestError(f"{where}: withdrawn without another release to return to")
    _check_phases(plan.phases, where)
    return plan


def serialize(plan: RolloutPlan) -> bytes:
    """The plan's bytes: the same plan gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(plan, order="deterministic"), indent=1) + b"\n"


def _check_phases(phases: tuple[Phase, ...], where: str) -> None:
    if len(phases) > PHASES_MAX:
        raise ManifestError(f"{where}: {len(phases)} phases, at most {PHASES_MAX}")
    reached = 0.0
    for number, phase in enumerate(phases, start=1):
        if not (phase.start <= phase.end and reached <= phase.share_from <= phase.share_to <= 1):
            raise ManifestError(
                f"{where}: phase {number} doesn't follow: shares {phase.share_from}–"
                f"{phase.share_to} after {reached}, times {phase.start}–{phase.end}"
            )
        reached = phase.share_to


def target(
    plan: RolloutPlan,
    *,
    active: str | None,
    host_id: str,
    now: float,
    quarantine: Iterable[QuarantinedSet] = (),
) -> str | None:
    """The id of the release whose manifest decides the rest; None: stay.

    active is the id of the release the host runs. A host that has none yet
    isn't left unprotected by a halt, by a phase to come, or by a release that
    it has reverted: it gets the fallback.
    """
    if plan.state is RolloutState.WITHDRAWN:
        return plan.fallback
    if plan.state is RolloutState.HALTED and active != plan.release:
        return plan.fallback if active is None else None
    hurt = any(item.release == plan.release and item.until > now for item in quarantine)
    if active is None and plan.fallback and (hurt or not _is_admitted(plan, host_id, now)):
        return plan.fallback
    return plan.release


def _is_admitted(plan: RolloutPlan, host_id: str, now: float) -> bool:
    if not plan.phases or plan.state is not RolloutState.ROLLING:
        return True
    ready_at = admitted_at(position(host_id, plan), plan.phases)
    return ready_at is not None and ready_at <= now


def position(host_id: str, plan: RolloutPlan) -> float:
    """Where the host stands in the queue, from 0 to 1: stable, even, and another
    for each release, so the same machines aren't always first."""
    seed = f"{plan.region}\n{plan.release}\n{host_id}".encode()
    return int.from_bytes(hashlib.sha256(seed).digest()[:8]) / 2**64


def admitted_at(host_position: float, phases: tuple[Phase, ...]) -> float | None:
    """The Unix time at which a position is admitted; None: in no phase yet."""
    for phase in phases:
        if phase.share_from <= host_position < phase.share_to:
            inside = (host_position - phase.share_from) / (phase.share_to - phase.share_from)
            return phase.start + inside * (phase.end - phase.start)
    return None


def admitted_share(phases: tuple[Phase, ...], now: float) -> float:
    """How far the queue is admitted, from 0 to 1."""
    reached = 0.0
    for phase in phases:
        if now >= phase.start:
            lasts = phase.end - phase.start
            passed = min((now - phase.start) / lasts, 1.0) if lasts else 1.0
            reached = phase.share_from + passed * (phase.share_to - phase.share_from)
    return reached


def decide(
    plan: RolloutPlan,
    release: Release | None,
    *,
    host_id: str,
    platform: str,
    agent_version: str,
    active_id: str | None,
    active: dict[str, str],
    quarantine: Iterable[QuarantinedSet],
    now: float,
    filenames: Mapping[str, str] | None = None,
) -> Offer:
    """What `plan` means for this host at Unix time `now`.

    release is the manifest of what `target` names, as this host takes it
    (manifest.Release.for_host), None when that is None.
    active holds {component: content digest} of what runs intact: leave out
    damaged components and the same release is offered to repair them. filenames
    holds {component: name of its file}: under another name it isn't the same,
    for engines go by it. Components left out aren't compared.
    platform is as sys.platform gives it, agent_version dotted numbers.
    """
    if release is None:
        return _stay(plan, active_id)
    if active and _is_installed(release, active, filenames):
        return Offer(
            decision=Decision.CURRENT,
            sentence=f"runs {release.id}, the release that region {plan.region} belongs on",
        )
    refusal = _unfit(release, platform, agent_version) or _quarantined(release, quarantine, now)
    if refusal:
        return refusal
    if plan.state is RolloutState.WITHDRAWN:
        return Offer(
            decision=Decision.RETURN,
            release=release.id,
            sentence=f"release {plan.release} was withdrawn{_because(plan)}; "
            f"the vendor sends region {plan.region} to {release.id}",
        )
    return _by_phase(plan, release, host_id, now, repairing=active_id == release.id)


def _is_installed(
    release: Release, active: dict[str, str], filenames: Mapping[str, str] | None
) -> bool:
    if active != {item.name: item.digest for item in release.components}:
        return False
    known = filenames or {}
    return all(known.get(item.name, item.filename) == item.filename for item in release.components)


def _stay(plan: RolloutPlan, active_id: str | None) -> Offer:
    rest = f"stays on {active_id}" if active_id else "there is no release to install meanwhile"
    return Offer(
        decision=Decision.HALTED,
        sentence=f"the vendor halted {plan.release} in region {plan.region}"
        f"{_because(plan)}; {rest}",
    )


def _unfit(release: Release, platform: str, agent_version: str) -> Offer | None:
    systems, oldest = release.compatibility.os, release.compatibility.agent_min
    if not release.components:
        sentence = "has nothing for a machine with these traits"
    elif systems and platform not in systems:
        sentence = f"is for {', '.join(systems)}; this machine is {platform}"
    elif oldest is not None and version.is_newer(oldest, than=agent_version):
        sentence = f"needs agent {oldest} or newer; this is {agent_version}"
    else:
        return None
    return Offer(decision=Decision.INCOMPATIBLE, sentence=f"release {release.id} {sentence}")


def _quarantined(
    release: Release, quarantine: Iterable[QuarantinedSet], now: float
) -> Offer | None:
    carried = {item.name: item.digest for item in release.components}
    for entry in quarantine:
        if entry.until > now and entry.changed and entry.changed.items() <= carried.items():
            names = ", ".join(sorted(entry.changed))
            why = (
                "" if release.id == entry.release else f" carries {names} of {entry.release}, which"
            )
            return Offer(
                decision=Decision.QUARANTINED,
                ready_at=entry.until,
                sentence=f"release {release.id}{why} was reverted here; it isn't tried again yet",
            )
    return None


def _by_phase(
    plan: RolloutPlan, release: Release, host_id: str, now: float, *, repairing: bool
) -> Offer:
    offered = Offer(
        decision=Decision.OFFERED,
        release=release.id,
        sentence=f"release {release.id} is offered to region {plan.region}",
    )
    is_fallback = release.id == plan.fallback
    if repairing or is_fallback or _is_admitted(plan, host_id, now):
        return offered
    place = position(host_id, plan)
    ready_at = admitted_at(place, plan.phases)
    later = f"release {release.id} reaches this host later in its phase"
    never = f"no phase of release {release.id} reaches this host yet"
    return Offer(
        decision=Decision.WAITING_FOR_PHASE,
        ready_at=ready_at,
        sentence=f"{never if ready_at is None else later}: its place is {place:.1%} of the way, "
        f"{admitted_share(plan.phases, now):.1%} of the machines are admitted",
    )


def _because(plan: RolloutPlan) -> str:
    return f" ({plan.reason})" if plan.reason else ""

"""One sync: all of a release is served, or the one before.

A run verifies the feed as an agent would, decides what to have
(server.mirror.wishes), brings what is lacking into the work folder
(server.mirror.supply), and only then changes what is served
(server.mirror.served). Metadata is copied byte for byte: a mirror delays, it
never authors.

 * A failure leaves what is served as it is, with a sentence that says so.
 * Increments that the source lacks keep a new release back for some hours:
   half the fleet in full downloads is worse than a short delay. Then it is
   served without them. A halt or a withdrawal never waits for them.
 * Nothing new costs one conditional request; what the fleet needs besides is
   fetched all the same.
 * What was served under the previous snapshot stays until the next switch:
   agents may be in the middle of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Callable, Collection, Mapping

import msgspec
import structlog

from feed import manifest, rollout
from feed.download import Downloader
from feed.errors import FeedError, ManifestError, RoomError, TransferError, TrustError
from feed.filesource import FileSource
from feed.manifest import Release
from feed.rollout import RolloutPlan
from feed.room import full_disk_told
from feed.source import SourceError, public_url
from feed.transport import Transport
from feed.trust import TrustedFeed
from server.layout import Layout
from server.mirror import duplication, record, roots, signed, wishes
from server.mirror.outcome import SourceSpec, Synced, WaitingError, authority
from server.mirror.record import Record
from server.mirror.served import METADATA, TARGETS, TIMESTAMP, Served
from server.mirror.signed import Catalogue, Increment
from server.mirror.supply import Supply, Tell
from server.mirror.wishes import Needs, Wishes
from server.settings import Policy

_SNAPSHOT = re.compile(r"[0-9]+\.snapshot\.json")

_log = structlog.get_logger()


class Run:
    """One sync."""

    def __init__(
        self,
        places: Layout,
        source: SourceSpec,
        policy: Policy,
        needs: Needs,
        pinned: Collection[str],
        *,
        clock: Callable[[], float],
        reserve: int,
        wait_s: float,
        tell: Tell,
    ) -> None:
        self._places = places
        self._source = source
        self._policy = policy
        self._needs = needs
        self._pinned = pinned
        self._clock = clock
        self._reserve = reserve
        self._wait_s = wait_s
        self._tell = tell
        self._served = Served(places.feed)
        self._record = record.load(places.mirror) or Record()
        self._transport: Transport | None = None
        self._supply: Supply | None = None

    def to_the_end(self, trust_root: bytes) -> Synced:
        """Do it, or say why not."""
        try:
            with full_disk_told("the mirror"), self._open() as transport:
                self._transport = transport
                return self._sync(trust_root, transport)
        except (FeedError, OSError) as error:
            if isinstance(error, RoomError):
                self._leave_room()
            with contextlib.suppress(OSError):
                self._served.recover()  # a switch that was begun is ended, now or at the next start
            return self._failed(error)

    def _failed(self, error: FeedError | OSError) -> Synced:
        offered = self._record.offered()
        rest = f"{offered} goes on being served" if offered else "nothing is served yet"
        return self._ended(
            "failed",
            sentence=f"{error}; {rest}",
            code=error.code if isinstance(error, FeedError) else "io_error",
            retry_after_s=error.retry_after_s if isinstance(error, TransferError) else None,
        )

    def _ended(self, outcome: str, *, sentence: str, **more: object) -> Synced:
        supply = self._supply
        done = Synced(
            outcome=outcome,
            source=public_url(self._source.url),
            sentence=sentence,
            fetched_bytes=self._transport.received_bytes if self._transport else 0,
            saved_bytes=supply.saved_bytes if supply else 0,
            releases={region: plan.release for region, plan in self._record.plans.items()},
            damaged=tuple(supply.damaged) if supply else (),
        )
        return msgspec.structs.replace(done, **more)

    def _leave_room(self) -> None:
        """A full disk isn't left full."""
        shutil.rmtree(self._places.work, ignore_errors=True)
        shutil.rmtree(self._places.cache, ignore_errors=True)

    def _open(self) -> Transport:
        return Transport(
            proxy=self._source.proxy,
            bandwidth_bytes_per_s=self._policy.bandwidth_bytes_per_s,
            user_agent="holdfast-server",
            verify=authority(self._source.authority),
        )

    def _sync(self, trust_root: bytes, transport: Transport) -> Synced:
        base = self._source.url.rstrip("/")
        foreign = self._served.prepare()
        if foreign:
            _log.warning("foreign_files_removed", files=foreign)
        self._seed_trust(trust_root)
        feed = self._feed(base, trust_root, transport)
        feed.refresh()
        catalogue = _sorted(feed)
        metadata, oldest = roots.complete(
            feed.metadata(),
            served=self._served.metadata,
            oldest=self._record.oldest_root,
            ask=lambda name: (
                transport.fetch(f"{base}/{METADATA}/{name}", limit=roots.ROOT_BYTES_MAX).body
            ),
        )
        downloads = Downloader(transport, self._places.cache, f"{base}/{TARGETS}")
        supply = self._supply = Supply(self._served, self._places.work, downloads, self._tell)
        supply.prepare()
        supply.discard(
            except_for=frozenset(
                path for item in catalogue.targets() for path in (item.served, item.copy)
            )
        )
        plans, releases = self._small(catalogue, supply)
        wanted = wishes.decide(
            catalogue,
            plans,
            releases,
            needs=self._needs,
            increments=self._policy.increments,
            versions_kept=self._policy.versions_kept,
            pinned=self._pinned,
        )
        lacking = self._fetch(catalogue, wanted, supply)
        fresh = Record(
            snapshot=_snapshot(metadata),
            catalogue=catalogue,
            plans=plans,
            releases=releases,
            metadata=self._digests() | {name: _digest(data) for name, data in metadata.items()},
            oldest_root=oldest,
        )
        self._check_increments(lacking, fresh)
        return self._serve(fresh, metadata, wanted, supply, lacking)

    def _feed(self, base: str, trust_root: bytes, source: Transport | FileSource) -> TrustedFeed:
        return TrustedFeed(
            self._places.trust, f"{base}/{METADATA}", f"{base}/{TARGETS}", trust_root, source
        )

    def _seed_trust(self, trust_root: bytes) -> None:
        """Without a memory of what was seen, what is served is what was seen."""
        if (self._places.trust / TIMESTAMP).exists():
            return
        if not (self._served.metadata / TIMESTAMP).exists():
            return
        with contextlib.suppress(FeedError):
            self._feed(self._served.folder.absolute().as_uri(), trust_root, FileSource()).refresh()

    def _small(
        self, catalogue: Catalogue, supply: Supply
    ) -> tuple[dict[str, RolloutPlan], dict[str, Release]]:
        """Every plan, and the manifests that they name."""
        plans = {
            region: rollout.parse(supply.small(target, limit=rollout.PLAN_BYTES_MAX), region=region)
            for region, target in catalogue.plans.items()
        }
        releases = {}
        for name in wishes.named(plans.values(), self._pinned):
            target = catalogue.releases.get(name)
            if target is None:
                raise ManifestError(f"release {name} isn't signed by anybody who may sign it")
            data = supply.small(target, limit=manifest.MANIFEST_BYTES_MAX)
            releases[name] = manifest.parse(data, expected_id=name)
        return plans, releases

    def _fetch(self, catalogue: Catalogue, wanted: Wishes, supply: Supply) -> list[Increment]:
        """Bring all that is lacking; returns the increments that the source hasn't."""
        paid = {item.target.served for item in wanted.increments}
        paid |= set(self._served.files()) | set(supply.finished())
        increments = [item for item in wanted.increments if supply.find(item.target) is None]
        files = [item for item in wanted.files if supply.find(item) is None]
        plan = self._roads(catalogue, wanted, supply, paid)
        total = sum(item.target.length for item in increments) + sum(i.length for i in files)
        supply.expect(total + sum(road.fetch_bytes for road in plan))
        self._check_room(
            duplication.room_bytes(plan, increments) + sum(item.length for item in files)
        )
        for target in files:
            supply.fetch(target)
        lacking = supply.increments(increments)
        self._fetch_fulls(catalogue, wanted, supply, paid)
        self._restore_copies(wanted, supply)
        return lacking

    def _fetch_fulls(
        self, catalogue: Catalogue, wanted: Wishes, supply: Supply, paid: Collection[str]
    ) -> None:
        """Until all are here: a base that turns out to be damaged may itself be wanted."""
        while plan := self._roads(catalogue, wanted, supply, paid):
            road = plan[0]
            item = road.goal.component
            try:
                supply.full(road)
            except (TrustError, SourceError) as error:
                raise _told(
                    error, f"release {road.goal.release}: {item.name} {item.version}"
                ) from error

    def _roads(
        self, catalogue: Catalogue, wanted: Wishes, supply: Supply, paid: Collection[str]
    ) -> tuple[duplication.Road, ...]:
        here = {
            name: [item.version for item in part.payloads if supply.find(item.target)]
            for name, part in catalogue.parts.items()
        }
        lacking = [
            goal for goal in wanted.goals if goal.component.version not in here[goal.component.name]
        ]
        return duplication.plan(lacking, catalogue.parts, here=here, paid=paid)

    def _restore_copies(self, wanted: Wishes, supply: Supply) -> None:
        """Compressed copies that were here, and aren't any more, are made anew."""
        there = set(self._served.files()) | set(supply.finished())
        for goal in wanted.goals:
            target = goal.payload.target
            if f"{TARGETS}/{target.copy}" in self._record.served and target.copy not in there:
                supply.copy(target)

    def _check_room(self, need: int) -> None:
        if not need:
            return
        for folder in (self._places.work, self._served.folder):
            free = shutil.disk_usage(folder).free
            if need + self._reserve > free:
                raise RoomError(
                    f"needs {need + self._reserve:,} bytes ({self._reserve:,} of them to stay "
                    f"free), {free:,} are free in {folder}; nothing was downloaded"
                )

    def _check_increments(self, lacking: list[Increment], fresh: Record) -> None:
        """Raises WaitingError: a new release waits for the source to have its increments."""
        if not (lacking and self._record.snapshot) or fresh.snapshot == self._record.snapshot:
            return
        if wishes.is_urgent(self._record.plans, fresh.plans):
            return
        now = self._clock()
        since = min(self._record.waits_since or now, now)
        if now - since >= self._wait_s:
            return
        self._record = msgspec.structs.replace(self._record, waits_since=since)
        record.store(self._places.mirror, self._record)
        raise WaitingError(
            f"the new release waits: {_lacking(lacking)}; it is served without in "
            f"{(since + self._wait_s - now) / 60:.0f} minutes"
        )

    def _serve(
        self,
        fresh: Record,
        metadata: Mapping[str, bytes],
        wanted: Wishes,
        supply: Supply,
        lacking: list[Increment],
    ) -> Synced:
        """Place what is ready, switch, note it, and prune."""
        before = self._record
        for served, path in supply.finished().items():
            self._served.place(path, served)
        is_touched = self._served.lacks(metadata)
        if is_touched:
            record.store(self._places.mirror, record.unsettled(before))
            self._served.switch(metadata)
        is_switch = fresh.snapshot != before.snapshot
        here = set(self._served.files())
        offered = frozenset(f"{TARGETS}/{path}" for path in wanted.served() if path in here)
        offered |= {f"{METADATA}/{name}" for name in metadata}
        self._record = msgspec.structs.replace(
            fresh,
            served=offered,
            previous=self._before(here) if is_switch else before.previous,
            switched_at=self._clock() if is_switch else before.switched_at,
        )
        supply.sweep()
        if is_touched or self._record != before:
            record.store(self._places.mirror, self._record)
        return self._ended(
            "switched" if is_switch else "unchanged",
            sentence=self._sentence(is_switch=is_switch, lacking=lacking),
            switched=is_switch,
            pruned_bytes=self._prune(wanted),
        )

    def _digests(self) -> dict[str, str]:
        """Of the metadata that stays though it isn't the newest."""
        known = self._record
        stays = {path.removeprefix(f"{METADATA}/") for path in known.served | known.previous}
        return {name: digest for name, digest in known.metadata.items() if name in stays}

    def _before(self, here: Collection[str]) -> frozenset[str]:
        """What was offered before a switch; all that is here, if that isn't known."""
        if self._record.snapshot or self._record.served:
            return self._record.served
        return frozenset(f"{TARGETS}/{path}" for path in here)

    def _prune(self, wanted: Wishes) -> int:
        known = self._record
        stays = wishes.kept(known.catalogue, wanted.goals, versions_kept=self._policy.versions_kept)
        keep = {f"{TARGETS}/{path}" for path in stays} | known.served | known.previous
        return self._served.prune(keep)

    def _sentence(self, *, is_switch: bool, lacking: list[Increment]) -> str:
        offered = self._record.offered() or "no release"
        text = f"{offered} is served" if is_switch else f"nothing new; {offered} is served"
        return f"{text}; {_lacking(lacking)}" if lacking else text


def _sorted(feed: TrustedFeed) -> Catalogue:
    found = feed.everything()
    if not feed.root.consistent_snapshot:
        raise TrustError(
            "the feed isn't made of consistent snapshots; it can't be mirrored in one step"
        )
    return signed.sort(
        (item.path, item.length, item.hashes.get("sha256"), item.custom) for item in found
    )


def _told(error: TrustError | SourceError, what: str) -> FeedError:
    """The same error, with what it stopped in front."""
    if isinstance(error, SourceError):
        return SourceError(
            f"{what}: {error}",
            status=error.status,
            temporary=error.temporary,
            retry_after_s=error.retry_after_s,
        )
    return TrustError(f"{what}: {error}")


def _lacking(increments: list[Increment]) -> str:
    names = [item.target.path for item in increments[:3]]
    more = f" and {len(increments) - 3} more" if len(increments) > 3 else ""
    return f"the source doesn't have {', '.join(names)}{more} as signed"


def _snapshot(metadata: Mapping[str, bytes]) -> str:
    """The digest of the one snapshot among the metadata."""
    (name,) = filter(_SNAPSHOT.fullmatch, metadata)
    return _digest(metadata[name])


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

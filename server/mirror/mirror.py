"""Follow a source, and serve what it signs: all of a release or the one before.

A run verifies the feed as an agent would, decides what to have
(server.mirror.wishes), brings what is lacking into the work folder
(server.mirror.supply), and only then changes what is served
(server.mirror.served). Metadata is copied byte for byte: a mirror delays, it
never authors.

 * A failure leaves what is served as it is, with a sentence that says so.
 * Increments that the source lacks keep a new release back for some hours:
   half the fleet in full downloads is worse than a short delay. Then it is
   served without them.
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
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping

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
from server.errors import BusyError
from server.layout import Layout
from server.mirror import duplication, record, retention, roots, signed, wishes
from server.mirror.record import Record
from server.mirror.retention import Choice
from server.mirror.served import METADATA, TARGETS, TIMESTAMP, Served
from server.mirror.signed import Catalogue, Increment
from server.mirror.supply import Progress, Supply, Tell
from server.mirror.wishes import Needs, Wishes
from server.settings import Policy

ROOM_RESERVE_BYTES = 64 << 20  # as agents leave free
INCREMENTS_WAIT_S = 2 * 3600.0
LACKING = "increments_lacking"

_SNAPSHOT = re.compile(r"[0-9]+\.snapshot\.json")

_log = structlog.get_logger()


class SourceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Where to mirror from; see server.settings.Source. authority is a PEM file."""

    url: str
    proxy: str | None = None
    authority: str | None = None


class Synced(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended. outcome is unchanged, switched or failed; code "" unless it failed.

    switched: another snapshot is served now. has_news: agents may find other
    releases offered than before. releases: {region: release} as served now.
    saved_bytes: what fulls would have cost that were rebuilt, less the
    increments for them. pruned_bytes were set free. damaged: files that were
    found not to be as signed, and replaced.
    """

    outcome: str
    source: str
    sentence: str
    code: str = ""
    switched: bool = False
    has_news: bool = False
    fetched_bytes: int = 0
    saved_bytes: int = 0
    pruned_bytes: int = 0
    releases: dict[str, str] = {}
    damaged: tuple[str, ...] = ()
    retry_after_s: float | None = None


class _WaitingError(FeedError):
    """The source lacks increments that agents need; tried again, and not for ever."""

    code = LACKING


class Mirror:
    """The mirror of one state folder. One run or scrub at a time; the rest may be asked anytime.

    clock is the wall clock, Unix seconds. increments_wait_s: see the module.
    """

    def __init__(
        self,
        places: Layout,
        *,
        clock: Callable[[], float] = time.time,
        room_reserve_bytes: int = ROOM_RESERVE_BYTES,
        increments_wait_s: float = INCREMENTS_WAIT_S,
    ) -> None:
        self._places = places
        self._clock = clock
        self._reserve = room_reserve_bytes
        self._wait_s = increments_wait_s
        self._busy = threading.Lock()

    def sync(
        self,
        source: SourceSpec,
        trust_root: bytes,
        *,
        policy: Policy | None = None,
        needs: Needs | None = None,
        trigger: str = "",
        pinned: Collection[str] = (),
        progress: Tell | None = None,
    ) -> Synced:
        """Bring the served folder up to date with `source`; a failure is told in the result.

        trust_root is the vendor's first root. needs: what agents run. pinned:
        releases to have besides those that plans name. progress is called from
        this thread.

        Raises BusyError: another run is at it.
        """
        with self._alone("a sync or scrub runs already"):
            run = _Run(
                self._places,
                source,
                policy or Policy(),
                needs or {},
                pinned,
                clock=self._clock,
                reserve=self._reserve,
                wait_s=self._wait_s,
                tell=progress or _silence,
            )
            done = run.to_the_end(trust_root)
        log = _log.warning if done.outcome == "failed" else _log.info
        log("mirror_synced", trigger=trigger, **msgspec.structs.asdict(done))
        return done

    def known(self) -> Record:
        """What is served, as of the last run; an empty record before the first."""
        return record.load(self._places.mirror) or Record()

    def retention(self, needs: Needs, *, policy: Policy | None = None) -> tuple[Choice, ...]:
        """What each choice of versions_kept costs, in bytes and in agents sent to fulls."""
        known = self.known()
        return retention.table(
            known.catalogue,
            known.plans,
            known.releases,
            needs=needs,
            increments=(policy or Policy()).increments,
            here=Served(self._places.feed).files(),
        )

    @contextlib.contextmanager
    def _alone(self, sentence: str) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise BusyError(sentence)
        try:
            yield
        finally:
            self._busy.release()


def _silence(_progress: Progress) -> None:
    return


class _Run:
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
            verify=_authority(self._source.authority),
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
            metadata={name: _digest(data) for name, data in metadata.items()},
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
        """Raises _WaitingError: a new release waits for the source to have its increments."""
        if not (lacking and self._record.snapshot) or fresh.snapshot == self._record.snapshot:
            return
        now = self._clock()
        known, since = self._record.waits_since or ("", now)
        since = since if known == fresh.snapshot and since <= now else now
        if now - since >= self._wait_s:
            return
        self._record = msgspec.structs.replace(self._record, waits_since=(fresh.snapshot, since))
        record.store(self._places.mirror, self._record)
        raise _WaitingError(
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
        if self._served.lacks(metadata):
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
        if self._record != before:
            record.store(self._places.mirror, self._record)
        has_news = (before.plans, before.releases) != (fresh.plans, fresh.releases)
        return self._ended(
            "switched" if is_switch else "unchanged",
            sentence=self._sentence(is_switch=is_switch, lacking=lacking),
            switched=is_switch,
            has_news=has_news,
            pruned_bytes=self._prune(wanted),
        )

    def _before(self, here: Collection[str]) -> frozenset[str]:
        """What was offered before a switch; all that is here, if that isn't known."""
        if self._record.snapshot:
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


def _authority(path: str | None) -> ssl.SSLContext | None:
    """What verifies the source: its own authority, None for the system's."""
    if path is None:
        return None
    try:
        return ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        raise TransferError(
            f"{path}: not a certificate authority's PEM file ({error.strerror or error})"
        ) from error


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

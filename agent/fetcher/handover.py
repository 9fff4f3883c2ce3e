"""Fetch what a release needs into incoming/<attempt>, by the cheapest road.

Nothing there is flushed to the disk: an attempt doesn't outlive its guardian,
and what the stager makes of it is flushed in its slot.

An incremental that doesn't arrive as signed sends its component the whole way
in the same run. Small signed files are cached by digest, so a check without
news reads them from the disk.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog
from tuf.api.metadata import TargetFile

from agent.channel import Begin, Handover, Progress, Word
from agent.config import Config, Source
from agent.layout import Layout
from feed import durable, manifest, rollout
from feed import plan as planning
from feed.download import Downloader
from feed.errors import LimitError, TrustError
from feed.manifest import Component, Release
from feed.plan import Full, Installed, Plan, Rebuild, Room, Wanted
from feed.roads import Edge
from feed.rollout import RolloutPlan
from feed.source import SourceError
from feed.target import is_verified
from feed.transport import Transport
from feed.trust import TrustedFeed

SMALL_KEPT = 64  # cached manifests and plans
PROGRESS_STEP_BYTES = 256 << 10
PROGRESS_STEP_S = 5.0  # on a slow line: the guardian takes long silence for a hang
HANDOVER_MODE = 0o644

_log = structlog.get_logger()


class Feed:
    """One source's feed: its trusted metadata, its small files, its downloads."""

    def __init__(self, places: Layout, source: Source, transport: Transport) -> None:
        base = source.url.rstrip("/")
        self._transport = transport
        self._small = places.cache / "small"
        for folder in (places.cache, self._small):
            durable.sweep_temporaries(folder)  # of a worker that was killed
        self.trusted = TrustedFeed(
            places.fetcher_trust,
            f"{base}/metadata",
            f"{base}/targets",
            places.trust_root.read_bytes(),
            transport,
        )
        self.downloads = Downloader(transport, places.cache, f"{base}/targets", flush=False)

    @property
    def received_bytes(self) -> int:
        """What travelled from this source so far, metadata included."""
        return self._transport.received_bytes

    def refresh(self) -> None:
        """Bring the metadata up to date. Raises FeedError."""
        self.trusted.refresh()

    def signed(self, path: str) -> TargetFile:
        """What is signed about `path`. Raises TrustError: nothing is."""
        found = self.trusted.find(path)
        if found is None:
            raise TrustError(f"{path} isn't signed by anybody who may sign it")
        return found

    def rollout_plan(self, region: str) -> RolloutPlan:
        """The region's signed plan."""
        data = self.small(manifest.rollout_path(region), limit=rollout.PLAN_BYTES_MAX)
        return rollout.parse(data, region=region)

    def release(self, release_id: str) -> Release:
        """A signed release manifest."""
        data = self.small(manifest.release_path(release_id), limit=manifest.MANIFEST_BYTES_MAX)
        return manifest.parse(data, expected_id=release_id)

    def small(self, path: str, *, limit: int) -> bytes:
        """A small signed file, from the cache when it is there intact."""
        target = self.signed(path)
        if target.length > limit:
            raise TrustError(f"{path} is signed with {target.length:,} bytes, over {limit:,}")
        kept = self._small / target.hashes["sha256"]
        if not is_verified(kept, target):
            self._drop_old_small()
            self.downloads.fetch(
                path, length=target.length, digest=target.hashes["sha256"], destination=kept
            )
        return kept.read_bytes()

    def _drop_old_small(self) -> None:
        self._small.mkdir(mode=0o700, exist_ok=True)
        files = sorted(self._small.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in files[:-SMALL_KEPT]:
            path.unlink(missing_ok=True)

    def edges(self, item: Component, installed: str | None) -> tuple[Edge, ...]:
        """The incrementals between the installed version and the wanted one."""
        if installed is None:
            return ()
        versions = list(dict.fromkeys((installed, *reversed(item.predecessors), item.version)))
        pairs = itertools.permutations(versions, 2)
        found = (self._edge(item.name, old=old, new=new) for old, new in pairs)
        return tuple(edge for edge in found if edge)

    def _edge(self, name: str, *, old: str, new: str) -> Edge | None:
        path = manifest.increment_path(name, old=old, new=new)
        target = self.trusted.find(path)
        if target is None:
            return None
        promise = manifest.parse_increment(target.custom, path=path)
        return Edge(
            old=old,
            new=new,
            length=target.length,
            base_digest=promise.base_digest,
            result_digest=promise.result_digest,
            result_length=promise.result_length,
        )


class Fetch:
    """Everything one attempt downloads. wire_bytes is what travelled so far, in vain too."""

    def __init__(
        self,
        order: Begin,
        settings: Config,
        places: Layout,
        feed: Feed,
        release: Release,
        *,
        say: Callable[[Word], None],
    ) -> None:
        self._order = order
        self._settings = settings
        self._places = places
        self._feed = feed
        self._release = release
        self._say = say
        self._folder = places.incoming / order.attempt
        self._full_only = frozenset(order.full_only)
        self._edges: dict[str, tuple[Edge, ...]] = {}
        self._done = 0
        self._told = 0
        self._told_at = 0.0
        self._limits = settings.download.limits
        self.wire_bytes = 0
        self.plan = self._decide()
        self._due = self.plan.fetch_bytes  # in all, with what turns out to be in vain

    def _decide(self, room: Room | None = None) -> Plan:
        wanted = [self._wanted(item) for item in self._release.components]
        everything = frozenset(item.name for item in self._release.components)
        forbidden = everything if "*" in self._full_only else self._full_only
        return planning.decide(
            wanted, limits=self._limits, room=room, forbid_incrementals=forbidden
        )

    def _wanted(self, item: Component) -> Wanted:
        held = self._order.host.installed.get(item.name)
        if item.name not in self._edges:
            self._edges[item.name] = self._feed.edges(item, held.version if held else None)
        return Wanted(
            component=item,
            installed=Installed(
                version=held.version,
                digest=held.digest,
                length=held.length,
                # The stager asks by name for what it found unfit to be kept.
                intact=not (item.name in self._full_only and held.digest == item.digest),
            )
            if held
            else None,
            edges=self._edges[item.name],
            compressed_length=self._compressed_length(item) or None,
        )

    def _compressed_length(self, item: Component) -> int | None:
        target = self._feed.signed(manifest.payload_path(item.name, item.version))
        return manifest.parse_payload(target.custom).compressed_length

    def run(self) -> None:
        """Fetch it all. Raises FeedError or OSError: the attempt can be tried anew."""
        self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        if self.is_in_spare:
            _log.info("release_is_in_spare_slot", release=self._release.id)
        else:
            self._plan_within_room()
            self._tell(force=True)
            self._fetch_steps()
        self._write_metadata()

    @property
    def fetch_bytes(self) -> int:
        """What taking the release would fetch."""
        return 0 if self.is_in_spare else self.plan.fetch_bytes

    @property
    def is_in_spare(self) -> bool:
        """Whether the prior slot still holds this very release: nothing to download then."""
        wanted = {item.name: item.digest for item in self._release.components}
        return self._order.spare == wanted

    def check_limit(self) -> None:
        """Raises LimitError: the release needs more bytes than a run may fetch."""
        if not self.is_in_spare:
            self._allow(self._due)

    def _allow(self, need: int) -> None:
        """Raises LimitError: what to do about it."""
        try:
            planning.check_bytes(need, self._limits, spent=self._order.fetched_bytes)
        except LimitError as error:
            gone = self._order.fetched_bytes + self.wire_bytes
            done = f"{gone:,} were fetched in vain" if gone else "nothing was fetched"
            raise LimitError(
                f"release {self._release.id} {error}; {done}, what is installed stays, and every "
                f"check looks again. To take it: fetch_bytes_max = {error.needed} or more under "
                "[download] (0: no limit), restart agentd, agentctl update",
                needed=error.needed,
            ) from error

    def _plan_within_room(self) -> None:
        """Raises RoomError, or LimitError: the road for which there is room takes too many."""
        room = self._room()
        self.plan = self._decide(room)
        planning.check_room(self.plan, room)
        self._due = self.plan.fetch_bytes
        self._allow(self._due)

    def _room(self) -> Room:
        incoming, slots = self._places.incoming, self._places.slots
        return Room(
            incoming=shutil.disk_usage(incoming).free,
            slots=shutil.disk_usage(slots).free + self._spare_bytes(),
            same_filesystem=incoming.stat().st_dev == slots.stat().st_dev,
            reserve=self._settings.download.room_reserve_bytes,
        )

    def _spare_bytes(self) -> int:
        """What emptying the spare slot sets free; the stager does that first."""
        active = self._places.current.resolve().name
        return sum(
            path.lstat().st_size
            for name in ("a", "b")
            if name != active
            for path in self._places.slot(name).rglob("*")
            if path.is_file() and not path.is_symlink()
        )

    def _fetch_steps(self) -> None:
        roads: dict[str, tuple[str, ...]] = {}
        for step in self.plan.steps:
            name = step.component.name
            if isinstance(step, Rebuild) and not self._fetch_chain(name, step):
                self._full_only |= {name}
                self._fetch_full(step.component, self._wanted(step.component).full_bytes)
            elif isinstance(step, Rebuild):
                roads[name] = (step.chain[0].old, *(edge.new for edge in step.chain))
            elif isinstance(step, Full):
                self._fetch_full(step.component, step.fetch_bytes)
        data = msgspec.json.encode(Handover(roads=roads))
        _hand_over(self._folder / "handover.json", data)

    def _fetch_chain(self, name: str, step: Rebuild) -> bool:
        """The incrementals of one component; False when one isn't there as it was signed.

        Raises LimitError then: the full, beside what came of them, is too much.
        """
        before = self.wire_bytes
        try:
            for edge in step.chain:
                self._fetch(manifest.increment_path(name, old=edge.old, new=edge.new))
        except (TrustError, SourceError) as error:
            if isinstance(error, SourceError) and not error.is_absent:
                raise  # the road is as dead for the full payload
            _log.warning("incremental_refused", component=name, problem=str(error))
            in_vain = self.wire_bytes - before
            full_bytes = self._wanted(step.component).full_bytes
            self._due += full_bytes + in_vain - step.fetch_bytes
            self._allow(self._due)
            return False
        return True

    def _fetch_full(self, item: Component, planned: int) -> None:
        path = manifest.payload_path(item.name, item.version)
        if self._compressed_length(item) == 0:
            self._fetch(path)
            return
        try:
            self._fetch(path, compressed=True, bytes_max=self._left_for(planned))
        except LimitError as error:
            self._due += error.needed - planned
            self._allow(self._due)
            raise

    def _left_for(self, planned: int) -> int | None:
        """What a file may take of which `planned` bytes are in what is due; None: unlimited."""
        most = self._limits.fetch_bytes_max
        return most - self._order.fetched_bytes - self._due + planned if most else None

    def _fetch(self, path: str, *, compressed: bool = False, bytes_max: int | None = None) -> None:
        target = self._feed.signed(path)
        before = self._done

        def progress(count: int) -> None:
            self._done = before + count
            self._tell()

        began = self._feed.received_bytes
        try:
            self._feed.downloads.fetch(
                path,
                length=target.length,
                digest=target.hashes["sha256"],
                destination=self._folder / "targets" / path,
                compressed=compressed,
                bytes_max=bytes_max,
                progress=progress,
            )
        finally:
            self.wire_bytes += self._feed.received_bytes - began

    def _tell(self, *, force: bool = False) -> None:
        now = time.monotonic()
        is_news = self._done - self._told >= PROGRESS_STEP_BYTES
        if force or is_news or now >= self._told_at + PROGRESS_STEP_S:
            self._told, self._told_at = self._done, now
            total = max(self.plan.fetch_bytes, self._done)
            self._say(Progress(release=self._release.id, done=self._done, total=total))

    def _write_metadata(self) -> None:
        """The signed metadata, the plan and the manifest, for the stager to verify anew."""
        region = self._order.host.region
        for path, limit in (
            (manifest.rollout_path(region), rollout.PLAN_BYTES_MAX),
            (manifest.release_path(self._release.id), manifest.MANIFEST_BYTES_MAX),
        ):
            copy = self._folder / "targets" / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            _hand_over(copy, self._feed.small(path, limit=limit))
        for item in self._release.components:
            self._feed.signed(manifest.payload_path(item.name, item.version))
        shutil.rmtree(self._folder / "metadata", ignore_errors=True)
        self._feed.trusted.export(self._folder / "metadata")


def _hand_over(path: Path, data: bytes) -> None:
    durable.replace(path, data, mode=HANDOVER_MODE, flush=False)

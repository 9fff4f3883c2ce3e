"""Bring what is lacking into the work folder: downloads, rebuilt fulls, compressed copies.

What lies in `ready` is whole and verified, laid out as it will be served; a
run that was cut short leaves it to the next one. A full gets its place there
after its compressed copy, so where there is a full nothing is owed beside it.

 * An increment is held against its signed digest before a decoder sees it, a
   rebuilt full against its own before it counts.
 * Whatever is wrong with a base or an increment: the full, in the same run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from feed import compress, delta, durable
from feed.download import Downloader
from feed.errors import RebuildError, TrustError
from feed.source import SourceError
from feed.target import safe_path
from server.mirror.duplication import Road
from server.mirror.served import UNREADABLE, Served, is_intact, size_of
from server.mirror.signed import Increment, Target

COPY_LEVEL = 9  # zstd; the vendor's higher levels take many times the CPU for a few percent

_log = structlog.get_logger()


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run is: bytes that came of those planned, and what is at hand."""

    done: int
    total: int
    what: str


Tell = Callable[[Progress], None]


class Supply:
    """Everything one run fetches and makes. saved_bytes: what rebuilding saved against fulls."""

    def __init__(self, served: Served, work: Path, downloads: Downloader, tell: Tell) -> None:
        self._served = served
        self.ready = work / "ready"
        self._scratch = work / "scratch"
        self._downloads = downloads
        self._tell = tell
        self._done = 0
        self._total = 0
        self._fetched: set[str] = set()  # where they will be served, of increments of this run
        self.saved_bytes = 0
        self.damaged: list[str] = []  # where it was served, of files found not to be as signed

    def expect(self, total: int) -> None:
        """So many bytes are planned."""
        self._total = total

    def prepare(self) -> None:
        """Sweep what a run that was killed left half done."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        for folder in (self.ready, self._scratch):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self.ready.rglob(f"{durable.TEMP_PREFIX}*"):
            path.unlink()

    def finished(self) -> dict[str, Path]:
        """What is ready, {where it will be served: path}."""
        return {
            path.relative_to(self.ready).as_posix(): path
            for path in sorted(self.ready.rglob("*"))
            if size_of(path) is not None
        }

    def discard(self, *, except_for: frozenset[str]) -> None:
        """Forget what is ready, save what is named."""
        for served, path in self.finished().items():
            if served not in except_for:
                path.unlink()

    def sweep(self) -> None:
        """Forget partial downloads: all that was wanted is here."""
        self._downloads.sweep(())

    def find(self, target: Target) -> Path | None:
        """The file of a target, served already or ready to be; None: it isn't here."""
        for path in (self._served.target(target.served), self._ready(target.served)):
            if size_of(path) == target.length:
                return path
        return None

    def small(self, target: Target, *, limit: int) -> bytes:
        """The verified bytes of a small target, fetched unless they are here."""
        if target.length > limit:
            raise TrustError(
                f"{target.path} is signed with {target.length:,} bytes, over {limit:,}"
            )
        path = self.find(target)
        if path is not None and not is_intact(path, target.digest):
            self._drop(path, target.served)
            path = None
        return (path or self.fetch(target)).read_bytes()

    def fetch(self, target: Target) -> Path:
        """Download a target as it is; returns where it is ready."""
        path = self._ready(target.served)
        self._download(target, path)
        return path

    def increments(self, wanted: list[Increment]) -> list[Increment]:
        """Fetch incrementals; returns those that the source doesn't have as they are signed."""
        return [item for item in wanted if not self._increment(item)]

    def _increment(self, item: Increment) -> bool:
        if self.find(item.target):
            return True
        try:
            self.fetch(item.target)
        except (TrustError, SourceError) as error:
            if isinstance(error, SourceError) and not error.is_absent:
                raise
            _log.warning("increment_refused", target=item.target.path, problem=str(error))
            return False
        self._fetched.add(item.target.served)
        return True

    def full(self, road: Road) -> bool:
        """Get a full by its road, or whole if that fails, with its compressed copy.

        Returns whether it was rebuilt.
        """
        target = road.goal.payload.target
        made = self._scratch / f"{target.digest}.full"
        packed = self._ready(target.copy)
        packed.parent.mkdir(parents=True, exist_ok=True)
        self._say(target)
        is_rebuilt = bool(road.chain) and self._rebuilt(road, made)
        if not is_rebuilt:
            self._download(
                target,
                made,
                compressed=road.goal.payload.compressed_length != 0,
                compressed_to=packed,
            )
        if road.goal.payload.compressed_length != 0 and size_of(packed) is None:
            self._say(target)
            self._compress(made, packed)
        durable.rename(made, self._ready(target.served))
        if is_rebuilt:
            self._count_saved(road)
        return is_rebuilt

    def _count_saved(self, road: Road) -> None:
        """The full's bytes less those of the increments that came for it, each counted once."""
        came = [item for item in road.chain if item.target.served in self._fetched]
        self._fetched -= {item.target.served for item in came}
        saved = road.goal.payload.road_bytes - sum(item.target.length for item in came)
        self.saved_bytes += saved
        name = f"{road.goal.component.name} {road.goal.component.version}"
        _log.info("component_duplicated", component=name, saved_bytes=saved)

    def copy(self, target: Target) -> None:
        """Make the compressed copy of a full that is here."""
        full = self.find(target)
        if full is not None:
            packed = self._ready(target.copy)
            packed.parent.mkdir(parents=True, exist_ok=True)
            self._compress(full, packed)

    def _compress(self, full: Path, packed: Path) -> None:
        made = self._scratch / "copy"
        if full.stat().st_size:
            level = compress.paying_level(full, most=COPY_LEVEL)
            if compress.compress(full, made, level=level) is not None:
                durable.sync_file(made)
                durable.rename(made, packed)

    def _rebuilt(self, road: Road, out: Path) -> bool:
        """Whether the chain leads from what is here to what is signed, at `out`."""
        assert road.base is not None  # noqa: S101 - a chain has a base
        name = f"{road.goal.component.name} {road.base.version} → {road.goal.component.version}"
        if self.increments(list(road.chain)):
            return False
        try:
            self._apply(road, out)
        except (RebuildError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in UNREADABLE:
                raise
            _log.warning("duplication_failed", component=name, problem=str(error))
            self._check_base(road.base.target)
            return False
        return True

    def _apply(self, road: Road, out: Path) -> None:
        assert road.base is not None  # noqa: S101 - a chain has a base
        base = self.find(road.base.target)
        links = [self._scratch / "link-0", self._scratch / "link-1"]
        for number, item in enumerate(road.chain):
            if base is None:
                raise RebuildError(f"{road.base.target.path} isn't here any more")
            made = out if item is road.chain[-1] else links[number % 2]
            self._link(item, base, made)
            base = made
        for path in links:
            path.unlink(missing_ok=True)

    def _link(self, item: Increment, base: Path, out: Path) -> None:
        """Apply one incremental. Raises RebuildError: nothing is at `out`."""
        path = self.find(item.target)
        if path is None:
            raise RebuildError(f"{item.target.path} isn't here any more")
        if not is_intact(path, item.target.digest):
            self._drop(path, item.target.served)
            if not self._increment(item):
                raise RebuildError(f"{item.target.path} was damaged and can't be had again")
            path = self._ready(item.target.served)
        promise = item.edge
        with base.open("rb") as old, path.open("rb") as patch, durable.replacing(out) as new:
            found = delta.apply(old, patch, new, format=item.format, limit=promise.result_length)
            if found != promise.result_digest:
                raise RebuildError(
                    f"{item.target.path} makes {found[:12]}…, "
                    f"{promise.result_digest[:12]}… is signed"
                )

    def _check_base(self, target: Target) -> None:
        path = self.find(target)
        if path is not None and not is_intact(path, target.digest):
            self._drop(path, target.served)

    def _drop(self, path: Path, served: str) -> None:
        """Take away what isn't as signed, wherever it lies."""
        _log.warning("file_damaged", path=str(path))
        durable.remove(path)
        self.damaged.append(served)

    def _ready(self, served: str) -> Path:
        return self.ready / safe_path(served)

    def _download(
        self,
        target: Target,
        destination: Path,
        *,
        compressed: bool = False,
        compressed_to: Path | None = None,
    ) -> None:
        before = self._done

        def came(count: int) -> None:
            self._done = before + count
            self._say(target)

        self._downloads.fetch(
            target.path,
            length=target.length,
            digest=target.digest,
            destination=destination,
            compressed=compressed,
            compressed_to=compressed_to,
            progress=came,
        )

    def _say(self, target: Target) -> None:
        """How far it is; whoever listens may stop it here."""
        total = max(self._total, self._done)
        self._tell(Progress(done=self._done, total=total, what=target.path))

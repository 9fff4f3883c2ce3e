"""What goes beside a new payload: its compressed copy, and incrementals from older versions.

They are made side by side within the settings' limits, and told to whoever
watches as they begin and end. Copies come first: what an incremental is worth
is known by the copy that it would replace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from feed import manifest
from feed.delta import Effort
from feed.manifest import Component
from publisher import budget, compressed, increments, work
from publisher.catalogue import Catalogue
from publisher.compressed import Compressed, Copy
from publisher.increments import Job, Made
from publisher.progress import Progress
from publisher.settings import Settings
from publisher.work import Work

Done = TypeVar("Done")


class Fresh(msgspec.Struct, frozen=True, kw_only=True):
    """A component that isn't published yet, and where its payload lies."""

    component: Component
    full: Path


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """What was made for one component; increments newest base first, those left out too."""

    copy: Compressed
    increments: tuple[tuple[Job, Made], ...]


class Maker:
    """Makes all of one release; what it makes goes into `scratch` or beside the payloads."""

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        scratch: Path,
        *,
        effort: Effort,
        progress: Progress,
    ) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._scratch = scratch
        self._effort = effort
        self._progress = progress

    def make(self, fresh: Iterable[Fresh]) -> dict[str, Beside]:
        """What goes beside each, by the component's name."""
        fresh = list(fresh)
        jobs = self._threaded([job for item in fresh for job in self._jobs(item)])
        to_copy = [compressed.work(self._copy(item)) for item in fresh]
        to_make = [increments.work(job) for job in jobs]
        sizes = [*(item.size for item in to_copy), *(item.size for item in to_make)]
        self._progress.expect(len(sizes), size=sum(sizes))
        copies = {done.name: done for done in self._run(to_copy, compressed.line)}
        replaced = {
            item.component.name: copies[item.component.name].length or item.component.length
            for item in fresh
        }
        made = self._increments(to_make, replaced)
        return {
            name: Beside(
                copy=copy,
                increments=tuple((job, made[name, job.old]) for job in jobs if job.name == name),
            )
            for name, copy in copies.items()
        }

    def _increments(
        self, items: list[Work[Made]], replaced: dict[str, int]
    ) -> dict[tuple[str, str], Made]:
        def judged(made: Made) -> Made:
            share = self._settings.worth_share
            return increments.judged(made, than=replaced[made.name], worth_share=share)

        found = self._run(items, lambda made: increments.line(judged(made)))
        return {(made.name, made.old): judged(made) for made in found}

    def _run(self, items: list[Work[Done]], line: Callable[[Done], str]) -> Iterator[Done]:
        """Do all within the settings' limits; line is what the progress says of each."""
        limit = self._settings.memory_limit_mb << 20
        begun = self._progress.begin
        workers = self._settings.workers
        for item, done in work.run(items, workers=workers, memory_limit=limit, begun=begun):
            self._progress.step(line(done), size=item.size, begun_as=item.name)
            yield done

    def _copy(self, fresh: Fresh) -> Copy:
        level = self._settings.compression_level
        full = str(fresh.full)
        return Copy(name=fresh.component.name, full=full, out=f"{full}.zst", level=level)

    def _threaded(self, jobs: list[Job]) -> list[Job]:
        """A few incrementals use the CPUs that many would have kept busy."""
        cpus = self._settings.workers or work.cpus()
        threads = budget.threads(len(jobs), cpus=cpus)
        return [msgspec.structs.replace(job, threads=threads) for job in jobs]

    def _jobs(self, fresh: Fresh) -> Iterator[Job]:
        new = fresh.component
        for base in self._catalogue.payloads(new.name)[: self._settings.incrementals_kept]:
            yield Job(
                name=new.name,
                old=base.version,
                new=new.version,
                base=str(self._catalogue.file(manifest.payload_path(new.name, base.version))),
                base_digest=base.digest,
                full=str(fresh.full),
                full_digest=new.digest,
                out=str(self._scratch / f"{new.name}.from-{base.version}"),
                effort=self._effort,
            )

"""From files and folders to a prepared release: payloads, incrementals, manifest.

* A version never changes its content, and versions only go up; going back is
  `publisher rollout withdraw`, or a release that reuses an older version.
* What the previous release had and this one doesn't name is carried over.
* Nothing is signed and the feed isn't touched: that is `publisher.publish`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from feed import manifest, tree, version
from feed.delta import Effort
from feed.manifest import (
    Activation,
    Compatibility,
    Component,
    Form,
    HealthPolicy,
    Increment,
    Payload,
    Release,
)
from publisher import compressed, increments, staging, work
from publisher.catalogue import Catalogue, digest_file
from publisher.compressed import Compressed, Copy
from publisher.errors import RefusedError, SigningError
from publisher.home import Desk, locked
from publisher.increments import Job, Made
from publisher.metadata import RELEASES, TARGETS
from publisher.progress import Progress, Silent
from publisher.settings import ComponentInput, ReleaseInput
from publisher.staging import ComponentReport, Staged, StagedTarget, Workspace
from publisher.work import Work

T = TypeVar("T", bound=msgspec.Struct)
Done = TypeVar("Done")


def prepare(
    desk: Desk,
    release_id: str,
    wanted: ReleaseInput,
    *,
    only: bool = False,
    effort: Effort | None = None,
    progress: Progress | None = None,
) -> Staged:
    """Build release `release_id` into the staging folder, in place of an earlier try.

    only leaves out what the previous release had and `wanted` doesn't name.
    effort is that of the incrementals; None: as the settings say.
    Reads the feed and holds the staging folder alone: a rollout can be halted
    while an hour of incrementals is being made.

    Raises RefusedError: the id or a version is taken, or a version goes back.
    SigningError: a key that publishing will need isn't here. HomeError: another
    release is being prepared. OSError.
    """
    desk.home.staging.mkdir(exist_ok=True)
    with locked(desk.home.staging_lock, doing="preparing a release"):
        staging.sweep(desk.home.staging)
        effort = effort or Effort[desk.settings.effort.upper()]
        builder = _Builder(desk, release_id, effort, progress or Silent())
        try:
            builder.check_request(wanted.components)
            builder.check_keys(wanted.components)
            return builder.build(wanted, only=only)
        finally:
            builder.workspace.discard()


class _Builder:
    """One release while it is being prepared."""

    def __init__(self, desk: Desk, release_id: str, effort: Effort, progress: Progress) -> None:
        self._desk = desk
        self._id = release_id
        self._effort = effort
        self._progress = progress
        self._catalogue = Catalogue(desk.repository, desk.home.targets)
        self._targets: list[StagedTarget] = []
        self._reports: dict[str, ComponentReport] = {}
        self._fulls: dict[str, Path] = {}
        if not manifest.is_release_id(release_id):
            raise RefusedError(
                f"release id {release_id!r}: expected letters, digits, '.', '_' and '-', at most "
                "64, starting with a letter or digit"
            )
        if any(item.id == release_id for item in self._catalogue.releases()):
            raise RefusedError(
                f"release {release_id} is already published; choose another id "
                "(`publisher show` lists them)"
            )
        self.workspace = Workspace(desk.home.staging, release_id)

    def check_request(self, inputs: Iterable[ComponentInput]) -> None:
        """Refuse what can't be built, before anything is read."""
        names: set[str] = set()
        for item in inputs:
            version.parse(item.version)
            if not manifest.is_component_name(item.name):
                raise RefusedError(
                    f"component {item.name!r}: a name is a-z, 0-9 and '-', at most 63 characters, "
                    "and no role's name"
                )
            if item.name in names:
                raise RefusedError(f"component {item.name} is given twice; name it once")
            names.add(item.name)
            path = Path(item.path)
            if not path.is_file() and not path.is_dir():
                raise RefusedError(f"component {item.name}: {path} is no file or folder")
            if path.is_file() and not manifest.is_filename(item.filename or path.name):
                raise RefusedError(
                    f"component {item.name}: {item.filename or path.name!r} can't be a file name "
                    "on every system; give `filename` in a release file"
                )

    def check_keys(self, inputs: Iterable[ComponentInput]) -> None:
        """Fail now rather than after an hour of building."""
        repository = self._desk.repository
        known = set(repository.components)
        needed = {item.name for item in inputs if item.name in known} | {RELEASES}
        if any(item.name not in known for item in inputs):
            needed.add(TARGETS)
        for role in sorted(needed):
            if not repository.can_sign(role):
                where = repository.keyring.whereabouts(repository.authority(role).keyids)
                raise SigningError(
                    f"release {self._id} will need {role}'s key ({where}), which isn't here; "
                    "bring it back and run again"
                )

    def build(self, wanted: ReleaseInput, *, only: bool) -> Staged:
        """Everything up to a prepared folder."""
        components = [self._component(item) for item in wanted.components]
        fresh = [item for item in components if item.name in self._fulls]
        copies = [self._copy(item) for item in fresh]
        jobs = [job for item in fresh for job in self._jobs(item)]
        self._expect([*map(compressed.work, copies), *map(increments.work, jobs)])
        self._compress(copies, fresh)
        made = self._increments(jobs)
        components = [self._with_predecessors(item, made) for item in components]
        if not only:
            components += self._carried({item.name for item in components})
        if not components:
            raise RefusedError(
                f"release {self._id} has no components; add --component name:kind:version=PATH"
            )
        release = Release(
            schema=manifest.SCHEMA,
            id=self._id,
            created=self._desk.repository.now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            components=tuple(sorted(components, key=lambda item: item.name)),
            compatibility=_plain(wanted.compatibility, Compatibility),
            activation=_plain(wanted.activation, Activation),
            health=_plain(wanted.health, HealthPolicy),
        )
        self._add_manifest(release)
        staged = Staged(
            release=release,
            based_on=self._desk.repository.targets(RELEASES).version,
            targets=tuple(self._targets),
            components=tuple(self._reports[item.name] for item in release.components),
        )
        self.workspace.finish(staged)
        return staged

    def _component(self, item: ComponentInput) -> Component:
        """Build a component's payload, or find it published already."""
        content = self.workspace.scratch / item.name
        source = Path(item.path)
        if source.is_dir():
            with content.open("wb") as out:
                tree.pack(source, out)
            digest = digest_file(content)
        else:
            digest = increments.copy_counting(source, content)
        component = Component(
            name=item.name,
            kind=item.kind,
            version=item.version,
            form=Form.TREE if source.is_dir() else Form.FILE,
            filename="" if source.is_dir() else item.filename or source.name,
            length=content.stat().st_size,
            digest=digest,
        )
        manifest.check_component(component, where=f"release {self._id}")
        if self._is_published(component):
            self._report(component, "reused")
            self._progress.expect(1)
            self._progress.step(f"{component.name} {component.version}: reused")
        else:
            self._add_payload(component, content)
        return component

    def _is_published(self, component: Component) -> bool:
        """Whether exactly this is in the feed; refuses what contradicts it."""
        published = self._catalogue.payloads(component.name)
        name, text = component.name, component.version
        for payload in published:
            if payload.version == text and payload.digest == component.digest:
                return True
            if payload.version == text:
                raise RefusedError(
                    f"{name} {text} is published with content {payload.digest}; this is "
                    f"{component.digest}. A version never changes: give it the next number"
                )
        if published and not version.is_newer(text, than=published[0].version):
            raise RefusedError(
                f"{name} {text} isn't newer than the published {published[0].version}; to send "
                "machines back, run `publisher rollout withdraw --to OLDER_RELEASE --reason …`"
            )
        return False

    def _add_payload(self, component: Component, content: Path) -> None:
        target = _payload_target(component)
        self._fulls[component.name] = self.workspace.add(target, content)

    def _copy(self, component: Component) -> Copy:
        full = str(self._fulls[component.name])
        level = self._desk.settings.compression_level
        return Copy(name=component.name, full=full, out=f"{full}.zst", level=level)

    def _compress(self, copies: list[Copy], components: list[Component]) -> None:
        """Put a compressed copy beside each payload, and sign how long it is."""
        by_name = {item.name: item for item in components}
        for done in self._run(map(compressed.work, copies), compressed.line):
            component = by_name[done.name]
            said = msgspec.to_builtins(Payload(compressed_length=done.length or 0))
            self._targets.append(msgspec.structs.replace(_payload_target(component), custom=said))
            self._report(component, "new", done)

    def _expect(self, items: list[Work[Any]]) -> None:
        self._progress.expect(len(items), size=sum(item.size for item in items))

    def _run(self, items: Iterable[Work[Done]], line: Callable[[Done], str]) -> Iterator[Done]:
        """Do all within the settings' limits; line is what the progress says of each."""
        settings = self._desk.settings
        limit = settings.memory_limit_mb << 20
        for item, done in work.run(list(items), workers=settings.workers, memory_limit=limit):
            self._progress.step(line(done), size=item.size)
            yield done

    def _report(self, component: Component, origin: str, copy: Compressed | None = None) -> None:
        packed = copy.length if copy else None
        self._reports[component.name] = ComponentReport(
            name=component.name,
            version=component.version,
            digest=component.digest,
            origin=origin,
            full_bytes=component.length,
            zst_bytes=packed,
            zst_level=copy.level if copy and packed else None,
            zst_cpu_s=copy.cpu_s if copy else 0.0,
        )

    def _increments(self, jobs: list[Job]) -> list[Made]:
        done = {}
        items = map(increments.work, jobs)
        for raw in self._run(items, lambda made: increments.line(self._judged(made))):
            done[raw.name, raw.old] = self._judged(raw)
        made = [done[job.name, job.old] for job in jobs]  # whichever was done first
        for item, job in zip(made, jobs, strict=True):
            if item.keep:
                self._add_increment(item, job)
        return made

    def _judged(self, made: Made) -> Made:
        report = self._reports[made.name]
        than = min(report.full_bytes, report.zst_bytes or report.full_bytes)
        return increments.judged(made, than=than, worth_share=self._desk.settings.worth_share)

    def _jobs(self, component: Component) -> list[Job]:
        kept = self._desk.settings.incrementals_kept
        jobs = []
        for base in self._catalogue.payloads(component.name)[:kept]:
            path = manifest.payload_path(component.name, base.version)
            jobs.append(
                Job(
                    name=component.name,
                    old=base.version,
                    new=component.version,
                    base=str(self._catalogue.file(path)),
                    base_digest=base.digest,
                    full=str(self._fulls[component.name]),
                    full_digest=component.digest,
                    out=str(self.workspace.scratch / f"{component.name}.from-{base.version}"),
                    effort=self._effort,
                )
            )
        return jobs

    def _add_increment(self, made: Made, job: Job) -> None:
        custom = Increment(
            base_digest=job.base_digest,
            result_digest=job.full_digest,
            result_length=self._reports[job.name].full_bytes,
            format=made.format,
        )
        target = StagedTarget(
            role=job.name,
            path=manifest.increment_path(job.name, old=job.old, new=job.new),
            length=made.length,
            sha256=digest_file(Path(job.out)),
            custom=msgspec.structs.asdict(custom),
        )
        self.workspace.add(target, Path(job.out))
        self._targets.append(target)

    def _with_predecessors(self, component: Component, made: list[Made]) -> Component:
        mine = sorted(
            (item for item in made if item.name == component.name),
            key=lambda item: version.parse(item.old),
            reverse=True,
        )
        report = self._reports[component.name]
        self._reports[component.name] = msgspec.structs.replace(report, increments=tuple(mine))
        if report.origin == "new":
            olds = tuple(item.old for item in mine if item.keep)
        else:
            olds = self._catalogue.predecessors(component.name, component.version)
        return msgspec.structs.replace(component, predecessors=olds)

    def _carried(self, named: set[str]) -> list[Component]:
        listed = self._catalogue.releases()
        if not listed:
            return []
        carried = []
        for item in self._catalogue.release(listed[-1].id).components:
            if item.name not in named:
                olds = self._catalogue.predecessors(item.name, item.version)
                carried.append(msgspec.structs.replace(item, predecessors=olds))
                self._report(item, "carried")
        return carried

    def _add_manifest(self, release: Release) -> None:
        data = manifest.serialize(release)
        manifest.parse(data, expected_id=release.id)
        content = self.workspace.scratch / "manifest"
        content.write_bytes(data)
        sequence = max((item.sequence for item in self._catalogue.releases()), default=0) + 1
        target = StagedTarget(
            role=RELEASES,
            path=manifest.release_path(release.id),
            length=len(data),
            sha256=digest_file(content),
            custom={"sequence": sequence},
        )
        self.workspace.add(target, content)
        self._targets.append(target)


def _plain(given: msgspec.Struct, form: type[T]) -> T:
    return form(**msgspec.structs.asdict(given))


def _payload_target(component: Component) -> StagedTarget:
    return StagedTarget(
        role=component.name,
        path=manifest.payload_path(component.name, component.version),
        length=component.length,
        sha256=component.digest,
    )

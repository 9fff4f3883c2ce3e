"""From files and folders to a prepared release: payloads, incrementals, manifest.

What may be asked for is in `request`, a payload's bytes in `payloads`, what
goes beside them in `beside`, and the folder that waits in `staging`.

* What the previous release had and this one doesn't name is carried over.
* Nothing is signed and the feed isn't touched: that is `publisher.publish`.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import UNSET

from feed import manifest
from feed.delta import Effort
from feed.manifest import (
    Activation,
    Compatibility,
    Component,
    HealthPolicy,
    Increment,
    Release,
)
from publisher import payloads, request, staging
from publisher.beside import Beside, Fresh, Maker
from publisher.catalogue import Catalogue, digest_file
from publisher.compressed import Compressed
from publisher.errors import RefusedError
from publisher.home import Desk, locked
from publisher.increments import Job, Made
from publisher.metadata import RELEASES
from publisher.progress import Progress, Silent
from publisher.settings import ComponentInput, ReleaseInput
from publisher.staging import ComponentReport, Staged, StagedTarget, Workspace

T = TypeVar("T", bound=msgspec.Struct)


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
        catalogue = Catalogue(desk.repository, desk.home.targets)
        request.check_id(release_id, catalogue)
        effort = effort or Effort[desk.settings.effort.upper()]
        builder = _Builder(desk, release_id, catalogue, effort, progress or Silent())
        try:
            request.check_components(wanted.components)
            request.check_keys(release_id, wanted.components, desk.repository)
            return builder.build(wanted, only=only)
        finally:
            builder.workspace.discard()


class _Builder:
    """One release while it is being prepared."""

    def __init__(
        self,
        desk: Desk,
        release_id: str,
        catalogue: Catalogue,
        effort: Effort,
        progress: Progress,
    ) -> None:
        self._desk = desk
        self._id = release_id
        self._catalogue = catalogue
        self._progress = progress
        self._targets: list[StagedTarget] = []
        self._reports: dict[str, ComponentReport] = {}
        self._fresh: list[Fresh] = []
        self.workspace = Workspace(desk.home.staging, release_id)
        self._maker = Maker(
            desk.settings, catalogue, self.workspace.scratch, effort=effort, progress=progress
        )

    def build(self, wanted: ReleaseInput, *, only: bool) -> Staged:
        """Everything up to a prepared folder."""
        named = [
            self._with_audience(self._component(item), item.audience) for item in wanted.components
        ]
        made = self._maker.make(self._fresh)
        for item in self._fresh:
            self._add(item.component, made[item.component.name])
        components = [self._with_predecessors(item) for item in named]
        if not only:
            components += self._carried({item.name for item in components})
        if not components:
            raise RefusedError(
                f"release {self._id} has no components; add --component name:kind:version=PATH"
            )
        traits = wanted.default_traits if only else {**self._traits(), **wanted.default_traits}
        release = Release(
            schema=manifest.SCHEMA,
            id=self._id,
            created=self._desk.repository.now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            components=tuple(sorted(components, key=lambda item: item.name)),
            compatibility=_plain(wanted.compatibility, Compatibility),
            activation=_plain(wanted.activation, Activation),
            health=_plain(wanted.health, HealthPolicy),
            default_traits=traits or UNSET,
        )
        request.check_audiences(release)
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
        label = f"{item.name} {item.version}"
        self._progress.expect(1)
        self._progress.begin(label)
        component = payloads.build(item, content, where=f"release {self._id}")
        if request.is_published(component, self._catalogue):
            self._report(component, "reused")
            said = "reused"
        else:
            full = self.workspace.add(payloads.target(component), content)
            self._fresh.append(Fresh(component=component, full=full))
            said = f"{component.length:,} bytes"
        self._progress.step(f"{label}: {said}", begun_as=label)
        return component

    def _add(self, component: Component, beside: Beside) -> None:
        """Take a new component and what was made for it into the release."""
        packed = beside.copy.length or 0
        self._targets.append(payloads.target(component, compressed_length=packed))
        for job, made in beside.increments:
            if made.keep:
                self._add_increment(component, job, made)
        made_all = tuple(made for _, made in beside.increments)
        self._report(component, "new", copy=beside.copy, increments=made_all)

    def _add_increment(self, component: Component, job: Job, made: Made) -> None:
        custom = Increment(
            base_digest=job.base_digest,
            result_digest=component.digest,
            result_length=component.length,
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

    def _report(
        self,
        component: Component,
        origin: str,
        *,
        copy: Compressed | None = None,
        increments: tuple[Made, ...] = (),
    ) -> None:
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
            increments=increments,
        )

    def _with_predecessors(self, component: Component) -> Component:
        report = self._reports[component.name]
        if report.origin == "new":
            olds = tuple(item.old for item in report.increments if item.keep)
        else:
            olds = self._catalogue.predecessors(component.name, component.version)
        return msgspec.structs.replace(component, predecessors=olds)

    def _with_audience(self, component: Component, given: dict[str, str] | None) -> Component:
        """For whom the component was before, unless it is said anew."""
        before = self._previous.component(component.name) if self._previous else None
        if given is None and before:
            return msgspec.structs.replace(component, audience=before.audience)
        return msgspec.structs.replace(component, audience=given or UNSET)

    @functools.cached_property
    def _previous(self) -> Release | None:
        listed = self._catalogue.releases()
        return self._catalogue.release(listed[-1].id) if listed else None

    def _traits(self) -> dict[str, str]:
        return (self._previous.default_traits or {}) if self._previous else {}

    def _carried(self, named: set[str]) -> list[Component]:
        carried = []
        for item in self._previous.components if self._previous else ():
            if item.name not in named:
                self._report(item, "carried")
                carried.append(self._with_predecessors(item))
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

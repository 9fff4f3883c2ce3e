"""What a release may be asked for: refused here, before an hour of building.

* A release's id is new, a component is named once, its file or folder is there.
* A version never changes its content, and versions only go up.
* The keys that publishing will need are here now.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from feed import manifest, version
from feed.manifest import Component, Release
from publisher.catalogue import Catalogue
from publisher.errors import RefusedError, SigningError
from publisher.metadata import RELEASES, TARGETS
from publisher.repository import Repository
from publisher.settings import ComponentInput


def check_id(release_id: str, catalogue: Catalogue) -> None:
    """Raises RefusedError: it is no release id, or taken."""
    if not manifest.is_release_id(release_id):
        raise RefusedError(
            f"release id {release_id!r}: expected letters, digits, '.', '_' and '-', at most "
            "64, starting with a letter or digit"
        )
    if any(item.id == release_id for item in catalogue.releases()):
        raise RefusedError(
            f"release {release_id} is already published; choose another id "
            "(`publisher show` lists them)"
        )


def check_components(inputs: Iterable[ComponentInput]) -> None:
    """Raises RefusedError: a component can't be built as it was named."""
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
        _check_path(item)


def _check_path(item: ComponentInput) -> None:
    path = Path(item.path)
    if not path.is_file() and not path.is_dir():
        raise RefusedError(f"component {item.name}: {path} is no file or folder")
    if path.is_file() and not manifest.is_filename(item.filename or path.name):
        raise RefusedError(
            f"component {item.name}: {item.filename or path.name!r} can't be a file name "
            "on every system; give `filename` in a release file"
        )


def check_audiences(release: Release) -> None:
    """Raises RefusedError: a machine that says nothing of itself would be left out."""
    defaults = release.default_traits or {}
    for item in release.components:
        for trait in item.audience or {}:
            if trait not in defaults:
                raise RefusedError(
                    f"release {release.id}: {item.name} is for machines by their {trait!r}, and "
                    f"the release has no default for it; give --default-trait {trait}=VALUE"
                )


def check_keys(release_id: str, inputs: Iterable[ComponentInput], repository: Repository) -> None:
    """Raises SigningError: a key that publishing will need isn't here."""
    names = {item.name for item in inputs}
    known = set(repository.components)
    needed = names & known | {RELEASES}
    if names - known:
        needed.add(TARGETS)
    for role in sorted(needed):
        if not repository.can_sign(role):
            where = repository.keyring.whereabouts(repository.authority(role).keyids)
            raise SigningError(
                f"release {release_id} will need {role}'s key ({where}), which isn't here; "
                "bring it back and run again"
            )


def is_published(component: Component, catalogue: Catalogue) -> bool:
    """Whether exactly this is in the feed already.

    Raises RefusedError: it contradicts what is there, or its version goes back.
    """
    published = catalogue.payloads(component.name)
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

"""What a release is: the set of component versions that were tested together.

A manifest travels as JSON at `releases/<id>.json`, signed by the `releases`
role. Payloads and incrementals are signed by their component's own role, at
paths that this module alone spells out (docs/feed-format.md).

Pure: bytes in, values out, with limits on everything.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from feed import version
from feed.errors import ManifestError

SCHEMA = 1
MANIFEST_BYTES_MAX = 1 << 20
COMPONENTS_MAX = 256
COMPONENT_BYTES_MAX = 16 << 30
PERIOD_MAX_S = 366 * 86400  # as in an agent's configuration
INCREMENTALS_KEPT = 14  # releases, as pattern servers in the field keep
TRAITS_MAX = 16

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_RELEASE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TRAIT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FILENAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
RESERVED_ROLES = frozenset({"root", "targets", "snapshot", "timestamp", "releases", "rollout"})


class Kind(StrEnum):
    """What a component is to the agent that takes it."""

    PATTERN = "pattern"
    ENGINE = "engine"
    PROGRAM = "program"
    CONFIG = "config"
    POLICY = "policy"
    SETTINGS = "settings"


class Form(StrEnum):
    """How a component's content is laid out."""

    FILE = "file"
    TREE = "tree"  # a folder; its content is a deterministic tar (feed.tree)


class Component(msgspec.Struct, frozen=True, kw_only=True):
    """One updatable thing in a release.

    digest is the lowercase hex SHA-256 of the content, length its bytes: of
    the file, or of the deterministic tar for a tree. predecessors are the
    versions from which an incremental may lead here, newest first. audience
    says which machines it is for, {trait: value}; none: all of them.
    """

    name: str
    kind: Kind
    version: str
    form: Form
    filename: str  # inside the component's folder in a slot; "" for a tree
    length: int
    digest: str
    predecessors: tuple[str, ...] = ()
    audience: dict[str, str] | UnsetType = UNSET  # left out of the bytes where there is none

    def is_for(self, traits: Mapping[str, str]) -> bool:
        """Whether machines with `traits` take it."""
        wanted = self.audience or {}
        return all(traits.get(name) == value for name, value in wanted.items())


class Compatibility(msgspec.Struct, frozen=True, kw_only=True):
    """Where a release may be installed; empty means anywhere.

    os holds platform names as sys.platform gives them (linux, win32, darwin).
    agent_min is the oldest agent version that can take the release.
    """

    os: tuple[str, ...] = ()
    agent_min: str | None = None


class Activation(msgspec.Struct, frozen=True, kw_only=True):
    """Which of the administrator's activation hooks run after a flip.

    Names, not commands: what a name runs is the machine's configuration.
    None runs every configured hook.
    """

    hooks: tuple[str, ...] | None = None


class HealthPolicy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a release asks the guardian to watch for; None leaves the default.

    Units are in the names; shares are fractions of one CPU core. The
    administrator's configuration overrides each value (docs/configuration.md).
    """

    warmup_s: float | None = None
    window_s: float | None = None
    probation_s: float | None = None
    probation_max_s: float | None = None
    baseline_s: float | None = None
    cpu_factor: float | None = None
    cpu_floor_share: float | None = None
    memory_factor: float | None = None
    memory_floor_bytes: int | None = None
    crashes_allowed: int | None = None
    probe_failures_allowed: int | None = None
    tries: int | None = None


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed manifest. `created` is RFC 3339 UTC, for people only.

    default_traits are those of a machine that says nothing else of itself.
    """

    schema: int
    id: str
    created: str
    components: tuple[Component, ...]
    compatibility: Compatibility = Compatibility()
    activation: Activation = Activation()
    health: HealthPolicy = HealthPolicy()
    default_traits: dict[str, str] | UnsetType = UNSET

    def for_host(self, traits: Mapping[str, str]) -> Release:
        """The release as a machine with `traits` takes it: without what is for others.

        It may have no component left.
        """
        known = {**(self.default_traits or {}), **traits}
        meant = tuple(item for item in self.components if item.is_for(known))
        return msgspec.structs.replace(self, components=meant)

    @property
    def digest(self) -> str:
        """The release's content digest; see content_digest."""
        return content_digest({item.name: item.digest for item in self.components})

    def component(self, name: str) -> Component | None:
        """The component called `name`, None if the release has none."""
        return next((item for item in self.components if item.name == name), None)


def content_digest(components: dict[str, str]) -> str:
    """The digest of a set of components, {name: content digest}.

    Equal for two releases exactly when their contents are equal, whatever
    their ids, dates and policies say. Lowercase hex SHA-256 of sorted
    `name digest\\n` lines.
    """
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(components.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def parse(data: bytes, *, expected_id: str) -> Release:
    """The release in `data`, checked whole.

    Raises ManifestError: names the release, the component and the field.
    """
    if len(data) > MANIFEST_BYTES_MAX:
        raise ManifestError(
            f"release {expected_id}: the manifest is {len(data):,} bytes, "
            f"the limit is {MANIFEST_BYTES_MAX:,}"
        )
    try:
        release = msgspec.json.decode(data, type=Release)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(
            f"release {expected_id}: the manifest doesn't parse: {error}"
        ) from error
    _check(release, expected_id)
    return release


def serialize(release: Release) -> bytes:
    """The manifest's bytes: the same release gives the same bytes."""
    data = msgspec.json.encode(release, order="deterministic")
    return msgspec.json.format(data, indent=1) + b"\n"


def _check(release: Release, expected_id: str) -> None:
    where = f"release {expected_id}"
    if release.schema != SCHEMA:
        raise ManifestError(f"{where}: schema {release.schema}, this version reads {SCHEMA}")
    if release.id != expected_id or not _RELEASE_ID.fullmatch(release.id):
        raise ManifestError(f"{where}: the manifest calls itself {release.id!r}")
    if not 1 <= len(release.components) <= COMPONENTS_MAX:
        raise ManifestError(
            f"{where}: {len(release.components)} components, expected 1 to {COMPONENTS_MAX}"
        )
    repeated = _repeated(item.name for item in release.components)
    if repeated:
        raise ManifestError(f"{where}: component {repeated!r} is listed twice")
    for item in release.components:
        check_component(item, where=where)
    if release.compatibility.agent_min is not None:
        _check_version(release.compatibility.agent_min, f"{where}: compatibility.agent_min")
    _check_policy(release.health, where)
    check_traits(release.default_traits or {}, where=f"{where}: default_traits")


def check_component(item: Component, *, where: str) -> None:
    """Refuse a component that a slot could not hold.

    Raises ManifestError: starts with `where`.
    """
    where = f"{where}: component {item.name!r}"
    if not is_component_name(item.name):
        raise ManifestError(f"{where}: a name is a-z, 0-9 and '-', at most 63, and no role's name")
    for text in (item.version, *item.predecessors):
        _check_version(text, where)
    if not 0 <= item.length <= COMPONENT_BYTES_MAX:
        raise ManifestError(f"{where}: length {item.length}, expected 0 to {COMPONENT_BYTES_MAX:,}")
    if not _DIGEST.fullmatch(item.digest):
        raise ManifestError(f"{where}: digest {item.digest[:80]!r} is not 64 lowercase hex digits")
    if len(item.predecessors) > INCREMENTALS_KEPT:
        raise ManifestError(
            f"{where}: {len(item.predecessors)} predecessors, at most {INCREMENTALS_KEPT}"
        )
    is_file = item.form is Form.FILE
    if is_file != bool(item.filename) or (is_file and not is_filename(item.filename)):
        raise ManifestError(f"{where}: file name {item.filename!r} doesn't fit a {item.form}")
    check_traits(item.audience or {}, where=f"{where}: audience")


def check_traits(traits: Mapping[str, str], *, where: str) -> None:
    """Refuse traits that no configuration could have.

    Raises ManifestError: starts with `where`.
    """
    if len(traits) > TRAITS_MAX:
        raise ManifestError(f"{where}: {len(traits)} traits, at most {TRAITS_MAX}")
    for text in (*traits, *traits.values()):
        if not _TRAIT.fullmatch(text):
            raise ManifestError(f"{where}: {text[:80]!r}, expected a-z, 0-9 and '-', at most 63")


def _check_version(text: str, where: str) -> None:
    try:
        version.parse(text)
    except ManifestError as error:
        raise ManifestError(f"{where}: {error}") from error


def is_component_name(name: str) -> bool:
    """Whether `name` can be a component's name, and so a role's and a folder's."""
    return bool(_NAME.fullmatch(name)) and name not in RESERVED_ROLES


def is_release_id(text: str) -> bool:
    """Whether `text` can be a release's id."""
    return bool(_RELEASE_ID.fullmatch(text))


def is_filename(name: str) -> bool:
    """Whether `name` is a plain file name everywhere, Windows included."""
    reserved = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(10))}
    return (
        bool(_FILENAME.fullmatch(name))
        and not name.endswith(".")
        and name.split(".", maxsplit=1)[0].lower() not in reserved
    )


def _check_policy(policy: HealthPolicy, where: str) -> None:
    for field, value in msgspec.structs.asdict(policy).items():
        if value is not None and not 0 <= value < 1e15:
            raise ManifestError(f"{where}: health.{field} is {value}, expected zero or more")
        if value is not None and field.endswith("_s") and value > PERIOD_MAX_S:
            raise ManifestError(
                f"{where}: health.{field} is {value}, expected at most {PERIOD_MAX_S:,} seconds"
            )
    if policy.window_s == 0:
        raise ManifestError(f"{where}: health.window_s is 0, expected more than zero")


def _repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def payload_path(name: str, version_text: str) -> str:
    """The TUF target path of a component's full payload."""
    return f"components/{name}/{version_text}/full"


def increment_path(name: str, *, old: str, new: str) -> str:
    """The TUF target path of the incremental that makes `new` from `old`."""
    return f"components/{name}/{new}/from-{old}.delta"


def release_path(release_id: str) -> str:
    """The TUF target path of a release manifest."""
    return f"releases/{release_id}.json"


def rollout_path(region: str) -> str:
    """The TUF target path of a region's rollout plan."""
    return f"rollout/{region}.json"


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """What a component's role says beside a full payload, as target `custom`.

    compressed_length is what its compressed copy had when it was signed: for
    planning only, a mirror may compress anew. 0: it isn't worth one; None: unknown.
    """

    compressed_length: int | None = None


def parse_payload(custom: Any) -> Payload:
    """The `custom` of a payload's target metadata; a hint, so what is no use means unknown."""
    try:
        found = msgspec.convert(custom or {}, Payload)
    except msgspec.ValidationError:
        return Payload()
    is_usable = found.compressed_length is None or found.compressed_length >= 0
    return found if is_usable else Payload()


class Increment(msgspec.Struct, frozen=True, kw_only=True):
    """What a component's role signs beside an incremental, as target `custom`.

    base_digest and result_digest are content digests, result_length bytes;
    format names the codec (feed.delta).
    """

    base_digest: str
    result_digest: str
    result_length: int
    format: str


def parse_increment(custom: Any, *, path: str) -> Increment:
    """The `custom` of an incremental's target metadata.

    Raises ManifestError: missing or malformed fields.
    """
    try:
        found = msgspec.convert(custom, Increment)
    except msgspec.ValidationError as error:
        raise ManifestError(f"{path}: the incremental's custom metadata: {error}") from error
    if not (_DIGEST.fullmatch(found.base_digest) and _DIGEST.fullmatch(found.result_digest)):
        raise ManifestError(f"{path}: a digest is not 64 lowercase hex digits")
    if not 0 <= found.result_length <= COMPONENT_BYTES_MAX:
        raise ManifestError(f"{path}: result length {found.result_length}")
    return found

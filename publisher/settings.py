"""Every setting of the publisher: publisher.toml, and the file that describes a release.

Both are TOML. Unknown keys, wrong types and impossible values are refused with
the file, the key and the expected form; nothing is guessed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from feed import misfit
from feed.manifest import INCREMENTALS_KEPT, Activation, Compatibility, HealthPolicy, Kind
from publisher.errors import SettingsError

FILE_BYTES_MAX = 1 << 20
LIMIT_MB_MIN = 512  # two processes, and a segment while it is packed

Days = Annotated[float, Meta(gt=0, le=3660)]
Region = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$",
        description="1 to 63 of a-z, 0-9 and -, the first a letter or digit",
    ),
]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of a file."""


class Expiry(Section, frozen=True, kw_only=True):
    """Days for which a role's signature is good: how long an attacker who holds
    back newer metadata can keep a machine from noticing.

    timestamp outlives a long weekend in which the heartbeat is broken, and
    nothing else is signed as often. snapshot gives the same heartbeat a second
    week. targets and the delegated roles change with releases; half a year lets
    a quiet component be. root comes out of its safe once a year.
    """

    root: Days = 365.0
    targets: Days = 180.0
    delegated: Days = 180.0
    snapshot: Days = 14.0
    timestamp: Days = 7.0

    def days(self, role: str) -> float:
        """Of a role by name; whatever isn't a top-level role is delegated."""
        found: float = getattr(self, role, self.delegated)
        return found


class Settings(Section, frozen=True, kw_only=True):
    """publisher.toml."""

    regions: Annotated[tuple[Region, ...], Meta(min_length=1, max_length=256)] = ("global",)
    incrementals_kept: Annotated[int, Meta(ge=0, le=INCREMENTALS_KEPT)] = INCREMENTALS_KEPT
    workers: Annotated[int, Meta(ge=0, le=256)] = 0  # processes for incrementals; 0: one a CPU
    effort: Literal["quick", "usual", "thorough"] = "usual"  # feed.delta.Effort
    memory_limit_mb: Annotated[int, Meta(ge=LIMIT_MB_MIN, le=1 << 20)] = 2048  # of all processes
    worth_share: Annotated[float, Meta(gt=0, le=1)] = 0.7  # of the compressed full, at most
    compression_level: Annotated[int, Meta(ge=1, le=22)] = 19  # at most; the lowest that pays
    expiry_days: Expiry = Expiry()


class ComponentInput(Section, frozen=True, kw_only=True):
    """A component to release: the file or folder at `path`."""

    name: str
    kind: Kind
    version: str
    path: str
    filename: str | None = None  # in the slot; None: the name of the file at `path`
    audience: dict[str, str] | None = None  # None: as in the previous release; {}: everybody


class HealthInput(
    HealthPolicy, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """feed.manifest.HealthPolicy, without room for a misspelt key."""


class ActivationInput(Activation, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """feed.manifest.Activation, without room for a misspelt key."""


class CompatibilityInput(Compatibility, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """feed.manifest.Compatibility, without room for a misspelt key."""


class ReleaseInput(Section, frozen=True, kw_only=True):
    """What a release is made of (release.toml)."""

    components: tuple[ComponentInput, ...] = ()
    compatibility: CompatibilityInput = CompatibilityInput()
    activation: ActivationInput = ActivationInput()
    health: HealthInput = HealthInput()
    default_traits: dict[str, str] = {}  # besides those of the previous release


T = TypeVar("T", bound=Section)


def load(path: Path) -> Settings:
    """The settings in `path`.

    Raises SettingsError.
    """
    return parse(_read(path), Settings, where=str(path))


def load_release(path: Path) -> ReleaseInput:
    """The release described in `path`; its paths are relative to the file's folder.

    Raises SettingsError.
    """
    found = parse(_read(path), ReleaseInput, where=str(path))
    folder = path.absolute().parent
    placed = (
        msgspec.structs.replace(item, path=str(folder / item.path)) for item in found.components
    )
    return msgspec.structs.replace(found, components=tuple(placed))


def parse(data: bytes, form: type[T], *, where: str) -> T:
    """The `form` in `data`, which `where` names in errors."""
    if len(data) > FILE_BYTES_MAX:
        raise SettingsError(f"{where}: {len(data):,} bytes, the limit is {FILE_BYTES_MAX:,}")
    try:
        return msgspec.toml.decode(data, type=form)
    except msgspec.ValidationError as error:
        told = misfit.explained(error, msgspec.toml.decode(data), form)
        raise SettingsError(f"{where}: {told}; correct it and run again") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"{where}: not TOML: {error}; correct it and run again") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path}: can't be read ({error.strerror})") from error


def template(regions: tuple[str, ...]) -> str:
    """The publisher.toml that `publisher init` writes: the defaults, spelt out."""
    listed = ", ".join(f'"{region}"' for region in regions)
    base = Settings()
    expiry = base.expiry_days
    return f"""\
# Settings of the release desk. Every key is optional; these are the defaults.

regions = [{listed}]

# Releases of a component for which an incremental to the newest is made.
incrementals_kept = {base.incrementals_kept}

# Processes that make incrementals; 0 takes one a CPU.
workers = {base.workers}

# How hard they try: "quick", "usual" or "thorough".
effort = "{base.effort}"

# MiB that `publisher release` may take, all its processes together; at least {LIMIT_MB_MIN}.
memory_limit_mb = {base.memory_limit_mb}

# An incremental larger than this share of the compressed full file is left out.
worth_share = {base.worth_share:g}

# Highest zstd level of the compressed copies, 1 to 22; a lower one is taken where
# that makes no difference.
compression_level = {base.compression_level}

# Days for which a signature is good. A machine refuses what is older, so
# `publisher publish --refresh` has to run more often than that: daily, from a timer.
[expiry_days]
root = {expiry.root:g}
targets = {expiry.targets:g}
delegated = {expiry.delegated:g}
snapshot = {expiry.snapshot:g}
timestamp = {expiry.timestamp:g}
"""

"""A new release desk: settings, keys, an empty signed feed."""

from __future__ import annotations

from pathlib import Path

import msgspec

from feed import durable
from publisher import settings
from publisher.errors import HomeError, RefusedError
from publisher.home import Home, locked, make_folder
from publisher.keys import Keyring
from publisher.metadata import ROOT, TARGETS
from publisher.repository import Clock, Repository, utc_now
from publisher.settings import Settings

OFFLINE_ROLES = (ROOT, TARGETS)  # used when a key or a component is new, not from day to day


class Created(msgspec.Struct, frozen=True, kw_only=True):
    """What was made. keys is (role, file, whether to take it offline); no secret in it."""

    home: str
    feed: str
    trust_root: str
    keys: tuple[tuple[str, str, bool], ...]


def create(
    path: Path,
    *,
    regions: tuple[str, ...] = ("global",),
    root_keys: int = 1,
    root_threshold: int = 1,
    clock: Clock = utc_now,
) -> Created:
    """Make a release desk in `path`.

    The feed's first timestamp is written last: a run that was killed before
    is no release desk, and its keys signed nothing anybody can see.

    Raises HomeError: there is one already, or what a killed run left.
    RefusedError: a threshold above the number of keys. SettingsError. OSError.
    """
    if root_threshold > root_keys:
        raise RefusedError(
            f"a threshold of {root_threshold} can't be reached with {root_keys} root keys; "
            "give --root-keys at least as many"
        )
    home = Home(path.absolute())
    text = settings.template(regions).encode()
    chosen = settings.parse(text, Settings, where="--region")
    home.path.mkdir(parents=True, exist_ok=True)
    with locked(home.lock, doing="making a release desk"):
        _require_empty(home)
        make_folder(home.metadata)
        make_folder(home.targets)
        home.staging.mkdir(mode=0o700)
        durable.replace(home.settings, text, mode=0o644)
        keyring = Keyring(home.keys)
        Repository.create(
            home.metadata,
            keyring=keyring,
            expiry=chosen.expiry_days,
            root_keys=root_keys,
            root_threshold=root_threshold,
            clock=clock,
        ).save(root_first=True)
    listed = tuple(
        (item.role, str(keyring.path(item)), item.role in OFFLINE_ROLES) for item in keyring.entries
    )
    return Created(
        home=str(home.path),
        feed=str(home.feed),
        trust_root=str(home.metadata / "1.root.json"),
        keys=listed,
    )


def _require_empty(home: Home) -> None:
    for item in (home.settings, home.keys, home.feed, home.staging):
        if item.exists():
            raise HomeError(
                f"{item} exists: this folder is a release desk already (`publisher show`), or what "
                "an interrupted init left; nothing was changed. To start anew choose another folder"
            )

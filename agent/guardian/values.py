"""`settings` components whose target is a key of Windows' registry.

Every value that is to be written is checked and spelt first, then what is
there is recorded, type and bytes, then it is written. A value that wasn't there
is deleted again; keys that were made for it go when nothing else is in them.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence

import msgspec

from agent.errors import ActivationError
from agent.host import registry as formats
from agent.host.registry import Key, Raw, Registry, Value


class Edit(msgspec.Struct, frozen=True):
    """One value of one key; None deletes it."""

    key: Key
    name: str
    value: Raw | None


class PreviousValue(msgspec.Struct, frozen=True, kw_only=True):
    """A value as it was; made are the keys that weren't there, the deepest first.

    type and content (base64) are None if the value didn't exist.
    """

    key: str
    name: str
    type: int | None = None
    content: str | None = None
    made: tuple[str, ...] = ()


def planned(target: str, values: dict[str, Value], registry: Registry | None) -> list[Edit]:
    """What is to be written for `values` below the key `target`.

    Raises ActivationError: not a key, or not a value it can hold; nothing was written.
    """
    found = _needed(registry)
    try:
        top = formats.parse_key(target)
        edits = []
        for setting, value in values.items():
            key, name = formats.place(top, setting)
            raw = None if value is None else formats.encoded(value, found.read(key, name))
            edits.append(Edit(key, name, raw))
    except ValueError as error:
        raise ActivationError(f"settings for {target}: {error}") from error
    return edits


def previous(edits: Sequence[Edit], registry: Registry | None) -> tuple[PreviousValue, ...]:
    """What the values of `edits` are now. Raises OSError."""
    return tuple(_previous(edit, _needed(registry)) for edit in edits)


def _previous(edit: Edit, registry: Registry) -> PreviousValue:
    raw = registry.read(edit.key, edit.name)
    missing = [key for key in (edit.key, *edit.key.parents()) if not registry.exists(key)]
    return PreviousValue(
        key=str(edit.key),
        name=edit.name,
        type=raw.type if raw else None,
        content=base64.b64encode(raw.data).decode() if raw else None,
        made=tuple(str(key) for key in missing),
    )


def write(edits: Iterable[Edit], registry: Registry | None) -> None:
    """Make the values what they are to be. Raises OSError."""
    for edit in edits:
        _put(_needed(registry), edit.key, edit.name, edit.value)


def restore(kept: Iterable[PreviousValue], registry: Registry | None) -> None:
    """Make the values what they were. Safe to repeat. Raises OSError: not all is back yet."""
    items = tuple(kept)
    for item in items:
        raw = None
        if item.type is not None and item.content is not None:
            raw = Raw(item.type, base64.b64decode(item.content))
        _put(_needed(registry), formats.parse_key(item.key), item.name, raw)
    for path in sorted({path for item in items for path in item.made}, key=len, reverse=True):
        _needed(registry).delete_empty(formats.parse_key(path))


def _put(registry: Registry, key: Key, name: str, value: Raw | None) -> None:
    if value is None:
        registry.delete(key, name)
    else:
        registry.write(key, name, value)


def _needed(registry: Registry | None) -> Registry:
    if registry is None:
        raise ActivationError("settings go to the registry here, and this isn't Windows")
    return registry

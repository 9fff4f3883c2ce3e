"""`settings` components: values that are put into a file, and taken back.

A settings payload is a JSON object of key → text, number, truth value or null
(null removes the key). Its target is a file of `key = value` lines named in
the configuration. Before the first edit, the target's whole previous content
is stored durably; a revert puts it back byte for byte. In 2022 a cleanup
component's edits outlived the rollback of its pattern: here they can't.
"""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import msgspec

from agent.config import SettingsTarget
from agent.errors import ActivationError
from agent.layout import Layout
from agent.slots.seal import Seal
from feed import durable
from feed.manifest import Kind

TARGET_BYTES_MAX = 4 << 20
PAYLOAD_BYTES_MAX = 1 << 20

Value = str | int | float | bool | None


class Previous(msgspec.Struct, frozen=True, kw_only=True):
    """A target as it was: base64 of its bytes, None if it didn't exist."""

    file: str
    content: str | None
    mode: int


class Undo(msgspec.Struct, frozen=True, kw_only=True):
    """What a trial changed, by attempt."""

    attempt: str
    previous: tuple[Previous, ...]


def apply(
    layout: Layout, slot: Path, seal: Seal, targets: tuple[SettingsTarget, ...], *, attempt: str
) -> None:
    """Put the settings of the release in `slot` into their targets, undoably.

    Safe to repeat: what `attempt` already saved isn't saved again.
    Raises ActivationError: a payload or target can't be used; nothing after it is edited.
    """
    edits = _edits(slot, seal, targets)
    if not edits:
        return
    if _load(layout.settings_undo, attempt) is None:
        previous = tuple(_previous(file) for file, _ in edits)
        undo = Undo(attempt=attempt, previous=previous)
        durable.replace(layout.settings_undo, msgspec.json.encode(undo), mode=0o600)
    for file, values in edits:
        mode = stat.S_IMODE(file.stat().st_mode) if file.exists() else 0o644
        old = file.read_text(encoding="utf-8") if file.exists() else ""
        durable.replace(file, merged(old, values).encode(), mode=mode)


def revert(layout: Layout, *, attempt: str) -> None:
    """Put back what `attempt` changed. Safe to repeat."""
    undo = _load(layout.settings_undo, attempt)
    for item in undo.previous if undo else ():
        if item.content is None:
            durable.remove(Path(item.file))
        else:
            durable.replace(Path(item.file), base64.b64decode(item.content), mode=item.mode)


def forget(layout: Layout) -> None:
    """The attempt is settled: nothing is to be undone any more."""
    if layout.settings_undo.exists():
        durable.remove(layout.settings_undo)


def merged(text: str, values: dict[str, Value]) -> str:
    """`text` with `values` set: lines are replaced where they stand, new ones added last.

    Comments, order and unrelated lines stay as they are.
    """
    left = dict(values)
    lines = []
    for line in text.splitlines():
        key = line.split("=", 1)[0].strip()
        if "=" not in line or key.startswith("#") or key not in values:
            lines.append(line)
        elif key in left and (value := left.pop(key)) is not None:
            lines.append(f"{key} = {_spelt(value)}")
    lines += [f"{key} = {_spelt(value)}" for key, value in left.items() if value is not None]
    return "".join(f"{line}\n" for line in lines)


def parse(data: bytes, *, where: str) -> dict[str, Value]:
    """The values of a settings payload.

    Raises ActivationError: not a flat JSON object of lines' worth of text.
    """
    if len(data) > PAYLOAD_BYTES_MAX:
        raise ActivationError(f"{where}: {len(data):,} bytes, the limit is {PAYLOAD_BYTES_MAX:,}")
    try:
        values = msgspec.json.decode(data, type=dict[str, Value])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ActivationError(f"{where}: not a flat JSON object of settings: {error}") from error
    for key, value in values.items():
        if not key.strip() or any(mark in key for mark in "=#\r\n") or key != key.strip():
            raise ActivationError(f"{where}: {key!r} can't be a setting's name")
        if isinstance(value, str) and ("\n" in value or "\r" in value):
            raise ActivationError(f"{where}: the value of {key!r} has more than one line")
    return values


def _edits(
    slot: Path, seal: Seal, targets: tuple[SettingsTarget, ...]
) -> list[tuple[Path, dict[str, Value]]]:
    edits = []
    for component in seal.components:
        if component.kind is not Kind.SETTINGS:
            continue
        target = next((item for item in targets if item.component == component.name), None)
        if target is None:
            raise ActivationError(
                f"settings component {component.name!r} has no target on this machine; "
                f"add [[settings]] component = {component.name!r} to the configuration"
            )
        payload = slot / component.name / component.filename
        edits.append((Path(target.file), parse(payload.read_bytes(), where=str(payload))))
    return edits


def _previous(file: Path) -> Previous:
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        data = file.read_bytes()
    except FileNotFoundError:
        return Previous(file=str(file), content=None, mode=0o644)
    if len(data) > TARGET_BYTES_MAX:
        raise ActivationError(f"{file}: {len(data):,} bytes, the limit is {TARGET_BYTES_MAX:,}")
    return Previous(file=str(file), content=base64.b64encode(data).decode(), mode=mode)


def _load(path: Path, attempt: str) -> Undo | None:
    try:
        undo = msgspec.json.decode(path.read_bytes(), type=Undo)
    except FileNotFoundError:
        return None
    return undo if undo.attempt == attempt else None


def _spelt(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

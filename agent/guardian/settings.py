"""`settings` components: values that are put into a file, and taken back.

A settings payload is a JSON object of key → text, number, truth value or null
(null removes the key). Its target is a file of `key = value` lines named in
the configuration, or a key of Windows' registry (agent.guardian.values). Before
the first edit, the target's whole previous content, or each value's, is stored
durably; a revert puts it back byte for byte. In 2022 a cleanup
component's edits outlived the rollback of its pattern: here they can't, also
when the release was kept for a while before it was left.
"""

from __future__ import annotations

import base64
import errno
import os
import re
import stat
import sys
from pathlib import Path

import msgspec
import structlog

from agent import host
from agent.config import SettingsTarget
from agent.errors import ActivationError
from agent.guardian import values as registry_values
from agent.guardian.values import PreviousValue
from agent.host.registry import Registry, Value
from agent.layout import Layout
from agent.slots.seal import Seal
from feed import durable
from feed.manifest import Kind

TARGET_BYTES_MAX = 4 << 20
PAYLOAD_BYTES_MAX = 1 << 20

# Control characters, and everything that some reader takes for a line's end.
_UNWRITABLE = re.compile("[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029]")

# Whatever the platform has of them: nothing is waited for, and no link followed.
_READING = os.O_RDONLY
for _name in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):
    _READING |= getattr(os, _name, 0)

_log = structlog.get_logger()


class Previous(msgspec.Struct, frozen=True, kw_only=True):
    """A target as it was: base64 of its bytes, None if it didn't exist.

    owner is (uid, gid); None where this process may not give files away.
    """

    file: str
    content: str | None
    mode: int
    owner: tuple[int, int] | None = None


class Undo(msgspec.Struct, frozen=True, kw_only=True):
    """What a release changed; owner is the digest of its slot's seal.

    It is kept with the release, not only for its trial: as long as the other
    slot is the way back, an administrator may take it.
    """

    owner: str
    previous: tuple[Previous, ...]
    values: tuple[PreviousValue, ...] = ()


def apply(
    layout: Layout,
    slot: Path,
    seal: Seal,
    targets: tuple[SettingsTarget, ...],
    *,
    owner: str,
    registry: Registry | None = None,
) -> None:
    """Put the settings of the release in `slot` into their targets, undoably.

    Safe to repeat: what `owner` already saved isn't saved again.
    Raises ActivationError: a payload or target can't be used; nothing after it is edited.
    """
    registry = registry or host.machine_registry()
    wanted = _wanted(slot, seal, targets)
    edits = [(Path(item.file), values) for item, values in wanted if item.file is not None]
    changes = [
        change
        for item, values in wanted
        if item.registry is not None
        for change in registry_values.planned(item.registry, values, registry)
    ]
    if not wanted:
        return
    if _load(layout.settings_undo, owner) is None:
        previous = tuple(_previous(file) for file, _ in edits)
        kept = registry_values.previous(changes, registry)
        undo = Undo(owner=owner, previous=previous, values=kept)
        durable.replace(layout.settings_undo, msgspec.json.encode(undo), mode=0o600)
    _edit_files(edits)
    registry_values.write(changes, registry)


def obstacle(seal: Seal, targets: tuple[SettingsTarget, ...]) -> str:
    """Why a target of this release's settings can't be written whatever is tried; "" if none is.

    What is found here is this machine's doing and not the release's.
    """
    names = {item.name for item in seal.components if item.kind is Kind.SETTINGS}
    for target in targets:
        if target.component not in names or target.file is None:
            continue
        folder = Path(target.file).parent
        if not folder.is_dir():
            return f"{target.file}: its folder is missing; create {folder}"
        if not os.access(folder, os.W_OK):
            return (
                f"{target.file}: the agent may not write to {folder}; "
                f"under systemd, add ReadWritePaths={folder} to its service"
            )
    return ""


def _edit_files(edits: list[tuple[Path, dict[str, Value]]]) -> None:
    for file, values in edits:
        durable.sweep_temporaries(file.parent, of=file.name)
        before = _previous(file)
        # surrogateescape: bytes that are no UTF-8 come out as they went in
        old = (_content(before) or b"").decode("utf-8", "surrogateescape")
        _write(before, merged(old, values).encode("utf-8", "surrogateescape"))


def revert(layout: Layout, *, owner: str, registry: Registry | None = None) -> None:
    """Put back what `owner` changed. Safe to repeat. Raises OSError: not all is back yet."""
    undo = _load(layout.settings_undo, owner)
    if undo is None:
        return
    registry_values.restore(undo.values, registry or host.machine_registry())
    for item in undo.previous:
        file, content = Path(item.file), _content(item)
        durable.sweep_temporaries(file.parent, of=file.name)
        if content is None:
            durable.remove(file)
        else:
            _write(item, content)


def _write(item: Previous, content: bytes) -> None:
    """Keep mode and owner: an engine that runs as another user must still read its file."""
    durable.replace(Path(item.file), content, mode=item.mode, owner=item.owner)


def set_aside(layout: Layout) -> Path:
    """Keep what couldn't be put back for people. Raises OSError."""
    kept = layout.settings_undo.with_name(f"{layout.settings_undo.name}.not-reverted")
    if layout.settings_undo.exists():
        durable.rename(layout.settings_undo, kept)
    return kept


def forget(layout: Layout) -> None:
    """The release is gone: nothing is to be undone any more."""
    if layout.settings_undo.exists():
        durable.remove(layout.settings_undo)


def keep_only(layout: Layout, *, owner: str | None) -> None:
    """Delete what was saved for any other release than `owner`'s. Raises OSError."""
    if layout.settings_undo.exists() and (
        owner is None or _load(layout.settings_undo, owner) is None
    ):
        forget(layout)


def merged(text: str, values: dict[str, Value]) -> str:
    """`text` with `values` set: lines are replaced where they stand, new ones added last.

    Comments, order and unrelated lines stay as they are, line ends included;
    what is new ends like the text's first line.
    """
    left = dict(values)
    lines = re.findall("[^\n]*\n|[^\n]+", text)
    end = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    kept = []
    for line in lines:
        key = line.split("=", 1)[0].strip()
        if "=" not in line or key.startswith("#") or key not in values:
            kept.append(line)
        elif key in left and (value := left.pop(key)) is not None:
            kept.append(f"{key} = {_spelt(value)}{end}")
    new = [f"{key} = {_spelt(value)}{end}" for key, value in left.items() if value is not None]
    if new and kept and not kept[-1].endswith("\n"):
        kept[-1] += end
    return "".join((*kept, *new))


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
        if not key or key != key.strip() or re.search("[=#]", key) or _UNWRITABLE.search(key):
            raise ActivationError(f"{where}: {key[:80]!r} can't be a setting's name")
        if isinstance(value, str) and _UNWRITABLE.search(value):
            raise ActivationError(f"{where}: the value of {key[:80]!r} isn't one line of text")
    return values


def _wanted(
    slot: Path, seal: Seal, targets: tuple[SettingsTarget, ...]
) -> list[tuple[SettingsTarget, dict[str, Value]]]:
    wanted = []
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
        wanted.append((target, parse(payload.read_bytes(), where=str(payload))))
    return wanted


def _previous(file: Path) -> Previous:
    """What a target is now. A link isn't followed: its owner could point it at any file."""
    try:
        descriptor = os.open(file, _READING)
    except FileNotFoundError:
        return Previous(file=str(file), content=None, mode=0o644)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ActivationError(f"{file} is a link; name the file itself") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise ActivationError(f"{file} is no regular file; name the file itself")
    with os.fdopen(descriptor, "rb") as opened:
        data = opened.read(TARGET_BYTES_MAX + 1)
    if len(data) > TARGET_BYTES_MAX:
        raise ActivationError(
            f"{file}: {status.st_size:,} bytes, the limit is {TARGET_BYTES_MAX:,}"
        )
    return Previous(
        file=str(file),
        content=base64.b64encode(data).decode(),
        mode=stat.S_IMODE(status.st_mode),
        owner=(status.st_uid, status.st_gid) if _may_give_away() else None,
    )


def _may_give_away() -> bool:
    return sys.platform != "win32" and host.is_root()


def _load(path: Path, owner: str) -> Undo | None:
    """What `owner` saved; None when that is nothing.

    An unreadable file is moved aside and logged: a revert must end, and the
    rest of it still helps.
    """
    try:
        undo = msgspec.json.decode(path.read_bytes(), type=Undo)
        for item in undo.previous:
            _content(item)
        return undo if undo.owner == owner else None
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        kept = path.with_name(f"{path.name}.unreadable")
        durable.rename(path, kept)
        _log.error("settings_undo_unreadable", path=str(path), kept=str(kept), problem=str(error))
        return None


def _content(item: Previous) -> bytes | None:
    return None if item.content is None else base64.b64decode(item.content, validate=True)


def _spelt(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

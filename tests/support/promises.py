"""What feed.durable has promised to outlive a power cut, held against the disk.

The processes of a machine note at their fault points what a file holds: `may`
before it gets a new content, `must` once that is flushed. After the cut it
holds the last content that it must, or one that it may since.

Nothing is promised from the cut on: a process that still runs may hear that a folder
was flushed which wasn't (XFS, once it was shut down).

What is written without being flushed, and files that are deleted together with
their folder, promise nothing and are left out.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import msgspec

from feed import durable

NAME = "promises"
_LASTING = re.compile(
    r"state/(boot\.json|current|quarantine\.json|history\.jsonl|trial\.json"
    r"|settings-undo\.json|etc/[^/.][^/]*|slots/[ab]/release\.json|trust/stager/[^/.][^/]*)"
)


class Content(msgspec.Struct, frozen=True):
    """What a file holds: digest and length; None: it doesn't exist."""

    digest: str | None
    length: int = 0


class Promise(msgspec.Struct, frozen=True):
    """That `path` holds `content`; firm: also after a power cut."""

    path: str
    content: Content
    firm: bool


CUT = Promise("", Content(None), firm=False)  # what is promised after it isn't firm


def power_fails(folder: Path) -> None:
    """To be said before the cut."""
    _append(folder, CUT)


def _append(folder: Path, promise: Promise) -> None:
    with (folder / NAME).open("ab", buffering=0) as file:
        file.write(msgspec.json.encode(promise) + b"\n")


class Notes:
    """One process's promises about the machine in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._moved: str | None = None  # has a new content, its folder isn't flushed
        self._flushed = False
        self._removed: str | None = None

    def hear(self, step: str, path: str) -> None:
        """The process is about to take `step` at `path`; what it did before is done."""
        if step in {"rename", "append"}:
            self._moved, self._flushed, self._removed = path, False, None
        if step == "rename":
            self._note(path, self._coming(path), firm=False)
        elif step == "remove":
            self._removed = path
            self._note(path, Content(None), firm=False)
        elif step == "dirsync":
            self._flushed = True
        elif step == "done" and path == self._removed:
            self._note(path, content_of(self._folder / path), firm=True)
            self._removed = None
        elif step == "done" and path == self._moved:
            if self._flushed:
                self._note(path, content_of(self._folder / path), firm=True)
            self._moved = None

    def _coming(self, path: str) -> Content:
        """What is about to get the name `path`."""
        target = self._folder / path
        temp = target.with_name(f"{durable.TEMP_PREFIX}{target.name}")
        return content_of(temp if temp.is_symlink() else Path(f"{temp}.{os.getpid()}"))

    def _note(self, path: str, content: Content, *, firm: bool) -> None:
        if _LASTING.fullmatch(path):
            _append(self._folder, Promise(path, content, firm))


def content_of(path: Path, *, length: int | None = None) -> Content:
    """What `path` holds, or its first `length` bytes."""
    try:
        data = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()
    except FileNotFoundError:
        return Content(None)
    data = data[:length]
    return Content(hashlib.sha256(data).hexdigest(), len(data))


def broken(folder: Path) -> list[str]:
    """The promises that the disk didn't keep; those that it kept are forgotten."""
    try:
        lines = (folder / NAME).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    made: dict[str, list[Promise]] = {}
    is_cut = False
    for promise in (msgspec.json.decode(line, type=Promise) for line in lines):
        if promise == CUT:
            is_cut = True
            continue
        held = msgspec.structs.replace(promise, firm=promise.firm and not is_cut)
        if held.firm:
            made[held.path] = []
        made.setdefault(held.path, []).append(held)
    (folder / NAME).unlink()
    return [text for path, since in made.items() if (text := _broken(folder, path, since))]


def _broken(folder: Path, path: str, since: list[Promise]) -> str | None:
    if not since[0].firm:
        return None  # what it held before isn't known
    if path.endswith(".jsonl"):  # a journal's last line may be torn, those before not
        first = since[0].content
        kept = content_of(folder / path, length=first.length) == first
    else:
        kept = content_of(folder / path) in [promise.content for promise in since]
    return None if kept else f"{path} was flushed as {since[0].content} and isn't that any more"

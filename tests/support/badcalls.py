"""A disk that fails one call: listed while an agent works, then failed one after the other.

Processes of a nursery call through this layer once `install` has run in them:
whatever they open for writing, write, flush, rename, make or delete in the
state folder has a name (process, call, path, how often) and can be refused.

Nothing is listed or refused before the file `armed` is in the machine's folder.
"""

# Pathlib calls what is wrapped here.
# ruff: noqa: PTH110, PTH115, PTH117, PTH118, PTH119, PTH120

from __future__ import annotations

import builtins
import errno
import io
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from tests.support.crashing import Point

ARMED = "armed"
ILL = "ill"  # the disk refuses: until a test removes it
FIRED = "refused"
CALLS = "calls"

CLEANING = frozenset({"unlink", "rmdir"})
# What takes room; a full disk refuses nothing else.
GROWING = frozenset({"open", "write", "mkdir", "symlink", "rename", "copy_file_range", "fsync"})

_BY_PATH = ("mkdir", "unlink", "remove", "rmdir", "symlink", "chmod", "rename", "replace")
_BY_DESCRIPTOR = ("write", "pwrite", "fsync", "fdatasync", "ftruncate", "fchmod", "fchown")
_NAMES = (
    (re.compile(r"((?:incoming|evidence)/(?:\.tmp-)?)[0-9a-f]{16}"), r"\1<attempt>"),
    (re.compile(r"(\.tmp-.*)\.\d+$"), r"\1"),
)


class Illness(msgspec.Struct, frozen=True, kw_only=True):
    """What a disk does at `call`: fails with `error`, an errno's name, once or until it is well.

    call None: it fails nothing and lists all calls.
    """

    call: Point | None = None
    error: str = "EIO"
    lasting: bool = False

    @property
    def said(self) -> str:
        """How the error reads."""
        return os.strerror(getattr(errno, self.error))

    def __str__(self) -> str:
        return f"{self.error} {'from' if self.lasting else 'once at'} {self.call}"


# As they were before any process of this family had a layer.
_REAL: dict[str, Callable[..., Any]] = {
    **{name: getattr(os, name) for name in (*_BY_PATH, *_BY_DESCRIPTOR, "copy_file_range", "open")},
    "io.open": io.open,
}


class _Layer:
    def __init__(self, illness: Illness, folder: Path, name: str) -> None:
        self._illness = illness
        self._folder = os.path.realpath(folder)
        self._state = f"{self._folder}/state/"
        self._name = name
        self._passed: Counter[tuple[str, str]] = Counter()

    def pass_by(self, call: str, path: str) -> None:
        """Raises OSError: the disk refuses."""
        if not path.startswith(self._state) or not os.path.exists(f"{self._folder}/{ARMED}"):
            return
        call = {"replace": "rename", "remove": "unlink", "pwrite": "write"}.get(call, call)
        short = path[len(self._folder) + 1 :]
        for pattern, word in _NAMES:
            short = pattern.sub(word, short)
        self._passed[call, short] += 1
        here = Point(self._name, call, short, self._passed[call, short])
        if self._illness.call is None:
            self._append(CALLS, msgspec.json.encode(here) + b"\n")
        elif self._refuses(here, call):
            raise OSError(getattr(errno, self._illness.error), self._illness.said, path)

    def _refuses(self, here: Point, call: str) -> bool:
        if os.path.exists(f"{self._folder}/{ILL}"):
            return self._illness.error != "ENOSPC" or call in GROWING
        if here != self._illness.call or os.path.exists(f"{self._folder}/{FIRED}"):
            return False
        self._append(FIRED, b"")
        if self._illness.lasting:
            self._append(ILL, b"")
        return True

    def _append(self, name: str, line: bytes) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        descriptor = _REAL["open"](f"{self._folder}/{name}", flags, 0o644)
        _REAL["write"](descriptor, line)
        os.close(descriptor)

    def path_of(self, given: Any, dir_fd: int | None = None) -> str:
        """The absolute path of a path or descriptor that a call got."""
        if isinstance(given, int):
            return os.readlink(f"/proc/self/fd/{given}")
        path = os.fsdecode(given)
        if not os.path.isabs(path) and dir_fd is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), path)
        return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))

    def by_path(self, name: str) -> Callable[..., Any]:
        real = _REAL[name]
        concerned = 1 if name in {"symlink", "rename", "replace"} else 0

        def call(*given: Any, **more: Any) -> Any:
            dir_fd = more.get("dst_dir_fd", more.get("dir_fd"))
            self.pass_by(name, self.path_of(given[concerned], dir_fd))
            return real(*given, **more)

        return call

    def by_descriptor(self, name: str, which: int = 0) -> Callable[..., Any]:
        real = _REAL[name]

        def call(*given: Any, **more: Any) -> Any:
            self.pass_by(name, self.path_of(given[which]))
            return real(*given, **more)

        return call

    def os_open(self) -> Callable[..., int]:
        def call(path: Any, flags: int, *given: Any, **more: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.pass_by("open", self.path_of(path, more.get("dir_fd")))
            return int(_REAL["open"](path, flags, *given, **more))

        return call

    def io_open(self) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *given: Any, **more: Any) -> Any:
            path = self.path_of(file) if set(mode) & set("wax+") else ""
            if not path.startswith(self._state):
                return _REAL["io.open"](file, mode, *given, **more)
            if not isinstance(file, int):
                self.pass_by("open", path)
            raw = _File(file, mode.replace("b", "").replace("t", ""), layer=self, at=path)
            if "buffering" in more and more["buffering"] == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered)

        return call


class _File(io.FileIO):
    """A file whose writes pass the layer."""

    def __init__(self, file: Any, mode: str, *, layer: _Layer, at: str) -> None:
        super().__init__(file, mode)
        self._layer = layer
        self._at = at

    def write(self, data: Any) -> int:
        self._layer.pass_by("write", self._at)
        return super().write(data)


def install(illness: Illness, folder: Path, name: str) -> None:
    """From here on this process, called `name`, has that disk."""
    layer = _Layer(illness, folder, name)
    changed = {
        **{call: layer.by_path(call) for call in _BY_PATH},
        **{call: layer.by_descriptor(call) for call in _BY_DESCRIPTOR},
        "copy_file_range": layer.by_descriptor("copy_file_range", 1),
        "open": layer.os_open(),
    }
    for call, wrapper in changed.items():
        setattr(os, call, wrapper)
    io.open = builtins.open = layer.io_open()

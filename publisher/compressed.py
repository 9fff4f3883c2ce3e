"""The compressed copies beside new payloads (feed.compress), as work."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from feed.compress import compress, paying_level
from publisher import budget
from publisher.work import Work


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """One compressed copy to make, at `level` at most; paths are absolute."""

    name: str
    full: str
    out: str
    level: int


class Compressed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a copy: bytes, None if it wouldn't be smaller, and the level that paid."""

    name: str
    length: int | None
    level: int
    cpu_s: float


def work(copy: Copy) -> Work[Compressed]:
    """The making of one compressed copy, as work."""
    size = Path(copy.full).stat().st_size
    return Work(
        name=f"{copy.name} compressed",
        call=_Compress(copy),
        size=size,
        need=budget.COMPRESS_BYTES,
    )


class _Compress(msgspec.Struct, frozen=True):
    copy: Copy

    def __call__(self, granted: int) -> Compressed:  # noqa: ARG002 - zstd takes what it takes
        copy, started = self.copy, time.process_time()
        level = paying_level(Path(copy.full), most=copy.level)
        length = compress(Path(copy.full), Path(copy.out), level=level)
        cpu_s = time.process_time() - started
        return Compressed(name=copy.name, length=length, level=level, cpu_s=cpu_s)


def line(done: Compressed) -> str:
    """What became of it, for a person."""
    if done.length is None:
        return f"{done.name}: doesn't compress, travels as it is"
    return (
        f"{done.name}: {done.length:,} bytes compressed (zstd {done.level}, {done.cpu_s:.1f} CPU s)"
    )

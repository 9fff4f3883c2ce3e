"""One making or applying, in a process of its own, with what it cost.

    python -P job.py make|apply|archive TOOL OLD NEW PATCH

make reads OLD and NEW and writes PATCH; apply reads OLD and PATCH and writes
NEW. One line of JSON comes out. CPU is counted once the tool is imported, that
of the programs it runs included; memory is the process's peak since its
start, or the peak of the program where the tool is one. Runs in tufup's
environment as well, hence the imports where they are needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

READ_BYTES = 1 << 20
XDELTA_WINDOW_BYTES = 64 << 20  # its own default; the whole old file if that is larger
Act = Callable[[Path, Path, Path], None]


def _holdfast() -> dict[str, Act]:
    from feed import delta

    def make(old: Path, new: Path, patch: Path) -> None:
        delta.create(old, new, patch)

    def apply(old: Path, new: Path, patch: Path) -> None:
        limit = int(os.environ["NEW_BYTES"])
        with old.open("rb") as base, patch.open("rb") as stream, new.open("wb") as out:
            delta.apply(base, stream, out, format=delta.SEGMENTS, limit=limit)
            out.flush()
            os.fsync(out.fileno())

    return {"make": make, "apply": apply}


def _floor() -> dict[str, Act]:
    def apply(old: Path, new: Path, _: Path) -> None:
        digest = hashlib.sha256()
        with old.open("rb") as source, new.open("wb") as out:
            while block := source.read(READ_BYTES):
                digest.update(block)
                out.write(block)
            out.flush()
            os.fsync(out.fileno())

    return {"apply": apply}


def _bsdiff4() -> dict[str, Act]:
    import bsdiff4

    def make(old: Path, new: Path, patch: Path) -> None:
        bsdiff4.file_diff(str(old), str(new), str(patch))

    def apply(old: Path, new: Path, patch: Path) -> None:
        bsdiff4.file_patch(str(old), str(new), str(patch))

    return {"make": make, "apply": apply}


def _hdiffpatch() -> dict[str, Act]:
    import hdiffpatch

    lzma2 = hdiffpatch.Lzma2Config(level=9, window=25)

    def make(old: Path, new: Path, patch: Path) -> None:
        made = hdiffpatch.diff(old.read_bytes(), new.read_bytes(), lzma2, validate=False)
        patch.write_bytes(made)

    def apply(old: Path, new: Path, patch: Path) -> None:
        new.write_bytes(hdiffpatch.apply(old.read_bytes(), patch.read_bytes()))

    return {"make": make, "apply": apply}


def _zstd() -> dict[str, Act]:
    if not shutil.which("zstd"):
        return _zstd_of_python()
    quiet = ("-qq", "-f")

    def make(old: Path, new: Path, patch: Path) -> None:
        _program("zstd", *quiet, "-19", "--single-thread", f"--patch-from={old}", new, "-o", patch)

    def apply(old: Path, new: Path, patch: Path) -> None:
        _program("zstd", *quiet, "-d", "--long=31", f"--patch-from={old}", patch, "-o", new)

    return {"make": make, "apply": apply}


def _zstd_of_python() -> dict[str, Act]:
    from backports import zstd

    def make(old: Path, new: Path, patch: Path) -> None:
        before, after = old.read_bytes(), new.read_bytes()
        options = {
            zstd.CompressionParameter.compression_level: 19,
            zstd.CompressionParameter.window_log: (len(before) + len(after)).bit_length(),
            zstd.CompressionParameter.enable_long_distance_matching: 1,
        }
        prefix = zstd.ZstdDict(before, is_raw=True).as_prefix
        patch.write_bytes(zstd.compress(after, options=options, zstd_dict=prefix))

    def apply(old: Path, new: Path, patch: Path) -> None:
        options = {zstd.DecompressionParameter.window_log_max: 31}
        prefix = zstd.ZstdDict(old.read_bytes(), is_raw=True).as_prefix
        new.write_bytes(zstd.decompress(patch.read_bytes(), zstd_dict=prefix, options=options))

    return {"make": make, "apply": apply}


def _xdelta3() -> dict[str, Act]:
    def window(old: Path) -> str:
        return str(max(XDELTA_WINDOW_BYTES, old.stat().st_size))

    def make(old: Path, new: Path, patch: Path) -> None:
        options = ["-e", "-9", "-S", "lzma", "-f", "-B", window(old)]
        _program("xdelta3", *options, "-s", old, new, patch)

    def apply(old: Path, new: Path, patch: Path) -> None:
        _program("xdelta3", "-d", "-f", "-B", window(old), "-s", old, patch, new)

    return {"make": make, "apply": apply}


def _tufup() -> dict[str, Act]:
    """Its own functions on the archives that its own `archive` has made of both files."""
    from tufup.common import Patcher, TargetMeta

    def archive(old: Path, new: Path, patch: Path) -> None:
        from tufup.repo import make_gztar_archive

        for version, file in (("1.0", old), ("2.0", new)):
            folder = patch.parent / f"tufup-{version}"
            folder.mkdir()
            shutil.copyfile(file, folder / "content")
            made = make_gztar_archive(folder, patch.parent, "component", version)
            assert made.path == _archive(patch, version), made.path

    def make(_: Path, __: Path, patch: Path) -> None:
        archives = _archive(patch, "1.0"), _archive(patch, "2.0")
        signed = Patcher.diff_and_hash(*archives, patch_path=patch)
        _beside(patch).write_text(json.dumps(signed))

    def apply(_: Path, new: Path, patch: Path) -> None:
        signed = json.loads(_beside(patch).read_text())
        meta = TargetMeta(
            name="component", version="2.0", is_archive=False, custom={"user": {}, "tufup": signed}
        )
        rebuilt = new.with_suffix(".tar.gz")
        Patcher.patch_and_verify(_archive(patch, "1.0"), rebuilt, {meta: patch})
        shutil.unpack_archive(rebuilt, new.parent / "unpacked")
        (new.parent / "unpacked" / "content").replace(new)

    return {"make": make, "apply": apply, "archive": archive}


def _archive(patch: Path, version: str) -> Path:
    return patch.parent / f"component-{version}.tar.gz"


def _beside(patch: Path) -> Path:
    return patch.with_suffix(".signed")


def _program(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


TOOLS = {
    "holdfast": _holdfast,
    "floor": _floor,
    "bsdiff4": _bsdiff4,
    "hdiffpatch": _hdiffpatch,
    "zstd": _zstd,
    "xdelta3": _xdelta3,
    "tufup": _tufup,
}


def main(action: str, tool: str, *paths: str) -> None:
    old, new, patch = map(Path, paths)
    act = TOOLS[tool]()[action]
    cpu_s, began = _cpu_s(), time.perf_counter()
    act(old, new, patch)
    wall_s, cpu_s = time.perf_counter() - began, _cpu_s() - cpu_s
    program = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(json.dumps({"cpu_s": cpu_s, "wall_s": wall_s, "own": _peak(), "program": program}))


def _cpu_s() -> float:
    programs = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + programs.ru_utime + programs.ru_stime


def _peak() -> int:
    """Bytes that this process held at most; ru_maxrss would count its parent's too."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])

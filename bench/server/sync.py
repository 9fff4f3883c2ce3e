"""A release comes to a mirror: by component duplication, and as fulls."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench import machine, release
from bench.delta import corpora
from bench.endtoend.products import served
from bench.figures import Figure, Section
from tests.support.vendor import Vendor

BYTES_GOAL = 0.2
LEVEL = 19  # zstd, as publishers have it


@dataclass(frozen=True)
class Sync:
    """What one took; bytes and seconds."""

    fetched: int
    saved: int
    wall_s: float
    cpu_s: float
    peak_bytes: int


def run(*, quick: bool) -> Section:
    """Both roads, taking turns, of what doesn't compress and of what does."""
    megabytes, text, times = (2, 1, 1) if quick else (50, 8, 3)
    figures: list[Figure] = []
    with machine.folder() as place:
        pair = corpora.patterns(megabytes).steps()[0]
        figures += _case(place / "a", "pattern", pair.base, pair.target, times)
        old, new = _rules(place, text)
        figures += _case(place / "b", "rules", old, new, times)
    return Section(
        title="A release comes to a mirror",
        how="Two generated components, each from its first version to its "
        "second over loopback, the mirror in a process of its own: a virus pattern of "
        f"{megabytes} MB (see Increments), which doesn't compress, and {text} MB of rules as text, "
        "which do. "
        f"{times} times each, taking turns, medians, of memory the highest. By duplication: the "
        "increment, the full rebuilt from the one that is here, and its compressed copy made "
        "anew at a moderate level. The peer is the same mirror without anything to build on: it "
        f"fetches the vendor's compressed copy (zstd, level {LEVEL}), unpacks it and keeps it. "
        "All durable.",
        figures=tuple(figures),
    )


def _rules(place: Path, megabytes: int) -> tuple[Path, Path]:
    make, is_sorted = release.MAKERS["rules"]
    paths = place / "rules-1", place / "rules-2"
    made = release.versions(make, is_sorted=is_sorted, size=megabytes * 1_000_000, count=2)
    for path, content in zip(paths, made, strict=True):
        path.write_bytes(content)
    return paths


def _case(place: Path, what: str, old: Path, new: Path, times: int) -> list[Figure]:
    place.mkdir()
    rebuilt = _vendor(place / "both", (("171", old), ("173", new)))
    fulls = _vendor(place / "full", (("173", new),))
    _sync(place / "before", rebuilt, only="171")
    found = [(_by_duplication(place, rebuilt), _in_full(place, fulls)) for _ in range(times)]
    return _figures(what, [pair[0] for pair in found], [pair[1] for pair in found])


def _vendor(folder: Path, versions: tuple[tuple[str, Path], ...]) -> Vendor:
    """A desk that offers the last version; the first one's feed is kept as `first`."""
    desk = Vendor(folder)
    desk.configure(workers=1, compression_level=LEVEL)
    for version, content in versions:
        desk.ship(f"r{version}", {machine.PATTERN: (version, content)})
        if not (folder / "first").exists():
            shutil.copytree(desk.feed, folder / "first")
    return desk


def _by_duplication(place: Path, vendor: Vendor) -> Sync:
    state = place / "state"
    shutil.copytree(place / "before", state)
    try:
        return _sync(state, vendor)
    finally:
        shutil.rmtree(state)


def _in_full(place: Path, vendor: Vendor) -> Sync:
    state = place / "empty"
    try:
        return _sync(state, vendor)
    finally:
        shutil.rmtree(state)


def _sync(state: Path, vendor: Vendor, *, only: str | None = None) -> Sync:
    folder = vendor.folder / "first" if only else vendor.feed
    root = vendor.feed / "metadata" / "1.root.json"
    state.mkdir(exist_ok=True)
    with served(folder) as url:
        command = [sys.executable, "-m", "bench.server.job", str(state), url, str(root)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    told = json.loads(done.stdout)
    assert told["outcome"] == "switched", told
    return Sync(
        fetched=told["fetched"],
        saved=told["saved"],
        wall_s=told["wall_s"],
        cpu_s=told["cpu_s"],
        peak_bytes=told["peak_bytes"],
    )


def _figures(what: str, ours: list[Sync], theirs: list[Sync]) -> list[Figure]:
    fetched = ours[0].fetched / theirs[0].fetched
    cpu = [statistics.median(item.cpu_s for item in items) for items in (ours, theirs)]
    wall = [statistics.median(item.wall_s for item in items) for items in (ours, theirs)]
    peak = [max(item.peak_bytes for item in items) / 1e6 for items in (ours, theirs)]
    return [
        Figure(
            f"{what}: fetched by duplication, metadata included",
            f"{ours[0].fetched:,} bytes",
            f"{theirs[0].fetched:,} bytes (in full)",
            ratio=fetched,
            goal=f"at most {BYTES_GOAL:g} times",
            met=fetched <= BYTES_GOAL,
        ),
        Figure(f"{what}: saved, as the mirror counts it", f"{ours[0].saved:,} bytes"),
        Figure(
            f"{what}: CPU", f"{cpu[0]:.2f} s", f"{cpu[1]:.2f} s (in full)", ratio=cpu[0] / cpu[1]
        ),
        Figure(
            f"{what}: wall",
            f"{wall[0]:.2f} s",
            f"{wall[1]:.2f} s (in full)",
            ratio=wall[0] / wall[1],
        ),
        Figure(
            f"{what}: memory of the process",
            f"{peak[0]:.0f} MB",
            f"{peak[1]:.0f} MB (in full)",
            ratio=peak[0] / peak[1],
        ),
    ]

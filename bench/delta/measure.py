"""Let each tool make and apply an increment, each time in a process of its own."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.delta import corpora
from bench.delta.corpora import Pair

JOB = Path(__file__).with_name("job.py")
ROOT = Path(__file__).parents[2]
OURS = "holdfast"
FLOOR = "floor"
PEERS = ("bsdiff4", "hdiffpatch", "zstd", "xdelta3", "tufup")
TUFUP = "tufup==0.10.0"
SMALL_BYTES = 16_000_000  # up to here a measurement is repeated more often
BARE = "print(next(line for line in open('/proc/self/status') if 'VmHWM' in line).split()[1])"


@dataclass(frozen=True)
class Cost:
    """What a process took. peak_bytes: over a bare Python, or a program's own."""

    cpu_s: float
    wall_s: float
    peak_bytes: int


@dataclass(frozen=True)
class Found:
    """A tool's increment for a pair: its length, and what making and applying cost."""

    length: int
    make: Cost
    apply: Cost


@dataclass(frozen=True)
class Measured:
    """A pair with each tool's figures; floor is the plain copy of the new file."""

    pair: Pair
    size: int
    ours: Found
    peers: dict[str, Found]
    floor: Cost

    @property
    def smallest(self) -> str:
        """The peer whose increment is smallest."""
        return min(self.peers, key=lambda name: self.peers[name].length)


def pair(wanted: Pair, *, peers: Sequence[str]) -> Measured:
    """Measure ours, the floor and those peers. Raises ValueError: one rebuilt other bytes."""
    print(f"  {wanted}", file=sys.stderr, flush=True)
    size = wanted.size
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as name:
        place = Path(name)
        make = _run("make", OURS, wanted.base, wanted.target, place / OURS)
        applies, floors = [], []
        for _ in range(7 if size <= SMALL_BYTES else 3):  # taking turns, so that noise meets both
            applies.append(_apply(OURS, wanted, place))
            floors.append(_apply(FLOOR, wanted, place))
        ours = Found((place / OURS).stat().st_size, make, _median(applies))
        others = {peer: _found(peer, wanted, place) for peer in peers}
    return Measured(wanted, size, ours, others, _median(floors))


def length(wanted: Pair) -> int:
    """Bytes of our increment for a pair that is no step."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as name:
        made = Path(name) / "made"
        _run("make", OURS, wanted.base, wanted.target, made)
        return made.stat().st_size


def available() -> list[str]:
    """The peers that this machine can run; tufup gets an environment of its own."""
    missing = [] if shutil.which("xdelta3") else ["xdelta3"]
    tufup_python()
    return [peer for peer in PEERS if peer not in missing]


def _found(tool: str, wanted: Pair, place: Path) -> Found:
    folder = place / f"{tool}.d"
    folder.mkdir()
    patch = folder / "component-2.0.patch"
    if tool == "tufup":
        _run("archive", tool, wanted.base, wanted.target, patch)
    make = _run("make", tool, wanted.base, wanted.target, patch)
    found = Found(patch.stat().st_size, make, _apply(tool, wanted, folder, patch))
    shutil.rmtree(folder)
    return found


def _apply(tool: str, wanted: Pair, place: Path, patch: Path | None = None) -> Cost:
    base = wanted.target if tool == FLOOR else wanted.base
    out = place / "rebuilt"
    cost = _run("apply", tool, base, out, patch or place / tool, new_bytes=wanted.size)
    if digest(out) != digest(wanted.target):
        raise ValueError(f"{tool} rebuilt other bytes for {wanted}")
    out.unlink()
    return cost


def _run(action: str, tool: str, old: Path, new: Path, patch: Path, *, new_bytes: int = 0) -> Cost:
    python = tufup_python() if tool == "tufup" else Path(sys.executable)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NEW_BYTES": str(new_bytes)}
    command: list[str | Path] = [python, "-P", JOB, action, tool, old, new, patch]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True
    )
    said = json.loads(done.stdout.splitlines()[-1])
    peak = said["program"] or said["own"] - bare_bytes(python)
    return Cost(said["cpu_s"], said["wall_s"], peak)


@functools.cache
def bare_bytes(python: Path) -> int:
    """Peak memory of an interpreter that does nothing."""
    said = subprocess.run([python, "-c", BARE], stdout=subprocess.PIPE, check=True).stdout
    return int(said) * 1024


def tufup_python() -> Path:
    """The interpreter of an environment with tufup, which pins an old tuf."""
    folder = corpora.cache() / "tufup"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install: list[str | Path] = [python, "-m", "pip", "install", "--quiet", TUFUP]
        subprocess.run(install, check=True, stdin=subprocess.DEVNULL)
        (folder / "ready").touch()
    return python


def _median(costs: list[Cost]) -> Cost:
    """Of the times; of memory the highest."""
    return Cost(
        statistics.median(cost.cpu_s for cost in costs),
        statistics.median(cost.wall_s for cost in costs),
        max(cost.peak_bytes for cost in costs),
    )


def digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()

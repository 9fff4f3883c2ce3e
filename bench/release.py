"""What `publisher release` takes: 5 components against 14 bases, within its memory limit.

Components are generated: sorted records, rules as text, JSON lines, a table of
which rows move, a folder's worth of mixed parts. A version changes half a
percent. Memory is the PSS of the command and all its children, added up: a
page that n processes share counts for each with an nth.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.figures import Figure, Section, Table, show
from feed.manifest import Kind
from publisher import home, publish, release, setup
from publisher.settings import ComponentInput, ReleaseInput

MIB = 1 << 20
MB = 10**6
SHARE_CHANGED = 0.005
SAMPLES_PER_S = 5  # the kernel walks all pages at each look: milliseconds for 500 MB
SILENCE_S = 2.5

Make = Callable[[random.Random], bytes]


@dataclass(frozen=True)
class Case:
    """How large a release, and within what it is made. size is bytes of each component."""

    size: int = 50 * MB
    bases: int = 14
    limit_mb: int = 2048
    effort: str = "usual"


@dataclass(frozen=True)
class Run:
    """One `publisher release`: its report, seconds, peak bytes, longest silence in seconds."""

    report: dict[str, Any]
    wall_s: float
    cpu_s: float
    peak: int
    silence_s: float


def run(*, quick: bool) -> Section:
    """The release that the goal names; quick: a tenth of the bytes, against 3 bases."""
    return section(Case(size=5 * MB, bases=3) if quick else Case())


def section(case: Case) -> Section:
    """Prepare a desk, make the release, and say what it took."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-release-") as name:
        desk = prepare(Path(name), case)
        # The report is read from what was staged: with --json there would be no progress.
        staged = desk / "staging" / f"r{case.bases + 1}" / "stage.json"
        done = _measured(_command(desk, Path(name), case), staged)
    components = done.report["components"]
    made = [item for component in components for item in component["increments"]]
    limit = case.limit_mb * MIB
    return Section(
        title="Making a release",
        how=" ".join((__doc__ or "").split("\n\n", 1)[1].split())
        + f" {SAMPLES_PER_S} times a second. CPU of a component is that of its workers; the total"
        " has the start of the processes and the copying besides. Each increment is applied and"
        f" compared within its time. Effort {case.effort}.",
        figures=(
            Figure(
                f"{len(MAKERS)} components of {case.size / MB:.0f} MB against {case.bases} bases",
                f"{done.wall_s:.0f} s, {done.cpu_s:.0f} CPU s",
            ),
            Figure(
                "peak memory, all processes together",
                f"{done.peak / MIB:,.0f} MiB",
                goal=f"`memory_limit_mb`, {case.limit_mb:,} MiB",
                met=done.peak <= limit,
            ),
            Figure(
                "longest silence on standard error, no terminal",
                f"{done.silence_s:.1f} s",
                goal=f"at most {SILENCE_S} s",
                met=done.silence_s <= SILENCE_S,
            ),
            Figure("increments kept", f"{sum(item['keep'] for item in made)} of {len(made)}"),
        ),
        tables=(_table(components),),
    )


def _table(components: list[dict[str, Any]]) -> Table:
    return Table(
        title="CPU seconds, and bytes of the compressed copy and of the increments",
        columns=(
            "component",
            "copy",
            "increments",
            "one, at most",
            "copy B",
            "smallest B",
            "largest B",
        ),
        rows=tuple(_row(item) for item in components),
    )


def _row(component: dict[str, Any]) -> tuple[str, ...]:
    made = component["increments"]
    cpu_s = [item["cpu_s"] for item in made]
    lengths = [item["length"] for item in made]
    packed = component.get("zst_bytes")
    return (
        component["name"],
        f"{component['zst_cpu_s']:.1f}",
        f"{sum(cpu_s):.1f}",
        f"{max(cpu_s):.1f}",
        f"{packed:,}" if packed else "none",
        f"{min(lengths):,}",
        f"{max(lengths):,}",
    )


def _record(dice: random.Random) -> bytes:
    return dice.randbytes(40)


def _rule(dice: random.Random) -> bytes:
    words = " ".join(f"{dice.getrandbits(16):x}" for _ in range(dice.randrange(4, 12)))
    return f'rule r{dice.getrandbits(40):x} {{ strings: $a = "{words}" condition: $a }}\n'.encode()


def _line(dice: random.Random) -> bytes:
    said = {"id": dice.getrandbits(48), "url": f"h{dice.getrandbits(32):x}.test", "score": 7}
    return json.dumps(said).encode() + b"\n"


def _table_row(dice: random.Random) -> bytes:
    return struct.pack("<IIHHI", dice.getrandbits(20), 1 << 20, dice.getrandbits(8), 7, 0)


def _part(dice: random.Random) -> bytes:
    return dice.choice((_record, _rule, _line))(dice) * dice.randrange(1, 4)


MAKERS: dict[str, tuple[Make, bool]] = {  # and whether it is sorted
    "records": (_record, True),
    "rules": (_rule, False),
    "json": (_line, False),
    "table": (_table_row, False),
    "mixed": (_part, False),
}


def versions(make: Make, *, is_sorted: bool, size: int, count: int) -> Iterator[bytes]:
    """`count` versions of about `size` bytes."""
    dice = random.Random(size)
    items: list[bytes] = []
    total = 0
    while total < size:
        items.append(make(dice))
        total += len(items[-1])
    for _ in range(count):
        yield b"".join(sorted(items) if is_sorted else items)
        for _ in range(int(len(items) * SHARE_CHANGED)):
            items[dice.randrange(len(items))] = make(dice)


def prepare(folder: Path, case: Case) -> Path:
    """A desk with `bases` published releases, and in `inputs` the files of the next."""
    desk, inputs = folder / "desk", folder / "inputs"
    inputs.mkdir()
    setup.create(desk, regions=("global",))
    toml = desk / "publisher.toml"
    toml.write_text("incrementals_kept = 0\ncompression_level = 1\n")
    made = {
        name: versions(make, is_sorted=is_sorted, size=case.size, count=case.bases + 1)
        for name, (make, is_sorted) in MAKERS.items()
    }
    for number in range(1, case.bases + 2):
        wanted = []
        for name, contents in made.items():
            path = inputs / f"{name}.dat"
            path.write_bytes(next(contents))
            item = ComponentInput(name=name, kind=Kind.PATTERN, version=str(number), path=str(path))
            wanted.append(item)
        if number <= case.bases:
            opened = home.look(desk)
            release.prepare(opened, f"r{number}", ReleaseInput(components=tuple(wanted)))
            with home.work(desk) as working:
                publish.publish(working, f"r{number}")
    toml.write_text(f"memory_limit_mb = {case.limit_mb}\n")
    return desk


def _command(desk: Path, folder: Path, case: Case) -> list[str]:
    new = str(case.bases + 1)
    named = [f"--component={item}:pattern:{new}={folder}/inputs/{item}.dat" for item in MAKERS]
    command = [sys.executable, "-m", "publisher", "--home", str(desk), "release", f"r{new}"]
    return [*command, "--effort", case.effort, *named]


def _measured(command: list[str], staged: Path) -> Run:
    """Run the command to its end; what it says on standard error is shown."""
    before, started = os.times(), time.perf_counter()
    peak, read, silence_s, said_at = 0, 0, 0.0, started
    with (
        tempfile.TemporaryFile() as told,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=told) as running,
    ):
        while running.poll() is None:
            peak = max(peak, _pss(running.pid))
            now, size = time.perf_counter(), os.fstat(told.fileno()).st_size
            silence_s = max(silence_s, now - said_at)
            if size > read:
                sys.stderr.write(
                    os.pread(told.fileno(), size - read, read).decode(errors="replace")
                )
                read, said_at = size, now
            time.sleep(1 / SAMPLES_PER_S)
    if running.returncode:
        raise SystemExit(running.returncode)
    wall_s, after = time.perf_counter() - started, os.times()
    cpu_s = sum(after[2:4]) - sum(before[2:4])
    return Run(json.loads(staged.read_bytes()), wall_s, cpu_s, peak, silence_s)


def _pss(pid: int) -> int:
    """Bytes of a process and of its descendants; 0 of one that has ended."""
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        own = next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
        return own + sum(_pss(child) for child in _children(pid))
    return 0


def _children(pid: int) -> list[int]:
    # Whichever thread started them: psutil would look at every process of the machine.
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in lists for child in path.read_text().split()]


def main() -> None:
    """Measure a case of one's own; nothing is written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mb", type=int, default=50, help="of each component")
    parser.add_argument("--bases", type=int, default=14)
    parser.add_argument("--limit-mb", type=int, default=2048)
    parser.add_argument("--effort", default="usual")
    given = parser.parse_args()
    case = Case(given.mb * MB, given.bases, given.limit_mb, given.effort)
    show(section(case))


if __name__ == "__main__":
    main()

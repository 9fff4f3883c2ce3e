"""What `publisher release` takes: 5 components against 14 bases, within its memory limit.

    python -m bench.release [--mb 50] [--bases 14] [--limit-mb 2048] [--effort usual]

Components are generated: sorted records, rules as text, JSON lines, a table of
which fields move, a folder of mixed files. A version changes about half a
percent. Memory is the resident set of the command and all its children, read
20 times a second and added up, so that pages they share count more than once.
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
from pathlib import Path

import psutil

from feed.manifest import Kind
from publisher import home, publish, release, setup
from publisher.settings import ComponentInput, ReleaseInput

MIB = 1 << 20
SHARE_CHANGED = 0.005
SAMPLES_PER_S = 20

Make = Callable[[random.Random], bytes]


def _record(dice: random.Random) -> bytes:
    return dice.randbytes(40)


def _rule(dice: random.Random) -> bytes:
    words = " ".join(f"{dice.getrandbits(16):x}" for _ in range(dice.randrange(4, 12)))
    return f'rule r{dice.getrandbits(40):x} {{ strings: $a = "{words}" condition: $a }}\n'.encode()


def _line(dice: random.Random) -> bytes:
    said = {"id": dice.getrandbits(48), "url": f"h{dice.getrandbits(32):x}.test", "score": 7}
    return json.dumps(said).encode() + b"\n"


def _row(dice: random.Random) -> bytes:
    return struct.pack("<IIHHI", dice.getrandbits(20), 1 << 20, dice.getrandbits(8), 7, 0)


def _part(dice: random.Random) -> bytes:
    return dice.choice((_record, _rule, _line))(dice) * dice.randrange(1, 4)


MAKERS: dict[str, tuple[Make, bool]] = {  # and whether it is sorted
    "records": (_record, True),
    "rules": (_rule, False),
    "json": (_line, False),
    "table": (_row, False),
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


def prepare(folder: Path, *, size: int, bases: int, limit_mb: int) -> Path:
    """A desk with `bases` published releases; returns a release file for the next."""
    desk, inputs = folder / "desk", folder / "inputs"
    inputs.mkdir()
    setup.create(desk, regions=("global",))
    toml = desk / "publisher.toml"
    toml.write_text("incrementals_kept = 0\ncompression_level = 1\n")
    made = {
        name: versions(make, is_sorted=is_sorted, size=size, count=bases + 1)
        for name, (make, is_sorted) in MAKERS.items()
    }
    for number in range(1, bases + 2):
        wanted = []
        for name, contents in made.items():
            path = inputs / f"{name}.dat"
            path.write_bytes(next(contents))
            item = ComponentInput(name=name, kind=Kind.PATTERN, version=str(number), path=str(path))
            wanted.append(item)
        if number <= bases:
            opened = home.look(desk)
            release.prepare(opened, f"r{number}", ReleaseInput(components=tuple(wanted)))
            with home.work(desk) as working:
                publish.publish(working, f"r{number}")
    toml.write_text(f"memory_limit_mb = {limit_mb}\n")
    return desk


def measured(command: list[str]) -> tuple[str, float, float, int]:
    """Standard output, wall and CPU seconds, and peak bytes of a command and its children."""
    before, started, peak = os.times(), time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(command, stdout=said) as running:
        watched = psutil.Process(running.pid)
        while running.poll() is None:
            peak = max(peak, _resident(watched))
            time.sleep(1 / SAMPLES_PER_S)
        said.seek(0)
        text = said.read()
    after = os.times()
    cpu_s = sum(after[2:4]) - sum(before[2:4])
    if running.returncode:
        raise SystemExit(running.returncode)
    return text, time.perf_counter() - started, cpu_s, peak


def _resident(top: psutil.Process) -> int:
    total = 0
    with suppress(psutil.NoSuchProcess):
        for process in [top, *top.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mb", type=int, default=50, help="of each component")
    parser.add_argument("--bases", type=int, default=14)
    parser.add_argument("--limit-mb", type=int, default=2048)
    parser.add_argument("--effort", default="usual")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-release-") as name:
        desk = prepare(Path(name), size=given.mb * MIB, bases=given.bases, limit_mb=given.limit_mb)
        new = str(given.bases + 1)
        components = [
            f"--component={item}:pattern:{new}={name}/inputs/{item}.dat" for item in MAKERS
        ]
        command = [sys.executable, "-m", "publisher", "--home", str(desk), "release", f"r{new}"]
        said, wall_s, cpu_s, peak = measured([*command, "--effort", given.effort, *components])
    print(said)
    print(
        f"{len(MAKERS)} components of {given.mb} MiB against {given.bases} bases, effort "
        f"{given.effort}: {wall_s:.0f} s, {cpu_s:.0f} CPU s, peak {peak / MIB:,.0f} MiB of "
        f"{given.limit_mb:,} MiB allowed"
    )


if __name__ == "__main__":
    main()

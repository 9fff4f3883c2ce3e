"""Does `current` always point at a complete release, and what does a durable flip cost?

Reader processes resolve the link, open the seal behind it and look at the
size of every sealed file, as fast as they can, while the link is switched to
and fro. The same readers beside `unlink` and `symlink` show that they would
have noticed. Afterwards, without readers, the flip as the guardian does it
(boot record, then link) takes turns with a bare write, fsync and rename.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agent import host
from agent.slots import record as records
from agent.slots import seal as seals
from agent.slots.record import BootRecord, SlotContent, SlotName
from bench.figures import Figure, Section
from feed.manifest import Activation, Component, Form, HealthPolicy, Kind

READERS = 2
FILES = 12
ROOT = Path(__file__).parents[1]

# Two lines come out: reads, and reads that found no complete release.
READER = """
import os, sys
from pathlib import Path
from agent.slots import seal
current, stop = Path(sys.argv[1]), Path(sys.argv[2])
reads = broken = 0
print("reading", flush=True)
while not stop.exists():
    for _ in range(20):
        reads += 1
        try:
            slot = current.resolve(strict=True)
            sealed, _ = seal.read(slot)
            sizes = all(
                os.stat(slot / path).st_size == file.size for path, file in sealed.files.items()
            )
            broken += not (sizes and sealed.files)
        except Exception:
            broken += 1
print(reads, broken)
"""


def run(*, quick: bool) -> Section:
    """Flip under readers, then time the flip."""
    flips, timed = (1_000, 100) if quick else (20_000, 2_000)
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as name:
        machine = _Machine(Path(name))
        reads, broken = machine.read_during(machine.flip, flips)
        naive_reads, naive_broken = machine.read_during(machine.flip_naively, flips)
        flip_s, bare_s = machine.time_flips(timed)
        where = _filesystem(machine.folder)
    return Section(
        title="The flip",
        how=f"{flips:,} flips between two sealed slots of {FILES} files while {READERS} processes "
        "resolve `current`, read the seal and look at every file's size; then the same readers "
        "beside unlink and symlink, to show that they notice. The durable flip (boot record, "
        "then link) and a bare write, fsync and rename of the record's bytes took turns "
        f"{timed:,} times without readers, on {where}; medians.",
        figures=(
            Figure(
                "reads that found no complete release",
                f"{broken} of {reads:,}",
                f"{naive_broken:,} of {naive_reads:,} (unlink, symlink)",
                goal="0",
                met=broken == 0,
            ),
            Figure(
                "durable flip",
                f"{flip_s * 1e3:.2f} ms",
                f"{bare_s * 1e3:.2f} ms (write, fsync, rename)",
                ratio=flip_s / bare_s,
            ),
        ),
    )


class _Machine:
    """A state folder with two complete slots and a boot record."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._slots: dict[SlotName, Path] = {}
        self._contents: dict[SlotName, SlotContent] = {}
        self._active: SlotName = "a"
        for slot in _names():
            self._slots[slot] = folder / "slots" / slot
            self._contents[slot] = _sealed(self._slots[slot], slot)
        self._current = folder / "current"
        host.switch_link(self._current, self._slots["a"])

    def flip(self) -> None:
        """As the guardian does it."""
        self._active = "b" if self._active == "a" else "a"
        record = BootRecord(active=self._active, slots=self._contents)
        records.store(self.folder / "boot.json", record)
        host.switch_link(self._current, self._slots[self._active])

    def flip_naively(self) -> None:
        """As `ln -sfn` does it."""
        self._active = "b" if self._active == "a" else "a"
        self._current.unlink()
        self._current.symlink_to(self._slots[self._active])

    def read_during(self, flip: Callable[[], None], flips: int) -> tuple[int, int]:
        """(reads, reads that found no complete release) during so many flips."""
        with _readers(self._current, self.folder / "stop") as readers:
            for _ in range(flips):
                flip()
            (self.folder / "stop").touch()
            found = [reader.communicate(timeout=30)[0].split() for reader in readers]
        (self.folder / "stop").unlink()
        return sum(int(item[0]) for item in found), sum(int(item[1]) for item in found)

    def time_flips(self, count: int) -> tuple[float, float]:
        """Median seconds of a flip and of its bare peer, taking turns."""
        data = records.serialize(BootRecord(active="a", slots=self._contents))
        flips, bare = [], []
        for _ in range(count):
            flips.append(_seconds(self.flip))
            bare.append(_seconds(lambda: _write_barely(self.folder / "peer.json", data)))
        return statistics.median(flips), statistics.median(bare)


def _names() -> tuple[SlotName, ...]:
    return ("a", "b")


def _sealed(slot: Path, name: str) -> SlotContent:
    """A slot whose files differ in size from the other slot's."""
    folder = slot / "engine"
    folder.mkdir(parents=True)
    for number in range(FILES):
        (folder / f"part-{number}").write_bytes(name.encode() * (4096 + number + ord(name)))
    component = Component(
        name="engine",
        kind=Kind.ENGINE,
        version="1.0",
        form=Form.TREE,
        filename="",
        length=1,
        digest=name * 64,
    )
    return seals.write(
        slot,
        seals.Seal(
            schema=seals.SCHEMA,
            release=f"r-{name}",
            components=(component,),
            activation=Activation(),
            health=HealthPolicy(),
            files=seals.scan(slot),
        ),
    )


@contextmanager
def _readers(current: Path, stop: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Reader processes, all of them reading; killed on leaving if they still run."""
    command = [sys.executable, "-c", READER, str(current), str(stop)]
    readers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(READERS)
    ]
    try:
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "reading\n"
        yield readers
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()


def _write_barely(path: Path, data: bytes) -> None:
    temp = path.with_suffix(".tmp")
    with temp.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    temp.replace(path)


def _seconds(act: Callable[[], None]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def _filesystem(folder: Path) -> str:
    """The type of the file system below `folder`."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    over = [item for item in mounts if folder.is_relative_to(item[1])]
    return max(over, key=lambda item: len(item[1]))[2] if over else "an unknown file system"

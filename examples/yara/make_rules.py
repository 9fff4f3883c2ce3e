"""Write the example's rules, release by release, and the folder of samples it scans.

   python examples/yara/make_rules.py rules OUT      OUT/171/rules.yar ... OUT/177/rules.yar
   python examples/yara/make_rules.py samples OUT    about 5 MB of text and binaries

* Everything is made up and harmless: markers of malware families that don't exist.
* The same arguments write the same bytes on every machine and Python version,
  so whatever is signed over them is reproducible too.
* A release changes a few rules in hundreds, as real ones do: its incremental
  is small beside the full file.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

RELEASES = (171, 173, 175, 177)
RULES_FILE = "rules.yar"

# How many rules a release has, and which older ones it revised.
RULE_COUNT = {171: 900, 173: 918, 175: 930, 177: 934}
REVISED = {173: range(40, 900, 60), 175: range(55, 900, 150), 177: range(77, 900, 200)}

# Samples that carry the marker of a rule; a release finds those it has rules for.
PLANTED_RULES = (12, 305, 911, 925)

LOG_COUNT = 10
LOG_LINES = 4000
BINARY_COUNT = 6
BINARY_BYTES = 256 << 10
NOTES_COUNT = 8

SYLLABLES = (
    *("ba", "dor", "fen", "gul", "ix", "jom", "kar", "lun", "mav", "nel"),
    *("oth", "pry", "qua", "rix", "sev", "tum", "vol", "wex", "yar", "zim"),
)

# Records of a (made-up) implant's table begin with "beacon=" and the offset of
# the next record. The vendor's own samples have a dozen of them. Whoever wrote
# this forgot that the marker is only seven ordinary letters: a relay's log has
# thousands, and each is held against each. A 200 KB log costs 16 million
# comparisons, every time it is scanned.
LINKED_TABLE_SLOW = """\
rule Demo_Implant_LinkedTable : demo implant
{
    meta:
        description = "Table of beacons in which one record points at another; made up, harmless"
        id = "HFD-L001"
        revision = 1
        severity = 80
    strings:
        $beacon = "beacon="
    condition:
        for any i in (1..#beacon) : (
            for any j in (1..#beacon) : ( uint32(@beacon[i] + 7) == @beacon[j] )
        )
}
"""

# The repair: follow the pointer and look at what is there, once a marker.
LINKED_TABLE_FAST = """\
rule Demo_Implant_LinkedTable : demo implant
{
    meta:
        description = "Table of beacons in which one record points at another; made up, harmless"
        id = "HFD-L001"
        revision = 2
        severity = 80
    strings:
        $beacon = "beacon="
    condition:
        for any i in (1..#beacon) : (
            uint32be(uint32(@beacon[i] + 7)) == 0x62656163  // "beac"
        )
}
"""
LINKED_TABLE = {175: LINKED_TABLE_SLOW, 177: LINKED_TABLE_FAST}


def rules_text(version: int) -> str:
    """The whole rules file of a release.

    The first line names the release; the engine reports it.
    """
    rules = [_rule(number, version) for number in range(1, RULE_COUNT[version] + 1)]
    if version in LINKED_TABLE:
        rules.append(LINKED_TABLE[version])
    return f"// rules release {version}\n\n" + "\n".join(rules)


def write_rules(folder: Path) -> None:
    """Write `folder`/<version>/rules.yar for each release."""
    for version in RELEASES:
        target = folder / str(version) / RULES_FILE
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(rules_text(version).encode())


def write_samples(folder: Path) -> None:
    """Write the files that the engine scans into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _samples():
        (folder / name).write_bytes(content)


def marker(number: int, *, revision: int = 1) -> bytes:
    """The text that rule `number` looks for: what its sample carries."""
    family = _family(number)
    return f"{family}::{_hex(number, revision, 'text', 6)}/{number:04d}".encode()


def _revision(number: int, version: int) -> int:
    return 1 + sum(number in revised for since, revised in REVISED.items() if since <= version)


def _rule(number: int, version: int) -> str:
    revision = _revision(number, version)
    family = _family(number)
    code = _hex(number, revision, "code", 12).upper()
    pairs = [code[at : at + 2] for at in range(0, len(code), 2)]
    tag = _hex(number, revision, "link", 3)
    return f"""\
rule Demo_{family.capitalize()}_{number:04d} : demo {_kind(number)}
{{
    meta:
        description = "Marker of the made-up family {family.capitalize()}; harmless"
        id = "HFD-{number:04d}"
        revision = {revision}
        severity = {10 + 10 * (number % 9)}
    strings:
        $text = "{marker(number, revision=revision).decode()}" ascii wide
        $code = {{ {" ".join(pairs[:5])} ?? {pairs[5]} [2-6] {" ".join(pairs[6:])} }}
        $link = /{family}-{tag}[0-9a-f]{{8}}\\.[a-z]{{2,8}}\\.invalid/
    condition:
        filesize < {1 + number % 4}MB and any of them
}}
"""


def _family(number: int) -> str:
    return "".join(SYLLABLES[byte % len(SYLLABLES)] for byte in _bytes(f"family {number}", 3))


def _kind(number: int) -> str:
    return ("dropper", "worm", "implant", "adware", "macro")[number % 5]


def _hex(number: int, revision: int, part: str, count: int) -> str:
    return _bytes(f"rule {number} {revision} {part}", count).hex()


def _bytes(seed: str, count: int) -> bytes:
    # A hash stream, not `random`: its bytes are the same in every Python.
    return hashlib.shake_256(f"holdfast {seed}".encode()).digest(count)


def _samples() -> Iterator[tuple[str, bytes]]:
    for number in range(LOG_COUNT):
        yield f"relay-{number:02d}.log", _relay_log(number)
    for number in range(BINARY_COUNT):
        yield f"blob-{number:02d}.bin", _bytes(f"blob {number}", BINARY_BYTES)
    for number in range(NOTES_COUNT):
        yield f"notes-{number:02d}.txt", _notes(number)
    for number in PLANTED_RULES:
        yield f"planted-{number:04d}.bin", _planted(number)
    yield "implant-table.bin", _implant_table()


def _relay_log(number: int) -> bytes:
    """An ordinary log in which every line says `beacon=`: what release 175 stumbles over."""
    noise = _bytes(f"log {number}", 4 * LOG_LINES)
    lines = []
    for line in range(LOG_LINES):
        a, b, c, d = noise[4 * line : 4 * line + 4]
        state = ("ok", "late", "retry", "lost")[a % 4]
        lines.append(f"{line:08d} relay-{b % 24} beacon={state} rtt={c} queue={d % 16}\n")
    return "".join(lines).encode()


def _notes(number: int) -> bytes:
    noise = _bytes(f"notes {number}", 60_000)
    words = (SYLLABLES[a % 20] + SYLLABLES[b % 20] for a, b in itertools.pairwise(noise))
    return " ".join(words).encode()


def _planted(number: int) -> bytes:
    noise = _bytes(f"planted {number}", 32 << 10)
    return noise[:9000] + marker(number) + noise[9000:]


def _implant_table() -> bytes:
    """A dozen records, each pointing at the next: what the new rule is for."""
    record_bytes = 2048
    content = bytearray(_bytes("implant", 12 * record_bytes))
    for start in range(0, len(content), record_bytes):
        following = (start + record_bytes) % len(content)
        content[start : start + 11] = b"beacon=" + following.to_bytes(4, "little")
    return bytes(content)


def main(arguments: list[str] | None = None) -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description="Write the example's rules or samples.")
    parser.add_argument("what", choices=("rules", "samples"))
    parser.add_argument("out", type=Path, help="folder to write into")
    options = parser.parse_args(arguments)
    write: dict[str, Callable[[Path], None]] = {"rules": write_rules, "samples": write_samples}
    write[options.what](options.out)


if __name__ == "__main__":
    main()

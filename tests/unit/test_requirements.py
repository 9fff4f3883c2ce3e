"""The locks: what is tested is what is installed, from whatever index, held by hashes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PIN = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>[^ ]+)", re.MULTILINE)


def pins(lock: Path) -> dict[str, str]:
    return dict(PIN.findall(lock.read_text(encoding="utf-8")))


def declared(*extras: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + [
        line for extra in extras for line in project["optional-dependencies"][extra]
    ]
    names = {re.split(r"[^A-Za-z0-9._-]", line)[0] for line in lines} - {"holdfast"}
    return {re.sub(r"[._-]+", "-", name).lower() for name in names}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_line_of_a_lock_is_a_pin_or_its_hash(lock: Path) -> None:
    lines = lock.read_text(encoding="utf-8").splitlines()
    entries = [line for line in lines if not line.startswith("#")]
    form = re.compile(r"[a-z0-9-]+==\S+( ; [^:]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?")
    assert [line for line in entries if not form.fullmatch(line)] == []


def test_locks_agree_with_each_other() -> None:
    tested = pins(ROOT / "requirements" / "dev.txt")
    for name in ("agent", "publisher"):
        assert pins(ROOT / "requirements" / f"{name}.txt").items() <= tested.items()


@pytest.mark.parametrize(
    ("lock", "extras"),
    [("agent", []), ("publisher", ["publisher"]), ("dev", ["publisher", "server", "dev"])],
)
def test_a_lock_pins_everything_its_part_declares(lock: str, extras: list[str]) -> None:
    assert declared(*extras) <= pins(ROOT / "requirements" / f"{lock}.txt").keys()


def test_the_agent_installs_nothing_of_the_publisher() -> None:
    publisher = declared("publisher") - declared()
    assert publisher.isdisjoint(pins(ROOT / "requirements" / "agent.txt"))

"""Hold slots against their seals, and mend a damaged file from the other slot.

A file is mended only when the other slot's seal names the same digest for the
same path and its copy still has it. What isn't part of the release goes first:
a link there could lead the mending out of the slot.
"""

from __future__ import annotations

from pathlib import Path

from agent.channel import SlotReport, VerifyJob
from agent.errors import SlotError
from agent.layout import SLOT_NAMES, Layout
from agent.slots import seal as seals
from agent.slots.record import SlotName
from agent.slots.seal import Damage, Seal
from feed import durable


def inspect(places: Layout, job: VerifyJob) -> tuple[SlotReport, ...]:
    """One report for each slot of `job`."""
    return tuple(_inspect(places, slot, known) for slot, known in sorted(job.slots.items()))


def _inspect(places: Layout, slot: SlotName, known: str) -> SlotReport:
    folder = places.slot(slot)
    try:
        seal, content = seals.read(folder)
    except SlotError as error:
        return SlotReport(slot=slot, known=known, content=None, problems=(str(error),))
    if content.seal != known:
        problem = f"the seal of slot {slot} isn't the one that was recorded"
        names = tuple(item.name for item in seal.components)
        return SlotReport(
            slot=slot, known=known, content=content, problems=(problem,), damaged=names
        )
    damage = seals.verify(folder, seal)
    repaired: tuple[str, ...] = ()
    if damage:
        repaired = _mend(places, slot, seal, damage)
        damage = seals.verify(folder, seal)
    return SlotReport(
        slot=slot,
        known=known,
        content=content,
        problems=tuple(f"{item.path} {item.problem}" for item in damage),
        damaged=tuple(sorted({item.component for item in damage})),
        repaired=repaired,
    )


def _mend(places: Layout, slot: SlotName, seal: Seal, damage: list[Damage]) -> tuple[str, ...]:
    """Replace damaged files by the other slot's copies; returns the paths that were mended."""
    other = places.slot(next(name for name in SLOT_NAMES if name != slot))
    try:
        reserve, _ = seals.read(other)
    except SlotError:
        reserve = None
    strays_first = sorted(damage, key=lambda item: item.path in seal.files)
    return tuple(
        item.path
        for item in strays_first
        if _mend_one(places.slot(slot), seal, item.path, other, reserve)
    )


def _mend_one(folder: Path, seal: Seal, path: str, other: Path, reserve: Seal | None) -> bool:
    wanted = seal.files.get(path)
    if wanted is None:  # not part of the release: whoever put it there doesn't stay
        return _removed(folder / path)
    if reserve is None or wanted.link is not None:
        return False
    held = reserve.files.get(path)
    if held is None or held.digest != wanted.digest:
        return False
    try:
        if seals.describe(other / path) != held:
            return False
        data = (other / path).read_bytes()
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        durable.replace(folder / path, data, mode=wanted.mode)
    except OSError:
        return False
    return True


def _removed(path: Path) -> bool:
    try:
        durable.remove(path)
    except OSError:
        return False
    return True

"""What to download for a release: keep, rebuild or fetch in full, per component.

Pure. The cheapest road in bytes is taken that the limits allow; on ties the
shorter chain, and a full rather than an incremental that saves nothing.

 * Rebuilding is limited by what it has to do, in links and in bytes made: the
   CPU it takes follows those, and they are the same on every machine. Over the
   limit a shorter chain is taken, else the full.
 * A road that the disk has no room for gives way to the next cheapest.
 * A base counts only when it is intact and its digest is the edge's own.
 * A component whose incremental just failed goes in full, in the same run.
 * Room is counted from the plan before the first byte is fetched: everything
   fetched lies in incoming at once; the slot takes the whole release, kept
   components too, since it holds a complete installation.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import msgspec

from feed.errors import LimitError, RoomError
from feed.manifest import Component, Form
from feed.roads import Bounds, Edge, Limits, cheapest_chain, room_at


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """Free bytes where things are put, of which `reserve` have to stay free.

    slots counts what emptying the spare slot sets free, if the stager empties
    it first.
    """

    incoming: int
    slots: int
    same_filesystem: bool
    reserve: int


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """What the active slot holds of a component.

    length is of the content (a tree's tar). intact: it is as sealed.
    """

    version: str
    digest: str
    length: int
    intact: bool = True


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A component of the release, what is installed of it and which roads exist.

    compressed_length is that of the full's compressed copy, None when there is
    none or its size isn't known.
    """

    component: Component
    installed: Installed | None = None
    edges: tuple[Edge, ...] = ()
    compressed_length: int | None = None

    @property
    def full_bytes(self) -> int:
        """What the full costs on the road."""
        if self.compressed_length is None:
            return self.component.length
        return min(self.component.length, self.compressed_length)


class Reason(StrEnum):
    """Why a component goes in full."""

    FIRST_INSTALL = "first_install"
    BASE_DAMAGED = "base_damaged"
    NO_ROAD = "no_incremental_from_installed"
    NOT_SMALLER = "incremental_not_smaller"
    REBUILD_LIMIT = "rebuild_over_limit"
    REBUILD_ROOM = "no_room_to_rebuild"
    INCREMENTAL_FAILED = "incremental_failed"


class Keep(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Nothing to fetch: copied from the active slot."""

    component: Component


class Rebuild(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Rebuilt from the active slot by `chain`, applied in order.

    base_copy: bytes of the copy that the first one is applied to.
    """

    component: Component
    chain: tuple[Edge, ...]
    base_copy: int

    @property
    def fetch_bytes(self) -> int:
        return sum(edge.length for edge in self.chain)


class Full(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Fetched whole; fetch_bytes is its compressed copy when that is smaller."""

    component: Component
    reason: Reason
    fetch_bytes: int


Step = Keep | Rebuild | Full


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One step a component, in the release's order; all sizes in bytes.

    fetch_bytes: over the road. full_bytes: what fulls of all that isn't kept
    would have cost. incoming_bytes: room for what is
    fetched. slots_bytes: room for the release's content and, since components
    are put together one at a time, for the neediest one's intermediates.
    """

    steps: tuple[Step, ...]
    fetch_bytes: int
    full_bytes: int
    incoming_bytes: int
    slots_bytes: int

    @property
    def saved_bytes(self) -> int:
        """What the incrementals save against fulls."""
        return self.full_bytes - self.fetch_bytes


def decide(
    wanted: Iterable[Wanted],
    *,
    limits: Limits | None = None,
    room: Room | None = None,
    forbid_incrementals: frozenset[str] = frozenset(),
) -> Plan:
    """The plan that fetches the fewest bytes within `limits` and, if one fits, `room`.

    forbid_incrementals names the components whose incremental just failed.
    limits.fetch_bytes_max is left to check_bytes: no plan is cheaper than this.
    """
    items = tuple(wanted)
    limits = limits or Limits()
    cheapest = plan = _plan(items, Bounds(limits), forbid_incrementals)
    # Of all the room there is to be counted, only that of a link can shrink on a
    # dearer road: more bytes fetched take more of incoming, and a full the most.
    while room and _lack_of_room(plan, room):
        fullest = max((_link_room(step) for step in plan.steps), default=0)
        if not fullest:
            return cheapest
        plan = _plan(items, Bounds(limits, fullest - 1), forbid_incrementals)
    return plan


def check_bytes(need: int, limits: Limits, *, spent: int = 0) -> None:
    """Refuse to fetch `need` bytes in a run that has fetched `spent` already.

    Raises LimitError: what it takes and what is allowed.
    """
    total = spent + need
    if need and limits.fetch_bytes_max and total > limits.fetch_bytes_max:
        beside = f" beside the {spent:,} that were fetched" if spent else ""
        raise LimitError(
            f"needs {need:,} bytes{beside}, {limits.fetch_bytes_max:,} may be fetched in a run",
            needed=total,
        )


def check_room(plan: Plan, room: Room) -> None:
    """Refuse a plan that the disk can't hold with the reserve left over.

    Raises RoomError: what is needed and what is free.
    """
    lack = _lack_of_room(plan, room)
    if lack:
        need, free, where = lack
        raise RoomError(
            f"needs {need:,} bytes, {free:,} are free in {where}; nothing was downloaded"
        )


def _lack_of_room(plan: Plan, room: Room) -> tuple[int, int, str] | None:
    """Bytes needed and free, and where, for the first place that is too small."""
    incoming, slots = plan.incoming_bytes, plan.slots_bytes
    if room.same_filesystem:
        places = [(incoming + slots, min(room.incoming, room.slots), "the state folder")]
    else:
        places = [(slots, room.slots, "the slots folder")]
        if incoming:
            places.insert(0, (incoming, room.incoming, "the incoming folder"))
    lacking = ((need + room.reserve, free, where) for need, free, where in places)
    return next((place for place in lacking if place[0] > place[1]), None)


def _plan(items: tuple[Wanted, ...], bounds: Bounds, forbidden: frozenset[str]) -> Plan:
    steps = tuple(_step(item, bounds, forbidden) for item in items)
    pairs = tuple(zip(items, steps, strict=True))
    content = sum(item.component.length for item in items)
    return Plan(
        steps=steps,
        fetch_bytes=sum(step.fetch_bytes for step in steps if not isinstance(step, Keep)),
        full_bytes=sum(item.full_bytes for item, step in pairs if not isinstance(step, Keep)),
        incoming_bytes=sum(_incoming(item, step) for item, step in pairs),
        slots_bytes=content + max((_scratch(step) for step in steps), default=0),
    )


def _step(item: Wanted, bounds: Bounds, forbidden: frozenset[str]) -> Step:
    component, installed = item.component, item.installed
    if installed is None:
        return _full(item, Reason.FIRST_INSTALL)
    if not installed.intact:
        return _full(item, Reason.BASE_DAMAGED)
    if installed.digest == component.digest:
        return Keep(component=component)
    if component.name in forbidden:
        return _full(item, Reason.INCREMENTAL_FAILED)
    chain = _chain(item, installed, bounds)
    if chain is None:
        return _full(item, _why_no_chain(item, installed, bounds))
    if sum(edge.length for edge in chain) >= item.full_bytes:
        return _full(item, Reason.NOT_SMALLER)
    return Rebuild(component=component, chain=chain, base_copy=_base_copy(item, installed))


def _full(item: Wanted, reason: Reason) -> Full:
    return Full(component=item.component, reason=reason, fetch_bytes=item.full_bytes)


def _chain(item: Wanted, installed: Installed, bounds: Bounds) -> tuple[Edge, ...] | None:
    return cheapest_chain(
        item.edges,
        base=(installed.version, installed.digest),
        base_copy=_base_copy(item, installed),
        component=item.component,
        bounds=bounds,
    )


def _base_copy(item: Wanted, installed: Installed) -> int:
    """Room for the base: a file is read where it lies, a folder is packed into a tar."""
    return installed.length if item.component.form is Form.TREE else 0


def _why_no_chain(item: Wanted, installed: Installed, bounds: Bounds) -> Reason:
    """Which of the bounds stands in the way, if one does."""
    if bounds.room is not None and _chain(item, installed, Bounds(bounds.limits)):
        return Reason.REBUILD_ROOM
    unlimited = Limits(chain_links_max=len(item.edges), rebuild_bytes_max=0)
    if _chain(item, installed, Bounds(unlimited)):
        return Reason.REBUILD_LIMIT
    return Reason.NO_ROAD


def _incoming(item: Wanted, step: Step) -> int:
    """Room in incoming: a full lies beside its compressed copy while it is unpacked."""
    match step:
        case Keep():
            return 0
        case Rebuild():
            return step.fetch_bytes
        case Full():
            return step.component.length + (item.compressed_length or 0)


def _scratch(step: Step) -> int:
    """Room for staging beyond the component itself, at its fullest moment.

    A link needs its base, its incremental and its result side by side, unless
    the base is a file of the active slot; a tree lies beside its tar while it is
    unpacked.
    """
    unpacked = step.component.length if step.component.form is Form.TREE else 0
    return max(unpacked, _link_room(step))


def _link_room(step: Step) -> int:
    """Room for the fullest link of a chain, beyond the component itself."""
    if not isinstance(step, Rebuild):
        return 0
    sizes = (step.base_copy, *(edge.result_length for edge in step.chain))
    fullest = max(room_at(*link) for link in zip(sizes, step.chain, strict=False))
    return max(0, fullest - step.component.length)

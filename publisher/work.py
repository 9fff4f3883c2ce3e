"""Long pieces of work, side by side in processes, within a memory limit (publisher.budget)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Generic, TypeVar

import msgspec

from publisher import budget

# Below this many bytes to go through, starting processes takes longer than the work.
PARALLEL_BYTES_MIN = 8 << 20

Done = TypeVar("Done")


class Work(msgspec.Struct, Generic[Done], frozen=True, kw_only=True):
    """A call for whichever process is free, the bytes it goes through, and those it takes."""

    name: str  # for people
    call: Callable[[int], Done]  # takes the bytes that it is granted
    size: int
    need: int


def run(
    items: Sequence[Work[Done]],
    *,
    workers: int,
    memory_limit: int,
    begun: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[Work[Done], Done]]:
    """Do all, side by side where that is worth it and fits; each is yielded when it is done.

    workers 0 takes one process a CPU. memory_limit: bytes, of this process and
    all workers together (publisher.budget). begun is told the name of each
    piece as it is given to a process.
    """
    ordered = sorted(items, key=lambda item: item.need, reverse=True)
    count = budget.workers(
        [item.need for item in ordered], wanted=workers or cpus(), limit=memory_limit
    )
    if count == 1 or sum(item.size for item in ordered) < PARALLEL_BYTES_MIN:
        room = budget.room(memory_limit, 0)
        yield from _one_by_one(ordered, room, begun)
        return
    with _pool(count) as pool:
        yield from _side_by_side(pool, ordered, count, budget.room(memory_limit, count), begun)


def _one_by_one(
    items: Sequence[Work[Done]], room: int, begun: Callable[[str], None]
) -> Iterator[tuple[Work[Done], Done]]:
    for item in items:
        begun(item.name)
        yield item, item.call(min(item.need, room))


def _side_by_side(
    pool: Executor,
    waiting: list[Work[Done]],
    count: int,
    room: int,
    begun: Callable[[str], None],
) -> Iterator[tuple[Work[Done], Done]]:
    running: dict[Future[Done], Work[Done]] = {}
    while waiting or running:
        while waiting and len(running) < count:
            index = budget.next_to_start(
                [item.need for item in waiting],
                [min(item.need, room) for item in running.values()],
                room=room,
            )
            if index is None:
                break
            item = waiting.pop(index)
            begun(item.name)
            running[pool.submit(item.call, min(item.need, room))] = item
        for done in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(done), done.result()


def cpus() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _pool(processes: int) -> Iterator[Executor]:
    # spawn: a forked child would inherit the terminal's progress thread half alive.
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)

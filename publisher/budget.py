"""How much memory a piece of work is given, and which pieces run side by side.

Pure. The limit is that of the whole command: this process, its workers, and
what each of them holds, files that it maps included.

 * Biggest first: the last to end is then a short one.
 * A piece that wants more than there is runs alone with what there is, and
   finds far and small moves less well.
 * A smaller piece starts early only where the biggest that waits is still
   given its place as soon as the biggest that runs ends.
"""

from __future__ import annotations

from collections.abc import Sequence

from feed.delta.match import NEW_COST, OLD_COST

MIB = 1 << 20

# Estimates for Linux, x86-64, Python 3.11, meant to be on the high side.
COMMAND_BYTES = 110 * MIB  # this process, and multiprocessing's tracker
WORKER_BYTES = 60 * MIB  # an idle one, with the matcher and the codecs loaded
# A segment of 32 MiB as text, as streams and inside LZMA.
PACKING_BYTES = 250 * MIB
COMPRESS_BYTES = 120 * MIB  # zstd's tables at level 19 and a window of 8 MiB
MATCHING_BYTES_MIN = 32 * MIB


def incremental_need(base_length: int, full_length: int) -> int:
    """Bytes with which an incremental is found as well as it can be."""
    matching = base_length * (OLD_COST + 1) + full_length * (NEW_COST + 1)
    # Packing begins when matching has given its memory back.
    packing = min(PACKING_BYTES, 20 * MIB + 10 * full_length)
    return base_length + full_length + max(matching, packing, MATCHING_BYTES_MIN)


def matching_limit(granted: int, base_length: int, full_length: int) -> int:
    """Of `granted` bytes, those for delta.create(memory_limit_bytes=…)."""
    return max(granted - base_length - full_length, MATCHING_BYTES_MIN)


def workers(needs: Sequence[int], *, wanted: int, limit: int) -> int:
    """How many processes can be of use: at most `wanted`, one at least.

    Work is of use beside other work if it fits there: so many as the smallest
    needs, together, leave within `limit` bytes.
    """
    room, found = limit - COMMAND_BYTES, 0
    for need in sorted(needs)[:wanted]:
        room -= need + WORKER_BYTES
        if room < 0:
            break
        found += 1
    return max(found, 1)


def room(limit: int, processes: int) -> int:
    """Bytes that the work of all the processes may take together."""
    return limit - COMMAND_BYTES - processes * WORKER_BYTES


def next_to_start(waiting: Sequence[int], running: Sequence[int], *, room: int) -> int | None:
    """Which of the waiting needs, biggest first, starts now; None: none before another ends."""
    for index, need in enumerate(waiting):
        biggest_gone = sum(running) - max(running, default=0)
        is_in_the_way = index and need + biggest_gone + min(waiting[0], room) > room
        if not running or (need + sum(running) <= room and not is_in_the_way):
            return index
    return None

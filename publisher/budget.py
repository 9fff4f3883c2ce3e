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

# Peak resident sets on Linux, x86-64, Python 3.11, rounded up.
COMMAND_BYTES = 80 * MIB  # 43 while workers work, and multiprocessing's tracker
WORKER_BYTES = 60 * MIB  # 36 idle; up to 20 that allocators keep between two pieces
COMPRESS_BYTES = 160 * MIB  # zstd's tables and a window of 8 MiB: 95 at level 19, 145 at 22
# A segment as streams and inside LZMA: 101 MiB for 4, 147 for 8, 185 for 11 (libraries,
# rules, any effort; the files come on top). Larger files take more while they are matched.
PACKING_BYTES_MIN = 48 * MIB
PACKING_COST = 14
PACKING_BYTES = 400 * MIB
THREAD_BYTES = 32 * MIB  # of each further one: LZMA with the window of a stream of numbers
THREADS_MAX = 4  # a segment has few large streams
MATCHING_BYTES_MIN = 32 * MIB


def threads(pieces: int, *, cpus: int) -> int:
    """How many each piece uses: more than one only where there are fewer pieces than CPUs."""
    return max(min(cpus // max(pieces, 1), THREADS_MAX), 1)


def incremental_need(base_length: int, full_length: int, *, threads: int = 1) -> int:
    """Bytes with which an incremental is found as well as it can be.

    On the high side: two files of 50 MiB are given 800 MiB, and were found with
    200 to 450.
    """
    matching = base_length * (OLD_COST + 1) + full_length * (NEW_COST + 1)
    # Packing begins when matching has given its memory back.
    packing = min(PACKING_BYTES, PACKING_BYTES_MIN + PACKING_COST * full_length)
    packing += (threads - 1) * THREAD_BYTES
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

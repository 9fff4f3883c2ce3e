"""How hard the publisher tries, and what it may take for it."""

from __future__ import annotations

from enum import IntEnum

# Matching takes about 9 bytes for each byte of the old file, and both files.
MEMORY_LIMIT_BYTES = 1 << 30


class Effort(IntEnum):
    """What an incremental may cost in CPU time; each finds what the one before finds."""

    QUICK = 1  # one packing per stream
    USUAL = 2  # at most 0.4 times bsdiff4's CPU, once files are above 5 MB
    THOROUGH = 3  # every packing of every stream, every codec of every segment

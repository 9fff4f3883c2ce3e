"""Files that are read by position: the old file, and the increment itself.

Reads that lie close together, as most do, come from a few blocks that are
kept; nothing grows with the file.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import BinaryIO

from feed.errors import RebuildError

BLOCK_BYTES = 128 << 10
_BLOCKS_KEPT = 16


class Source:
    """A seekable file whose bytes are asked for by offset.

    Nobody else may move the file while this reads it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.length = file.seek(0, os.SEEK_END)

    def read(self, at: int, size: int) -> bytes:
        """Exactly `size` bytes from `at`.

        Raises RebuildError: they aren't all there.
        """
        if at < 0 or size < 0 or at + size > self.length:
            raise RebuildError(f"{size:,} bytes at {at:,} of a file of {self.length:,}")
        self._file.seek(at)
        data = self._file.read(size)
        if len(data) != size:
            raise RebuildError(
                f"a file became shorter: {len(data):,} bytes at {at:,}, not {size:,}"
            )
        return data

    def head(self, at: int, size: int) -> bytes:
        """Up to `size` bytes from `at`: what is there."""
        return self.read(at, max(min(size, self.length - at), 0))


class Blocks(Source):
    """A source that keeps the blocks it read last, for many small reads near each other."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def read(self, at: int, size: int) -> bytes:
        """See Source."""
        first, inside = divmod(at, BLOCK_BYTES)
        if inside + size > BLOCK_BYTES or at < 0 or at + size > self.length:
            return super().read(at, size)
        block = self._kept.get(first)
        if block is None:
            block = self._fetch(first)
        return block[inside : inside + size]

    def _fetch(self, number: int) -> bytes:
        at = number * BLOCK_BYTES
        block = super().read(at, min(BLOCK_BYTES, self.length - at))
        self._kept[number] = block
        if len(self._kept) > _BLOCKS_KEPT:
            self._kept.popitem(last=False)
        return block

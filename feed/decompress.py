"""A `.zst` from the road, decoded in bounded memory and bounded length.

Unsigned bytes go in, so everything about them is limited: the window a frame
may ask for, what one step may produce, and the whole output. What comes out
is untrusted until its digest has been compared.
"""

from __future__ import annotations

import hashlib
from typing import BinaryIO

from feed.errors import RebuildError
from feed.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

# 8 MiB: what RFC 8878, 3.1.1.1.2, asks of every decoder, and zstd's levels up to 19 of encoders.
WINDOW_LOG_MAX = 23
STEP_BYTES = 1 << 20


def decode(packed: BinaryIO, out: BinaryIO, *, limit: int) -> str:
    """Decode every frame of `packed` into `out`; writing stops at `limit` bytes.

    Returns the lowercase hex SHA-256 of what was written.
    Raises RebuildError: malformed, cut short, or more than `limit` comes out.
    """
    digest, written = hashlib.sha256(), 0
    decoder, left = _decoder(), b""
    is_started = False
    while True:
        data = left or (packed.read(STEP_BYTES) if decoder.needs_input else b"")
        left = b""
        if not data and decoder.needs_input:
            break
        is_started = True
        chunk = _step(decoder, data)
        written += len(chunk)
        if written > limit:
            raise RebuildError(f"the compressed form inflates past the signed {limit:,} bytes")
        digest.update(chunk)
        out.write(chunk)
        if decoder.eof:
            decoder, left, is_started = _decoder(), decoder.unused_data, False
    if is_started:
        raise RebuildError(f"the compressed form ends in the middle, {written:,} bytes came out")
    return digest.hexdigest()


def _decoder() -> ZstdDecompressor:
    return ZstdDecompressor(options={DecompressionParameter.window_log_max: WINDOW_LOG_MAX})


def _step(decoder: ZstdDecompressor, data: bytes) -> bytes:
    try:
        return decoder.decompress(data, STEP_BYTES)
    except ZstdError as error:
        raise RebuildError(f"the compressed form doesn't decode: {error}") from error

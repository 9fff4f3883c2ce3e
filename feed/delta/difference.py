"""Sums and differences of byte strings, byte by byte.

As two long integers, so that the work per byte is done in C. The low seven
bits are summed where no carry can leave its byte; the eighth is put in by
exclusive or (SIMD within a register: Warren, Hacker's Delight, 2-18).
"""

from __future__ import annotations

_BLOCK_BYTES = 16 << 10  # long integers stay in the cache
_LOW = int.from_bytes(b"\x7f" * _BLOCK_BYTES, "little")
_HIGH = int.from_bytes(b"\x80" * _BLOCK_BYTES, "little")


def add(left: bytes | bytearray, right: bytes | bytearray) -> bytes:
    """left + right; both equally long."""
    if len(left) <= _BLOCK_BYTES:
        return _add(left, right)
    starts = range(0, len(left), _BLOCK_BYTES)
    return b"".join(
        _add(left[at : at + _BLOCK_BYTES], right[at : at + _BLOCK_BYTES]) for at in starts
    )


def subtract(left: bytes, right: bytes) -> bytes:
    """left - right; both equally long."""
    if len(left) <= _BLOCK_BYTES:
        return _subtract(left, right)
    starts = range(0, len(left), _BLOCK_BYTES)
    return b"".join(
        _subtract(left[at : at + _BLOCK_BYTES], right[at : at + _BLOCK_BYTES]) for at in starts
    )


def _masks(size: int) -> tuple[int, int]:
    if size == _BLOCK_BYTES:
        return _LOW, _HIGH
    unused = 8 * (_BLOCK_BYTES - size)
    return _LOW >> unused, _HIGH >> unused


def _add(left: bytes | bytearray, right: bytes | bytearray) -> bytes:
    low, high = _masks(len(left))
    a, b = int.from_bytes(left, "little"), int.from_bytes(right, "little")
    return (((a & low) + (b & low)) ^ ((a ^ b) & high)).to_bytes(len(left), "little")


def _subtract(left: bytes, right: bytes) -> bytes:
    low, high = _masks(len(left))
    a, b = int.from_bytes(left, "little"), int.from_bytes(right, "little")
    return (((a | high) - (b & low)) ^ ((a ^ b ^ high) & high)).to_bytes(len(left), "little")

"""Fuzz feed.delta.apply: RebuildError or the right result, within the signed length.

    python -m tests.fuzz.fuzz_delta [runs] [seed]

With atheris installed (Linux), its coverage guides the mutations; without it,
those of tests.fuzz.mutations are used alone. A run that ends in anything else,
writes too much or takes too long ends the program, with what it was given
in fuzz-failure.bin.
"""

from __future__ import annotations

import importlib.util
import io
import random
import sys
import time
from pathlib import Path

import bsdiff4

from feed import delta
from feed.errors import RebuildError
from tests.fuzz.mutations import mutated, seeds

RUN_SECONDS_MAX = 2.0
BSDIFF_MAGIC = b"BSDIFF40"


def given() -> tuple[tuple[bytes, bytes, bytes], ...]:
    """What is mutated: segments of every codec, and a standard bsdiff patch."""
    base, new, _ = seeds()[0]
    return (*seeds(), (base, new, bsdiff4.diff(base, new)))


def one(base: bytes, new: bytes, patch: bytes) -> None:
    """Apply one increment; raises AssertionError if it isn't handled as it should be."""
    out = io.BytesIO()
    codec = delta.BSDIFF if patch.startswith(BSDIFF_MAGIC) else delta.SEGMENTS
    started = time.perf_counter()
    try:
        delta.apply(io.BytesIO(base), io.BytesIO(patch), out, format=codec, limit=len(new))
    except RebuildError:
        pass
    else:
        assert codec == delta.BSDIFF or out.getvalue() == new, "another result"
    assert len(out.getvalue()) <= len(new), "past the signed length"
    assert time.perf_counter() - started < RUN_SECONDS_MAX, "too slow"


def guarded(base: bytes, new: bytes, patch: bytes) -> None:
    """`one`, which leaves what it failed on behind."""
    try:
        one(base, new, patch)
    except BaseException:
        Path("fuzz-failure.bin").write_bytes(patch)
        raise


def alone(runs: int, seed: int) -> None:
    """Mutate without guidance; the same seed gives the same runs."""
    dice = random.Random(seed)
    pairs = given()
    for _ in range(runs):
        base, new, patch = dice.choice(pairs)
        guarded(base, new, mutated(patch, dice))


def with_atheris(runs: int, seed: int) -> None:
    """Let libFuzzer choose: the first byte takes the pair, the rest is the increment."""
    import atheris

    pairs = given()
    corpus = Path("build/fuzz-corpus")
    corpus.mkdir(parents=True, exist_ok=True)
    for number, (_, _, patch) in enumerate(pairs):
        (corpus / f"seed-{number}").write_bytes(bytes((number,)) + patch)

    def target(data: bytes) -> None:
        base, new, _ = pairs[data[0] % len(pairs) if data else 0]
        guarded(base, new, data[1:])

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], f"-runs={runs}", f"-seed={seed}", str(corpus)], target)
    atheris.Fuzz()


def main() -> None:
    numbers = [int(text) for text in sys.argv[1:3]]
    runs, seed = [*numbers, *(1_000_000, 1)[len(numbers) :]]
    go = with_atheris if importlib.util.find_spec("atheris") else alone
    go(runs, seed)
    print(f"{runs:,} runs, none wrong")


if __name__ == "__main__":
    main()

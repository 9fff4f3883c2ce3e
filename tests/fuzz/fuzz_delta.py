"""Fuzz feed.delta.apply: RebuildError, or a digest that tells, within the signed length.

    python -m tests.fuzz.fuzz_delta [runs] [seed]

With atheris installed (Linux), the coverage of feed.delta guides the mutations:
libFuzzer's own by turns with those of tests.fuzz.mutations. Without it, the
latter are used alone, and the same seed gives the same runs.

An increment's own checks are part of it and can be made to fit: what its caller
holds against the signed digest is the one that apply returns.

A run that ends in anything else, writes too much, or takes too long ends the
program with what it was given in build/fuzz-failure.bin; so does a crash of a
native decoder, whose input libFuzzer leaves in build/crash-*.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import io
import os
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType

import bsdiff4

from feed import delta
from feed.errors import RebuildError
from tests.fuzz.mutations import mutated, seeds

RUNS = 1_000_000
TOTAL_SECONDS_MAX = 3600.0
RUN_SECONDS_MAX = 2.0  # of CPU: the increments are small, and other programs run beside
GROWTH_BYTES_MAX = 256 << 20  # of the process, with libFuzzer's own growing corpus
TELL_SECONDS = 10.0
FINDINGS = Path("build")
CORPUS = FINDINGS / "fuzz-corpus"
BSDIFF_MAGIC = b"BSDIFF40"

Run = tuple[bytes, bytes, bytes]  # base, result, increment


def given() -> tuple[Run, ...]:
    """What is mutated: segments of every codec, and a standard bsdiff patch."""
    base, new, _ = seeds()[0]
    return (*seeds(), (base, new, bsdiff4.diff(base, new)))


def one(base: bytes, new: bytes, patch: bytes) -> None:
    """Apply one increment; raises AssertionError if it isn't handled as it should be."""
    out = io.BytesIO()
    codec = delta.BSDIFF if patch.startswith(BSDIFF_MAGIC) else delta.SEGMENTS
    started = time.process_time()
    try:
        told = delta.apply(io.BytesIO(base), io.BytesIO(patch), out, format=codec, limit=len(new))
    except RebuildError:
        pass
    else:
        assert told == hashlib.sha256(out.getvalue()).hexdigest(), "another digest"
    assert len(out.getvalue()) <= len(new), "past the signed length"
    assert time.process_time() - started < RUN_SECONDS_MAX, "too slow"


class Campaign:
    """Counts runs, tells how far they are, and stops at the last one or when time is up."""

    def __init__(self, runs: int, how: str) -> None:
        self._runs = runs
        self._how = how
        self._done = 0
        self._started = self._told = time.monotonic()
        self._memory = _memory_bytes()

    def run(self, base: bytes, new: bytes, patch: bytes) -> bool:
        """One run; False after the last. A failure leaves its increment behind."""
        try:
            one(base, new, patch)
        except BaseException:
            (FINDINGS / "fuzz-failure.bin").write_bytes(patch)
            raise
        self._done += 1
        now = time.monotonic()
        is_over = self._done >= self._runs or now - self._started > TOTAL_SECONDS_MAX
        if is_over or now - self._told >= TELL_SECONDS:
            self._told = now
            self._tell(now - self._started, is_over=is_over)
        return not is_over

    def _tell(self, seconds: float, *, is_over: bool) -> None:
        grown = _memory_bytes() - self._memory
        assert grown < GROWTH_BYTES_MAX, f"{grown:,} bytes of memory"
        how_far = f"{self._done:,}" if is_over else f"{self._done:,} of {self._runs:,}"
        rate = self._done / max(seconds, 0.001)
        print(
            f"fuzz: {how_far} runs {self._how} in {seconds:.0f} s, {rate:,.0f} a second"
            + (f", none wrong; {grown >> 20} MiB grown" if is_over else ""),
            flush=True,
        )


def _memory_bytes() -> int:
    """The most this process ever held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def alone(runs: int, seed: int) -> None:
    """Mutate without guidance."""
    dice = random.Random(seed)
    pairs = given()
    campaign = Campaign(runs, "unguided")
    going = True
    while going:
        base, new, patch = dice.choice(pairs)
        going = campaign.run(base, new, mutated(patch, dice))


def guided(runs: int, seed: int) -> None:
    """Let libFuzzer choose: the first byte takes the pair, the rest is the increment."""
    import atheris

    pairs = given()
    CORPUS.mkdir(exist_ok=True)
    for number, (_, _, patch) in enumerate(pairs):
        (CORPUS / f"seed-{number}").write_bytes(bytes((number,)) + patch)
    instrument(atheris.instrument_func)
    campaign = Campaign(runs, "guided by coverage")

    def target(data: bytes) -> None:
        base, new, _ = pairs[data[0] % len(pairs) if data else 0]
        if not campaign.run(base, new, data[1:]):
            os._exit(0)  # libFuzzer has no other way out that isn't a finding

    def mutate(data: bytes, max_size: int, number: int) -> bytes:
        if number % 2 or not data:
            return atheris.Mutate(data, max_size)
        return (data[:1] + mutated(data[1:], random.Random(number)))[:max_size]

    options = [
        *("-verbosity=0", "-timeout=20", "-rss_limit_mb=1024"),
        *(f"-seed={seed}", f"-artifact_prefix={FINDINGS}/"),
    ]
    atheris.Setup([sys.argv[0], *options, str(CORPUS)], target, custom_mutator=mutate)
    atheris.Fuzz()


def instrument(each: Callable[[FunctionType], object]) -> None:
    """Have the decoder's functions, and no others, report where they have been."""
    for module in [item for name, item in sys.modules.items() if name.startswith("feed.delta")]:
        for owner in (module, *(item for item in vars(module).values() if inspect.isclass(item))):
            for item in vars(owner).values():
                function = inspect.unwrap(item) if callable(item) else item
                if isinstance(function, FunctionType) and _is_ours(function, module):
                    each(function)


def _is_ours(function: FunctionType, module: ModuleType) -> bool:
    return function.__module__ == module.__name__


def main() -> None:
    numbers = [int(text) for text in sys.argv[1:3]]
    runs, seed = [*numbers, *(RUNS, 1)[len(numbers) :]]
    FINDINGS.mkdir(exist_ok=True)
    go = guided if importlib.util.find_spec("atheris") else alone
    go(runs, seed)


if __name__ == "__main__":
    main()

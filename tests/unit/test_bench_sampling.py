"""What the bench of whole updates sees of a process and its children."""

from __future__ import annotations

import subprocess
import sys

from bench.endtoend.sampling import Cost, Sampler

HELD = 40_000_000
CHILD = f"held = b'x' * {HELD}; sum(range(5_000_000)); print(flush=True); input()"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}], check=True)"


def cost(program: str) -> Cost:
    """Of a program that prints a line, waits for one and ends."""
    pids: list[int] = []
    with (
        Sampler(lambda: pids) as sampler,
        subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process,
    ):
        pids.append(process.pid)
        assert process.stdout is not None
        process.stdout.readline()
        sampler.sample()
        process.communicate(b"\n")
    return sampler.cost


def test_memory_is_that_of_all_processes_and_of_the_largest() -> None:
    alone, together = cost(CHILD), cost(PARENT)
    assert HELD < alone.largest_bytes == alone.together_bytes < 2 * HELD
    assert HELD < together.largest_bytes < 2 * HELD
    assert HELD < together.together_bytes < 2 * HELD


def test_cpu_of_a_process_that_runs_already_counts_from_the_start_of_looking() -> None:
    began = cost(CHILD).cpu_s
    assert began > 0
    with (
        subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process,
    ):
        assert process.stdout is not None
        process.stdout.readline()
        with Sampler(lambda: [process.pid]) as sampler:
            sampler.sample()
        process.communicate(b"\n")
    assert sampler.cost.cpu_s <= began / 2

"""Small real processes to look at, and a way to look until something is seen."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.guardian.health import Prober
from agent.guardian.samples import ProcessSample, Sample

SPIN = "while True: pass"
SLEEP = "import time; time.sleep(60)"


@contextmanager
def python(code: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that runs `code`; killed with its children on leaving."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", code, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def said(process: subprocess.Popen[bytes]) -> str:
    """The next line that a process prints."""
    assert process.stdout
    return process.stdout.readline().decode().strip()


def pid_file(folder: Path, pid: int | str) -> str:
    """A pid file with that content."""
    path = folder / "engine.pid"
    path.write_text(f"{pid}\n")
    return str(path)


def look(prober: Prober) -> Sample:
    """One look at the present time."""
    return prober.sample(time.monotonic())


def process(sample: Sample, name: str = "engine") -> ProcessSample:
    """One watch's part of a sample."""
    return next(item for item in sample.processes if item.name == name)


def look_until(
    prober: Prober, is_seen: Callable[[Sample], bool], *, within_s: float = 20.0
) -> Sample:
    """Look again and again; the first sample of which `is_seen` is true."""
    end = time.monotonic() + within_s
    while True:
        sample = look(prober)
        if is_seen(sample):
            return sample
        assert time.monotonic() < end, f"not seen within {within_s} s; last: {sample}"
        time.sleep(0.05)


def look_over(prober: Prober, seconds: float) -> Sample:
    """One look that covers `seconds`."""
    look(prober)
    time.sleep(seconds)
    return look(prober)

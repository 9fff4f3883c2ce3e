"""A machine with a release installed for real, for the benches that need one."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.endpoint import Endpoint
from tests.support.vendor import Vendor

PATTERN = "virus-pattern"
CONTENT = bytes(range(256)) * 4096  # 1 MiB
AT_ONCE = {"warmup_s": 0.0, "probation_s": 0.0}  # where the trial isn't what is measured
INSTALL_S = 300.0  # a machine that others keep busy extends every trial


@contextmanager
def folder() -> Iterator[Path]:
    """A place for one bench."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as name:
        yield Path(name)


def vendor(place: Path, content: bytes = CONTENT) -> Vendor:
    """A release desk that offers r171."""
    desk = Vendor(place / "vendor")
    desk.ship("r171", {PATTERN: ("171", content)})
    return desk


@contextmanager
def installed(
    place: Path,
    *,
    url: str,
    root: bytes,
    extra: str = "",
    health: dict[str, float] | None = None,
) -> Iterator[Endpoint]:
    """A guardian at rest that has installed and kept r171."""
    endpoint = Endpoint(place, url=url, root=root, extra=extra, health=health or AT_ONCE)
    with endpoint.running():
        endpoint.wait_for_release("r171", seconds=INSTALL_S)
        endpoint.wait_for(lambda status: not status.get("verifying"))
        yield endpoint


def wall_s(command: Sequence[str], environment: dict[str, str]) -> float:
    """Seconds that a command takes."""
    began = time.perf_counter()
    subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - began


def taking_turns(acts: Sequence[Callable[[], float]], times: int) -> list[float]:
    """The medians of several measurements that take turns, so that noise meets all of them."""
    found: list[list[float]] = [[] for _ in acts]
    for _ in range(times):
        for act, seconds in zip(acts, found, strict=True):
            seconds.append(act())
    return [statistics.median(seconds) for seconds in found]

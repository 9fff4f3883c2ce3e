"""What a process and all that it starts take, looked at while it runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

INTERVAL_S = 0.01
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
# Fields of proc(5) stat after the name: user and system time, own and of children waited for.
OWN = (11, 12)
CHILDREN = (13, 14)


@dataclass(frozen=True)
class Cost:
    """What was seen: the highest sum of PSS, the highest RSS of one process, CPU time."""

    together_bytes: int
    largest_bytes: int
    cpu_s: float


class Sampler:
    """Looks at some processes and all they start, a hundred times a second.

    roots are asked each time, for they may come and go meanwhile. CPU counts
    from here on, of processes that run already too. A process that is alone
    isn't asked for its PSS: to walk hundreds of MB would hold it up.
    """

    def __init__(self, roots: Callable[[], list[int]]) -> None:
        self._roots = roots
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._together = 0
        self._largest = 0
        self._cpu: dict[int, float] = {}
        self._before: dict[int, float] = {}

    def __enter__(self) -> Self:
        self._before = {pid: _cpu_s(pid) for pid in self._family()}
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def cost(self) -> Cost:
        """All of it; ask after the end."""
        # What others start is in their own time once they have waited for it.
        counted = {*self._roots(), *self._before}
        cpu_s = sum(
            spent - self._before.get(pid, 0.0) for pid, spent in self._cpu.items() if pid in counted
        )
        return Cost(self._together or self._largest, self._largest, cpu_s)

    def _look(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            self.sample()

    def sample(self) -> None:
        """Look once more, now."""
        family = self._family()
        together = 0
        for pid in family:
            with suppress(OSError, StopIteration):
                self._largest = max(self._largest, _bytes(f"/proc/{pid}/status", "VmHWM:"))
                self._cpu[pid] = _cpu_s(pid)
                if len(family) > 1:
                    together += _bytes(f"/proc/{pid}/smaps_rollup", "Pss:")
        self._together = max(self._together, together)

    def _family(self) -> set[int]:
        return {pid for root in self._roots() for pid in (root, *_descendants(root))}


def _descendants(pid: int) -> Iterator[int]:
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from _descendants(child)


def _bytes(path: str, field: str) -> int:
    lines = Path(path).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def _cpu_s(pid: int) -> float:
    """With that of children it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(fields[at]) for at in OWN + CHILDREN) * TICK_S

"""How busy the machine is, and with whose work."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from agent.guardian.machine import Busy, CpuMeter


class Times:
    """What psutil.cpu_times gives: seconds since boot, by kind."""

    def __init__(self, *, user: float = 0.0, nice: float = 0.0) -> None:
        self.user, self.nice, self.system, self.idle, self.iowait = user, nice, 0.0, 0.0, 0.0

    def __iter__(self) -> Iterator[float]:
        return iter((self.user, self.nice, self.system, self.idle, self.iowait))


def test_niced_work_fills_the_machine_and_is_nobodys_pressure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise a spinning engine that shares its core with it passes for a modest one."""
    monkeypatch.setattr(psutil, "cpu_times", Times)
    meter = CpuMeter()
    monkeypatch.setattr(psutil, "cpu_times", lambda: Times(user=1.0, nice=1.0))
    found = meter.look()
    assert found.share == 1.0
    assert found.foreign_share(ours_s=1.0) == 0.0
    assert found.foreign_share(ours_s=0.2) == pytest.approx(0.4)


def test_what_is_neither_ours_nor_niced_is_foreign() -> None:
    busy = Busy(share=0.8, core_s=1.6, niced_s=0.4)
    assert busy.foreign_share(ours_s=0.4) == pytest.approx(0.4)
    assert busy.foreign_share(ours_s=1.6) == 0.0
    assert Busy(share=0.0, core_s=0.0).foreign_share(ours_s=0.0) == 0.0

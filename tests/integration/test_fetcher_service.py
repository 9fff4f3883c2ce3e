"""The fetcher as a service of its own: the whole road, and each side's end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.endpoint import Endpoint
from tests.support.vendor import Vendor


class Service:
    """What the unit does: start the fetcher again whenever it ends; or only once."""

    def __init__(self, endpoint: Endpoint, *, again: bool = True) -> None:
        loop = 'while :; do "$@"; sleep 0.2; done' if again else '"$@"; exit'
        program = [sys.executable, "-m", "agent.fetcher.connect"]
        self.process = subprocess.Popen(
            ["sh", "-c", loop, "sh", *program, "--config", str(endpoint.config)],
            env=endpoint._environment(),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def lone(tmp_path: Path) -> tuple[Endpoint, Vendor]:
    """A machine whose fetcher nobody has started."""
    vendor = Vendor(tmp_path / "vendor")
    vendor.ship("r171", {"pattern": ("171", b"one " * 500)})
    endpoint = Endpoint(tmp_path / "m", url=vendor.url, root=vendor.root)
    endpoint.arguments = ("--fetcher-connects",)
    return endpoint, vendor


@pytest.fixture
def machine(lone: tuple[Endpoint, Vendor]) -> Iterator[tuple[Endpoint, Vendor]]:
    service = Service(lone[0])
    yield lone
    service.stop()


def fetcher(endpoint: Endpoint, *, other_than: int | None = None) -> int:
    def is_there(status: dict[str, object]) -> bool:
        return (status.get("fetcher") or {}).get("pid") not in {None, other_than}  # type: ignore[attr-defined]

    return int(endpoint.wait_for(is_there)["fetcher"]["pid"])


def test_an_update_through_a_fetcher_that_came_by_itself(machine: tuple[Endpoint, Vendor]) -> None:
    endpoint, vendor = machine
    with endpoint.running() as guardian:
        endpoint.wait_for_release("r171")
        pid = fetcher(endpoint)
        assert psutil.Process(pid).ppid() != guardian.pid
        vendor.ship("r173", {"pattern": ("173", b"two " * 500)})
        assert endpoint.ctl("update").returncode == 0
        assert endpoint.status()["release"] == "r173"
    assert endpoint.slot_problems() == []


def test_either_side_may_end_and_the_other_finds_it_again(
    machine: tuple[Endpoint, Vendor],
) -> None:
    endpoint, vendor = machine
    with endpoint.running():
        endpoint.wait_for_release("r171")
        first = fetcher(endpoint)
        psutil.Process(first).kill()
        second = fetcher(endpoint, other_than=first)
        endpoint.kill()  # the guardian; its fetcher hears the line go dead and ends
        psutil.wait_procs([psutil.Process(second)], timeout=20)
    vendor.ship("r173", {"pattern": ("173", b"two " * 500)})
    with endpoint.running():
        fetcher(endpoint, other_than=second)
        endpoint.wait_for_release("r173")


def test_a_fetcher_that_comes_first_looks_for_its_guardian(
    lone: tuple[Endpoint, Vendor],
) -> None:
    endpoint, _ = lone
    service = Service(endpoint, again=False)
    try:
        with endpoint.running():
            endpoint.wait_for_release("r171")
            assert service.process.poll() is None, "it was found by one that was started again"
    finally:
        service.stop()


def test_a_guardian_whose_fetcher_is_a_service_stops_in_order(
    machine: tuple[Endpoint, Vendor],
) -> None:
    endpoint, _ = machine
    with endpoint.running():
        fetcher(endpoint)
        assert endpoint.stop() == 0, endpoint.log.read_text()[-3000:]

"""Both products, each with a feed, a machine that has version 1, and an update to version 2."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import machine
from bench.delta import measure
from bench.delta.corpora import Pair, cache
from bench.endtoend import job
from bench.endtoend.sampling import Cost, Sampler
from tests.support.endpoint import Endpoint
from tests.support.vendor import Vendor

JOB = Path(job.__file__)
SERVER = JOB.with_name("server.py")
LOOK_S = 0.002
UPDATE_S = 300.0


@dataclass(frozen=True)
class Update:
    """One update. commit_s is what came after the flip; 0 where there is no such thing."""

    wall_s: float
    fetched: int
    cost: Cost
    commit_s: float = 0.0


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The URL of `folder` on a static server in a process of its own."""
    command = [sys.executable, SERVER, folder]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}/"
        finally:
            server.kill()


class Ours:
    """Two feeds of one vendor, with and without increments, and an installed machine to copy."""

    def __init__(self, place: Path, pair: Pair) -> None:
        self._place = place
        self._pair = pair
        desk = Vendor(place / "vendor")
        desk.ship("r1", {machine.PATTERN: ("1", pair.base)})
        self._root = desk.root
        with served(desk.feed) as url:
            endpoint = self._endpoint(place / "installed", url)
            with endpoint.running():
                endpoint.ctl("update", "--no-wait", check=True)
                endpoint.wait_for_release("r1", seconds=UPDATE_S)
        shutil.copytree(desk.folder, place / "vendor-full", symlinks=True)
        self._desks = {"patch": desk, "full": Vendor(place / "vendor-full")}
        self._desks["full"].configure(workers=1, compression_level=3, incrementals_kept=0)
        for vendor in self._desks.values():
            vendor.ship("r2", {machine.PATTERN: ("2", pair.target)})

    def update(self, road: str) -> Update:
        """Bring a copy of the machine to version 2 by `road`, patch or full."""
        folder = self._place / "machine"
        shutil.copytree(self._place / "installed", folder, symlinks=True)
        os.sync()
        with served(self._desks[road].feed) as url:
            endpoint = self._endpoint(folder, url)
            with endpoint.running():
                endpoint.wait_for(lambda status: not status["verifying"])
                found = self._timed(endpoint)
        name = next((endpoint.layout.current / machine.PATTERN).iterdir())
        check_same(name, self._pair.target)
        shutil.rmtree(folder)
        return found

    def _endpoint(self, folder: Path, url: str) -> Endpoint:
        return Endpoint(folder, url=url, root=self._root, health=machine.AT_ONCE, at_start=False)

    def _timed(self, endpoint: Endpoint) -> Update:
        guardian = endpoint.process
        assert guardian is not None
        command = [sys.executable, "-m", "agent.ctl", "update", "--no-wait"]
        current = endpoint.layout.current
        before = current.readlink()
        pids = [guardian.pid]
        with Sampler(lambda: pids) as sampler:
            began = time.perf_counter()
            asked = subprocess.Popen(
                [*command, "--config", str(endpoint.config)],
                env={**os.environ, "PYTHONPATH": str(measure.ROOT)},
                stdout=subprocess.DEVNULL,
            )
            pids.append(asked.pid)
            while current.readlink() == before:
                time.sleep(LOOK_S)
                assert time.perf_counter() - began < UPDATE_S, endpoint.log.read_text()[-4000:]
            wall_s = time.perf_counter() - began
        assert asked.wait() == 0
        endpoint.wait_for_release("r2", seconds=UPDATE_S)
        (*_, ended) = endpoint.history()
        commit_s = ended["ended"] - ended["flipped"]
        return Update(wall_s, ended["wire_bytes"], sampler.cost, commit_s)


class Tufup:
    """Its repository, made once and kept, and its client."""

    def __init__(self, place: Path, pair: Pair) -> None:
        self._place = place
        self._pair = pair
        self._python = measure.tufup_python()
        self._folder = cache() / f"tufup-repository-{pair.size}"
        if not (self._folder / "ready").exists():
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir()
            arguments = ["publish", self._folder, pair.base, pair.target]
            subprocess.run([self._python, "-P", JOB, *arguments], check=True, cwd=self._folder)
            (self._folder / "ready").touch()

    def update(self, road: str) -> Update:
        """Bring a fresh machine to version 2 by `road`, patch or full."""
        folder = self._machine()
        with served(self._folder / "repository") as url:
            command = [self._python, "-P", JOB, "update", folder, url, road]
            pids: list[int] = []
            with (
                Sampler(lambda: pids) as sampler,
                subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
            ):
                pids.append(process.pid)
                said, _ = process.communicate(timeout=UPDATE_S)
        assert process.returncode == 0, process.returncode
        check_same(folder / "installed" / job.CONTENT, self._pair.target)
        shutil.rmtree(folder)
        told = json.loads(said.splitlines()[-1])
        return Update(told["wall_s"], told["fetched"], sampler.cost)

    def _machine(self) -> Path:
        folder = self._place / "tufup-machine"
        for name in ("installed", "metadata", "targets"):
            (folder / name).mkdir(parents=True)
        repository = self._folder / "repository"
        shutil.copyfile(self._pair.base, folder / "installed" / job.CONTENT)
        shutil.copyfile(repository / "metadata" / "root.json", folder / "metadata" / "root.json")
        archive = f"{job.NAME}-1.0.tar.gz"
        shutil.copyfile(repository / "targets" / archive, folder / "targets" / archive)
        os.sync()
        return folder


def check_same(found: Path, wanted: Path) -> None:
    """Raises ValueError: an update led to other bytes."""
    if measure.digest(found) != measure.digest(wanted):
        raise ValueError(f"{found} isn't {wanted}")

"""A Debian with a systemd of its own, booted in a container, to install the agent into.

    with rootfs.disk() as disk:
        guest = Guest(disk, feed=vendor.feed)
        guest.boot()
        guest.run("systemctl", "start", "scanner.service")
        guest.cut()                      # the plug is pulled; `boot` goes on with the same disk

It has no network but its loopback; the feed is mounted at /mnt/feed. Its processes and
files are this machine's, so what is only looked at is looked at from outside.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from agent.ctl import client
from agent.layout import Layout
from tests.support import boxes
from tests.support.boxes import Box

FEED = "/mnt/feed"
NEEDS = ("systemd-nspawn", "debootstrap", "nsenter", "setpriv", "dpkg-deb", "mount")
PATIENCE_S = 90.0  # processors are shared with other tests and other people
BOOTED = {"running", "degraded"}
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
    "DEBIAN_FRONTEND": "noninteractive",
}


class NoGuestError(Exception):
    """Containers can't be started on this machine; the text is what systemd-nspawn said."""


class Guest:
    """One machine: `disk` is its root file system, which outlives its boots."""

    def __init__(self, disk: Path, *, feed: Path) -> None:
        self.disk = disk
        self.feed = feed
        self.has_feed = False
        self._container: subprocess.Popen[bytes] | None = None
        self._init: psutil.Process | None = None
        self._name = f"holdfast-guest-{os.getpid()}-{disk.parent.name}"
        self._group = _own_group(boxes.unified(), self._name)

    @property
    def is_on(self) -> bool:
        """Whether its init lives."""
        return self._init is not None and self._init.is_running()

    def is_in(self, box: Box) -> bool:
        """Whether it runs, and runs in that box."""
        return self._init is not None and self._init.pid in box.processes

    def boot(self, *, feed: bool = True, wait: bool = True, box: Box | None = None) -> None:
        """Switch it on; without `feed` there is no source. wait=False: don't, it may hang.

        In a box all of it shares the box's limits, until it is switched off.

        Raises NoGuestError.
        """
        assert not self.is_on
        self.has_feed = feed
        options = [f"--bind-ro={self.feed}:{FEED}"] if feed else []
        command = ["systemd-nspawn", "--quiet", "--boot", f"--directory={self.disk}"]
        command += [f"--machine=guest-{os.getpid()}"]
        command += ["--private-network", "--register=no", "--keep-unit", "--console=pipe"]
        with self.disk.with_name("console.log").open("ab") as console:
            self._container = subprocess.Popen(
                # A test run that is killed leaves no guest behind.
                [*self._entering(box), "setpriv", "--pdeathsig", "KILL", *command, *options],
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        self._init = self._found_init()
        if wait:
            self.wait_until(self._has_booted, "the guest has booted")

    def _entering(self, box: Box | None) -> list[str]:
        boxed = list(box.prefix) if box else []
        group = _own_group(box.inside, self._name) if box and box.inside else self._group
        if group is None:
            return boxed
        entering = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(group / "cgroup.procs")]
        return boxed + entering

    def _found_init(self) -> psutil.Process:
        assert self._container
        container = psutil.Process(self._container.pid)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self._container.poll() is None:
            for child in container.children():
                with contextlib.suppress(psutil.NoSuchProcess):  # one of nspawn's helpers
                    if child.name() == "systemd":
                        return child
            time.sleep(0.05)
        raise NoGuestError(self._console().strip() or "systemd-nspawn started nothing")

    def _has_booted(self) -> bool:
        return self.run("systemctl", "is-system-running", ok=False).stdout.strip() in BOOTED

    def _console(self) -> str:
        return self.disk.with_name("console.log").read_text("utf-8", "replace")[-3000:]

    def cut(self) -> None:
        """Pull the plug: every process is gone at once."""
        if self._init and self._init.is_running():
            self._init.kill()
        elif self._container and self._container.poll() is None:
            for process in psutil.Process(self._container.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._container.kill()
        if self._container:
            self._container.wait(PATIENCE_S)
        self._init = self._container = None

    def shut_down(self) -> None:
        """Switch it off in order."""
        assert self._container
        self.run("systemctl", "poweroff", "--no-block")
        self._container.wait(PATIENCE_S)
        self.cut()

    def close(self) -> None:
        """Pull the plug for good."""
        self.cut()
        if self._group:
            boxes.remove(self._group)
            boxes.remove(boxes.GROUPS / "systemd" / self._name)  # systemd-nspawn's, beside it

    def run(
        self, *command: str, ok: bool = True, seconds: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` in it, as root; unless ok=False it has to succeed."""
        assert self._init
        done = subprocess.run(
            ["nsenter", "--target", str(self._init.pid), "--all", "--", *command],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
        assert not ok or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def file(self, path: str) -> Path:
        """A file of it, as it sees it now: also on its /run."""
        assert self._init
        return Path(f"/proc/{self._init.pid}/root{path}")

    def processes(self, words: str) -> list[psutil.Process]:
        """Its processes whose command line holds `words`."""
        assert self._init
        found = []
        for process in self._init.children(recursive=True):
            try:
                if words in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def unit(self, name: str, *properties: str) -> dict[str, str]:
        """What `systemctl show` says of a unit."""
        asked = [f"--property={','.join(properties)}"] if properties else []
        lines = self.run("systemctl", "show", *asked, "--", name).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def main_pid(self, name: str) -> int:
        """The process id, in the guest, of a unit's main process; 0: none."""
        return int(self.unit(name, "MainPID")["MainPID"])

    def journal(self, unit: str = "holdfast-*", *, lines: int | str = 60) -> str:
        """The end of this boot's log of a unit."""
        words = ["journalctl", "--boot", "--no-pager", "-o", "cat", "-u", unit, "-n", str(lines)]
        return self.run(*words, ok=False).stdout

    def said(self, unit: str) -> list[dict[str, Any]]:
        """What one of the agent's units has logged since this boot."""
        lines = self.journal(unit, lines="all").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    # The agent in it.

    @property
    def layout(self) -> Layout:
        """Where the agent's files are, seen from outside."""
        folders = self.file("/var/lib/holdfast"), self.file("/run/holdfast")
        return Layout(*folders, self.file("/etc/holdfast/root.json"))

    def status(self) -> dict[str, Any]:
        """The status document, asked without a process in between."""
        return client.status(self.layout)

    def history(self) -> list[dict[str, Any]]:
        """The ended attempts, oldest first."""
        try:
            lines = self.layout.history.read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line]

    def wait_for(
        self, wanted: Callable[[dict[str, Any]], Any], *, seconds: float = PATIENCE_S
    ) -> dict[str, Any]:
        """The first status that is `wanted`; fails with the log after `seconds`."""
        status = self.status()
        deadline = time.monotonic() + seconds
        while not wanted(status):
            if time.monotonic() > deadline:
                raise AssertionError(f"not in {seconds} s: {json.dumps(status)}\n{self.journal()}")
            time.sleep(0.1)
            status = self.status()
        return status

    def wait_until(
        self,
        is_so: Callable[[], Any],
        fact: str,
        *,
        seconds: float = PATIENCE_S,
        every_s: float = 0.1,
    ) -> None:
        """Wait for `is_so`; fails with the log after `seconds`."""
        deadline = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > deadline:
                told = f"{self.journal()}\n{self._console()}" if self.is_on else self._console()
                raise AssertionError(f"not in {seconds} s: {fact}\n{told}")
            time.sleep(every_s)


def _own_group(parent: Path | None, name: str) -> Path | None:
    """A control group for one guest: two in the same one would share their units' groups."""
    if parent is None:
        return None
    group = parent / name
    group.mkdir(exist_ok=True)
    return group

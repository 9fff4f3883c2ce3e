"""An endpoint for tests: real agentd and agentctl processes on a folder of their own.

    endpoint = Endpoint(tmp_path / "endpoint", url=vendor.url, root=vendor.root)
    with endpoint.running():
        endpoint.wait_for(lambda status: status["release"] == "r171")
        endpoint.ctl("update")

Watch windows are short by default; `extra` is TOML appended to the configuration.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agent.layout import Layout

ROOT = Path(__file__).parents[2]
HEALTH = {"warmup_s": 0.2, "window_s": 1.0, "probation_s": 0.5, "baseline_s": 0.0}


class Endpoint:
    """One machine's agent. `layout` spells out its paths."""

    def __init__(
        self,
        folder: Path,
        *,
        url: str,
        root: bytes,
        extra: str = "",
        health: dict[str, float] | None = None,
        at_start: bool = True,
        python: tuple[str, ...] = (sys.executable,),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.config = folder / "config.toml"
        self.layout = Layout(folder / "state", folder / "run", folder / "root.json")
        self.log = folder / "agentd.log"
        self.environment: dict[str, str] = {}
        self.arguments: tuple[str, ...] = ()  # of agentd, besides --config
        self.process: subprocess.Popen[bytes] | None = None
        self._python = python
        (folder / "root.json").write_bytes(root)
        self.configure(url, extra=extra, health=health, at_start=at_start)

    def configure(
        self,
        url: str,
        *,
        extra: str = "",
        health: dict[str, float] | None = None,
        at_start: bool = True,
    ) -> None:
        """Write config.toml anew."""
        watched = "".join(f"{k} = {v}\n" for k, v in {**HEALTH, **(health or {})}.items())
        self.config.write_text(
            f'state_dir = "state"\nruntime_dir = "run"\ntrust_root = "root.json"\n'
            f'fetcher_user = ""\nhost_id = "test-host"\nlog_level = "debug"\n'
            f'sources = [{{ url = "{url}", proxy = "" }}]\n'
            f"[check]\ninterval_s = 3600\njitter_s = 0\nat_start = {str(at_start).lower()}\n"
            "[download]\nconnect_timeout_s = 2\nread_timeout_s = 3\nattempts = 2\n"
            "room_reserve_bytes = 0\n"
            f"[health]\n{watched}{extra}"
        )

    def _environment(self) -> dict[str, str]:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            **self.environment,
            "PYTHONPATH": os.pathsep.join(
                filter(None, [self.environment.get("PYTHONPATH", ""), *paths])
            ),
        }

    def start(self, *prefix: str) -> subprocess.Popen[bytes]:
        """Start agentd; its log is appended to `log`."""
        program = [*self._python, "-m", "agent.guardian", "--config", str(self.config)]
        command = [*prefix, *program, *self.arguments]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self._environment(), stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        return self.process

    def stop(self) -> int:
        """Stop agentd in order; its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def kill(self) -> None:
        """SIGKILL agentd and everything it started that doesn't end with it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    @contextlib.contextmanager
    def running(self, *prefix: str) -> Iterator[subprocess.Popen[bytes]]:
        """agentd, up and answering, stopped at the end."""
        process = self.start(*prefix)
        try:
            self.wait_for(lambda status: status["state"]["reason"] != "guardian_down")
            yield process
        finally:
            if process.poll() is None:
                self.stop()

    def ctl(self, *arguments: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run agentctl."""
        command = [sys.executable, "-m", "agent.ctl", *arguments, "--config", str(self.config)]
        return subprocess.run(
            command,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=check,
        )

    def status(self) -> dict[str, Any]:
        """The status document, asked without a process in between."""
        from agent.ctl import client

        return client.status(self.layout)

    def history(self) -> list[dict[str, Any]]:
        """The ended attempts, oldest first."""
        return lines_of(self.layout.history)

    def wait_for(
        self, wanted: Callable[[dict[str, Any]], bool], *, seconds: float = 30.0
    ) -> dict[str, Any]:
        """The first status that is `wanted`; fails with the log after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.status()
            if wanted(status):
                return status
            if time.monotonic() > deadline:
                log = self.log.read_text()[-4000:] if self.log.exists() else ""
                raise AssertionError(f"not reached in {seconds} s: {json.dumps(status)}\n{log}")
            time.sleep(0.05)

    def wait_for_release(self, release: str, *, seconds: float = 30.0) -> dict[str, Any]:
        """The status once `release` runs and is committed."""
        return self.wait_for(
            lambda status: (
                status["release"] == release
                and status["trial"] is None
                and status["state"]["name"] in {"committed", "idle", "reverted", "failed"}
            ),
            seconds=seconds,
        )

    def slot_problems(self) -> list[str]:
        """What is wrong with the active slot on the disk; empty when it is whole."""
        from agent.slots import record, seal

        active = record.load(self.layout.boot_record).active
        if active is None:
            return ["no slot is active"]
        found, _ = seal.read(self.layout.slot(active))
        problems = [
            f"{item.path} {item.problem}" for item in seal.verify(self.layout.slot(active), found)
        ]
        if self.layout.current.resolve() != self.layout.slot(active).resolve():
            problems.append(f"current points at {self.layout.current.resolve()}")
        return problems


def lines_of(journal: Path) -> list[dict[str, Any]]:
    """The JSON lines of a journal; one that a power cut has torn is none, as for the agent."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in journal.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found

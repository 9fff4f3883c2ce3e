"""A Security Server for tests: a real `serverctl run` on a folder of its own.

server = Premises(tmp_path / "server", source=vendor.url, root=vendor.root)
with server.running():
    token = server.ctl("tokens", "create", "enrol", "--json")["token"]
    server.wait_for(lambda status: status["mirror"]["releases"] == ["r171"])
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

ROOT = Path(__file__).parents[2]


class Premises:
    """One server. `extra` is TOML appended to server.toml; tls as in its [tls] mode."""

    def __init__(
        self,
        folder: Path,
        *,
        source: str | None = None,
        root: bytes | None = None,
        database: str | None = None,
        tls: str = "own",
        extra: str = "",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.state = folder / "state"
        self.config = folder / "server.toml"
        self.log = folder / "serverd.log"
        self.process: subprocess.Popen[bytes] | None = None
        lines = ['state_dir = "state"', 'listen = "127.0.0.1:0"', 'log_level = "debug"']
        if database:
            lines.append(f'database = "{database}"')
        if root is not None:
            (folder / "root.json").write_bytes(root)
            lines.append('trust_root = "root.json"')
        if source:
            lines.append(f'sources = [{{ url = "{source}", proxy = "" }}]')
        self.config.write_text("\n".join(lines) + f'\n{extra}\n[tls]\nmode = "{tls}"\n')

    def _environment(self) -> dict[str, str]:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "server.ctl", "--config", str(self.config), *arguments]

    def start(self, *prefix: str) -> subprocess.Popen[bytes]:
        """Start it; its log is appended to `log`."""
        (self.state / "serverctl.json").unlink(missing_ok=True)  # of a start before
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*prefix, *self._command("run")],
                env=self._environment(),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        return self.process

    def stop(self) -> int:
        """Stop it in order; its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Up and answering, stopped at the end."""
        process = self.start()
        try:
            self.wait_for(lambda _: True)
            yield process
        finally:
            if process.poll() is None:
                self.stop()

    @property
    def access(self) -> dict[str, str]:
        """What serverctl goes by: url, token, authority."""
        found: dict[str, str] = json.loads((self.state / "serverctl.json").read_text())
        return found

    @property
    def url(self) -> str:
        """How agents reach it."""
        return self.access["url"]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run serverctl."""
        return subprocess.run(
            self._command(*arguments),
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def ctl(self, *arguments: str) -> Any:
        """Run serverctl with --json; what it says."""
        done = self.run(*arguments, "--json")
        assert done.stdout, f"{arguments}: {done.returncode}\n{done.stderr}\n{self.last_words()}"
        return json.loads(done.stdout)

    def token(self, role: str = "agent") -> str:
        """A new enrolment token."""
        text: str = self.ctl("tokens", "create", "enrol", "--for", role)["token"]
        return text

    def status(self) -> dict[str, Any]:
        """GET /status, without a process in between."""
        from server.ctl import access
        from server.ctl.client import Client

        with Client(access.local(self.state / "serverctl.json")) as client:
            told: dict[str, Any] = client.get("/status")
        return told

    def wait_for(
        self, wanted: Callable[[dict[str, Any]], bool], *, seconds: float = 30.0
    ) -> dict[str, Any]:
        """The first status that is `wanted`; fails with the log after `seconds`."""
        from server.errors import ServerError

        deadline = time.monotonic() + seconds
        told: dict[str, Any] = {}
        while True:
            with contextlib.suppress(ServerError):
                told = self.status()
                if wanted(told):
                    return told
            assert self.process is not None
            ended = self.process.poll()
            if ended is not None or time.monotonic() > deadline:
                raise AssertionError(
                    f"not reached in {seconds} s (ended: {ended}): {told}\n{self.last_words()}"
                )
            time.sleep(0.05)

    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text()[-4000:] if self.log.exists() else ""

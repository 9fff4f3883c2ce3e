"""The Security Server in the demo: its folder, its process, and what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from demo_screen import Screen
from demo_stage import Stage, StepError, free_port

from server.ctl import access
from server.ctl.client import AskError, Client
from server.errors import ServerError

START_PATIENCE_S = 20.0
PORT_TRIES = 5

Document = dict[str, Any]


class SecurityServer:
    """`serverctl run` in the demo's folder, mirroring the vendor's feed."""

    def __init__(self, stage: Stage, screen: Screen) -> None:
        self._stage = stage
        self._screen = screen
        self.folder = stage.folder / "server"
        self.config = self.folder / "server.toml"

    def start(self, *, feed_url: str, root: Path, command: list[str]) -> None:
        """Write its file and start it; another program may be quicker to take its port.

        Raises StepError.
        """
        self.folder.mkdir()
        for _ in range(PORT_TRIES):
            self._configure(feed_url, root, free_port())
            running = self._stage.start("serverctl", *command, folder=self.folder)
            try:
                self._stage.wait_until(
                    lambda: bool(self.status()),
                    what="the Security Server answers",
                    seconds=START_PATIENCE_S,
                )
            except StepError:
                if running.process.poll() is None:
                    raise
                self._stage.drop(running)
                continue
            self._screen.say(
                "\n".join(f"  {line}" for line in _said(running.log) if "set up" not in line)
            )
            return
        raise StepError(f"no port was left for the Security Server, in {PORT_TRIES} tries")

    def _configure(self, feed_url: str, root: Path, port: int) -> None:
        self.config.write_text(
            f'state_dir = "state"\nlisten = "127.0.0.1:{port}"\nlog_level = "warning"\n'
            f"trust_root = {json.dumps(str(root))}\n"
            f'[[sources]]\nurl = "{feed_url}"\nproxy = ""\n',
            encoding="utf-8",
        )

    def status(self) -> Document:
        """What `serverctl status --json` shows. Raises ValueError: it doesn't answer yet."""
        told: Document = self.ask("/status")
        return told

    def ask(self, path: str, **query: object) -> Any:
        """What its API answers. Raises ValueError: nothing yet."""
        try:
            with Client(access.local(self.folder / "state" / "serverctl.json")) as client:
                return client.get(path, **query)
        except (AskError, ServerError) as error:
            raise ValueError(str(error)) from error

    def enrolment_command(self, command: list[str]) -> str:
        """What `serverctl tokens create enrol` prints for the machine to be enrolled."""
        said = self._stage.output("serverctl tokens create enrol", *command).strip()
        if not said.startswith("agentctl enroll "):
            raise StepError(f"serverctl tokens create enrol says {said!r}")
        return said

    def wait_for_release(self, version: int) -> Document:
        """The status once it serves `version`."""
        found: list[Document] = []

        def is_served() -> bool:
            told = self.status()
            found.append(told)
            return told["mirror"]["releases"] == [str(version)]

        self._stage.wait_until(
            is_served, what=f"the Security Server serves {version}", seconds=START_PATIENCE_S
        )
        return found[-1]


def _said(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()

"""A guest with the package, an engine and a vendor: what an administrator has in the end."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from publisher.settings import HealthInput
from tests.support import agentprogram, pressing
from tests.support.guest import FEED, Guest
from tests.support.vendor import Content, Vendor

ENGINE = "scanner.service"
UNITS = ("holdfast-bootguard.service", "holdfast-agent.service", "holdfast-fetcher.service")

# As engines that look at every file are: started before ordinary services, so
# that one that hangs holds up the whole boot, the guardian included.
_UNIT = """\
[Unit]
Description=Scan engine
DefaultDependencies=no
Before=sysinit.target
StartLimitIntervalSec=0
[Service]
Type=notify
ExecStart=/usr/bin/python3 -I /opt/scanner/engine.py
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=1
TimeoutStartSec=infinity
TimeoutStopSec=5
[Install]
WantedBy=sysinit.target
"""
_CONFIG = f"""\
host_id = "guest"
log_level = "debug"
[check]
at_start = false
[download]
room_reserve_bytes = 0
{agentprogram.configured(answer_s=60)}
[[watch]]
name = "scanner"
unit = "{ENGINE}"
[[activation]]
name = "scanner-reload"
reload_unit = "{ENGINE}"
timeout_s = 60
"""
# Short, and easy to hurt: a loaded machine leaves an engine a part of a core, and makes
# a healthy second count a quarter.
HEALTH = {
    "warmup_s": 0.5,
    "window_s": 3.0,
    "probation_s": 1.0,
    "baseline_s": 1.0,
    "cpu_floor_share": 0.1,
}
RESTING = {"idle", "committed", "reverted", "failed"}
LONG_S = 3600.0  # a probation that doesn't end before the test


class Machine:
    """The guest, and what is done to it from outside."""

    def __init__(self, guest: Guest, vendor: Vendor, package: Path) -> None:
        self.guest = guest
        self.vendor = vendor
        self.package = package
        self._shipped = 0

    def make_ready(self) -> None:
        """Booted, installed, configured, protected, on a release, and at rest."""
        if not self.guest.has_feed:
            self.guest.cut()
        if not self.guest.is_on:
            self.guest.boot()
        if not self.guest.file("/opt/holdfast").exists():
            self.set_up()
        if self.guest.status()["trial"]:  # of a test that has failed
            self.guest.run("agentctl", "rollback")
        self.guest.wait_for(
            lambda seen: (
                seen.get("release")
                and seen["trial"] is None
                and seen["state"]["name"] in RESTING
                and seen["standing"]["word"] != "at_risk"
            )
        )

    def set_up(self) -> None:
        """What docs/install.md tells an administrator to do."""
        guest = self.guest
        self.ship()  # a first release has no prior one: no trial of it may be long
        self.add_engine()
        self.install(self.package)
        self.configure()
        guest.run("agentctl", "config", "validate")
        guest.run("systemctl", "enable", "--now", *UNITS[:2])
        guest.run("agentctl", "protect", ENGINE)
        guest.wait_for(lambda seen: (seen.get("fetcher") or {}).get("pid"))
        self.update()

    def add_engine(self) -> None:
        """The engine that is there before the agent is."""
        folder = self.guest.disk / "opt/scanner"
        folder.mkdir(exist_ok=True)
        for program in (Path(__file__).with_name("engine.py"), Path(pressing.__file__)):
            shutil.copyfile(program, folder / program.name)
        (self.guest.disk / "etc/systemd/system" / ENGINE).write_text(_UNIT)
        self.guest.run("systemctl", "daemon-reload")
        self.guest.run("systemctl", "enable", "--now", ENGINE)

    def install(self, package: Path) -> str:
        """Put a package in; returns what dpkg said."""
        shutil.copyfile(package, self.guest.disk / "var/tmp" / package.name)
        done = self.guest.run("dpkg", "--install", f"/var/tmp/{package.name}", seconds=300)
        return done.stdout + done.stderr

    def configure(self, source: str = f"file://{FEED}") -> None:
        """Settings and root of trust."""
        folder = self.guest.disk / "etc/holdfast"
        written = folder / "config.toml.new"
        written.write_text(f'{_CONFIG}[[sources]]\nurl = "{source}"\n')
        written.rename(folder / "config.toml")  # a fetcher that starts just now reads all of it
        (folder / "root.json").write_bytes(self.vendor.root)

    def ship(
        self,
        word: str = "good",
        *,
        health: Mapping[str, float] | None = None,
        **others: tuple[str, Content],
    ) -> str:
        """Offer a release whose pattern says `word`."""
        self._shipped += 1
        release = f"r{self._shipped}"
        components: dict[str, tuple[str, Content]] = {
            name.replace("_", "-"): given for name, given in others.items()
        }
        components["virus-pattern"] = str(self._shipped), f"{word} {release}\n".encode()
        self.vendor.ship(
            release,
            components,
            kinds={agentprogram.COMPONENT: "program"},
            only=True,
            health=HealthInput(**{**HEALTH, **(health or {})}),
        )
        return release

    def wait_for_units(self) -> None:
        """Until all three are up; the fetcher's follows the guardian's."""

        def all_are_up() -> bool:
            said = self.guest.run("systemctl", "is-active", *UNITS, ok=False).stdout
            return said.split() == ["active"] * len(UNITS)

        self.guest.wait_until(all_are_up, "all units are up")

    def update(self) -> None:
        """Ask for the check that finds it."""
        self.guest.run("agentctl", "update", "--no-wait")

    def try_out(self, word: str = "good", **health: float) -> str:
        """Ship a release and wait until it is on trial, and was seen healthy for a moment."""
        release = self.ship(word, health={"probation_s": LONG_S, **health})
        self.update()
        self.guest.wait_for(lambda seen: on_trial(seen) == release and seen["trial"]["healthy_s"])
        return release

    def wait_for_end(self, release: str, *, seconds: float = 120.0) -> dict[str, Any]:
        """How the attempt at a release ended: its entry in the history."""

        def ended() -> list[dict[str, Any]]:
            return [item for item in self.guest.history() if item["release"] == release]

        self.guest.wait_until(ended, f"the attempt at {release} has ended", seconds=seconds)
        return ended()[-1]

    def engine_log(self) -> list[str]:
        """What the engine has loaded in this boot, in order."""
        path = self.guest.file("/run/scanner.log")
        return path.read_text().splitlines() if path.exists() else []


def on_trial(status: dict[str, Any]) -> str | None:
    """The release that is on trial."""
    return status["trial"] and str(status["trial"]["release"])

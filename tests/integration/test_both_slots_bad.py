"""Two bad slots: the less bad one is held, nothing is tried again, agentctl repair helps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.endpoint import Endpoint
from tests.support.vendor import Vendor

ENGINE = b"engine" * 200
REFUSES = """
[[activation]]
name = "engine"
command = ["/bin/sh", "-c", 'test ! -e %s || test "$HOLDFAST_REASON" = revert']
"""


class Site:
    """A vendor, and a machine on whose engine a file named `sick` weighs."""

    def __init__(self, folder: Path) -> None:
        self.vendor = Vendor(folder / "vendor")
        self.sick = folder / "sick"
        self.endpoint = Endpoint(
            folder / "endpoint",
            url=self.vendor.url,
            root=self.vendor.root,
            extra=REFUSES % self.sick,
        )

    def ship(self, release: str, number: str) -> None:
        content = {"virus-pattern": (number, number.encode() * 50), "engine": ("1", ENGINE)}
        self.vendor.ship(release, content, kinds={"engine": "engine"})

    def with_settings(self, target: Path) -> None:
        """From its next start on, the machine has a place for the settings of its engine."""
        table = f'[[settings]]\ncomponent = "settings"\nfile = "{target}"\n'
        self.endpoint.configure(self.vendor.url, extra=REFUSES % self.sick + table)

    def ship_settings(self, release: str, number: str, values: str) -> None:
        content = {
            "virus-pattern": (number, number.encode() * 50),
            "engine": ("1", ENGINE),
            "settings": (number, values.encode()),
        }
        self.vendor.ship(release, content, kinds={"engine": "engine", "settings": "settings"})

    def damage(self, name: str = "virus-pattern") -> Path:
        """Alter a component of the active slot, as a bad disk would."""
        path = self.endpoint.layout.current.resolve() / name / f"{name}.dat"
        path.chmod(0o644)
        path.write_bytes(b"altered")
        return path

    def ended(self) -> list[tuple[str, str, str]]:
        return [
            (item["release"], item["outcome"], item.get("cause", "update"))
            for item in self.endpoint.history()
        ]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.ship("r171", "171")
    return made


def at_rest(status: dict) -> bool:  # type: ignore[type-arg]
    resting = status["state"]["name"] in {"idle", "committed", "reverted", "failed"}
    return resting and not status["verifying"]


def test_a_release_that_fails_is_kept_when_the_slot_to_go_back_to_has_altered_files(
    site: Site,
) -> None:
    endpoint = site.endpoint
    with endpoint.running():
        endpoint.wait_for_release("r171", seconds=60)
    site.damage()
    site.ship("r173", "173")  # its pattern differs, so it can't mend what is damaged
    site.sick.touch()
    with endpoint.running():
        endpoint.wait_for(lambda seen: seen["held"] and at_rest(seen), seconds=60)
        status = endpoint.status()
        assert (status["release"], status["held"]["reason"]) == ("r173", "activation_failed")
        assert site.ended()[-1] == ("r173", "held", "update")
        assert status["standing"]["code"] == 2
        assert "both slots are bad" in status["standing"]["sentence"]
        told = endpoint.ctl("explain").stdout
        assert "altered files in virus-pattern" in told
        assert "agentctl repair" in told
        before = len(site.ended())
        assert "r173" in endpoint.ctl("update").stdout  # nothing is tried on its own account
        assert len(site.ended()) == before
        # A repair that fails too leaves the machine where it is, and answering.
        assert endpoint.ctl("repair").returncode == 1
        assert endpoint.status()["held"]["reason"] == "activation_failed"
        assert endpoint.status()["release"] == "r173"
        site.sick.unlink()
        repaired = endpoint.ctl("repair")
        assert repaired.returncode == 0, repaired
        status = endpoint.wait_for(at_rest)
        assert (status["release"], status["held"]) == ("r171", None)  # what r173 superseded
        assert site.ended()[-1] == ("r171", "committed", "repair")
        assert endpoint.slot_problems() == []


def test_what_is_held_is_left_for_a_newer_release(site: Site) -> None:
    endpoint = site.endpoint
    with endpoint.running():
        endpoint.wait_for_release("r171", seconds=60)
    site.damage()
    site.ship("r173", "173")
    site.sick.touch()
    with endpoint.running():
        endpoint.wait_for(lambda seen: seen["held"] and at_rest(seen), seconds=60)
    with endpoint.running():  # it is remembered
        assert endpoint.wait_for(at_rest)["held"]["reason"] == "activation_failed"
        site.sick.unlink()
        site.ship("r175", "175")
        assert endpoint.ctl("update").returncode == 0
        status = endpoint.wait_for(at_rest)
        assert (status["release"], status["held"]) == ("r175", None)


def test_a_repair_that_fails_goes_back_to_a_slot_that_was_mended_before(site: Site) -> None:
    endpoint = site.endpoint
    with endpoint.running():
        endpoint.wait_for_release("r171", seconds=60)
    damaged = site.damage()
    site.sick.touch()
    with endpoint.running():
        endpoint.wait_for(
            lambda seen: ("r171", "reverted", "repair") in site.ended() and at_rest(seen),
            seconds=60,
        )
        assert damaged.read_bytes() == b"171" * 50
        status = endpoint.wait_for(lambda seen: at_rest(seen) and seen["held"] is None)
        assert (status["release"], status["active_slot"]) == ("r171", "a")
        assert endpoint.slot_problems() == []
        assert endpoint.ctl("update").stdout.startswith("idle: runs r171")


def test_repair_fetches_everything_whole_and_tries_it(site: Site) -> None:
    endpoint = site.endpoint
    with endpoint.running():
        endpoint.wait_for_release("r171", seconds=60)
        slot = endpoint.status()["active_slot"]
        repaired = endpoint.ctl("repair")
        assert repaired.returncode == 0, repaired
        last = endpoint.history()[-1]
        assert (last["outcome"], last["cause"], last["release"]) == ("committed", "repair", "r171")
        assert last["wire_bytes"] >= last["full_bytes"] > 0
        assert endpoint.status()["active_slot"] != slot


def test_a_repair_changes_neither_the_settings_nor_the_way_back_nor_the_quarantine(
    site: Site, tmp_path: Path
) -> None:
    endpoint, target = site.endpoint, tmp_path / "engine.conf"
    target.write_text("depth = 2\n")
    site.with_settings(target)
    with endpoint.running():
        endpoint.wait_for_release("r171", seconds=60)
        site.ship_settings("r173", "173", '{"depth": 9}')
        assert endpoint.ctl("update").returncode == 0
        site.sick.touch()
        assert endpoint.ctl("repair").returncode == 1
        assert site.ended()[-1] == ("r173", "reverted", "repair")
        assert target.read_text() == "depth = 9\n"  # r173 runs on
        site.sick.unlink()
        assert endpoint.ctl("repair").returncode == 0
        refused = endpoint.ctl("rollback")
        assert refused.returncode != 0
        assert "both slots hold r173" in refused.stderr
        status = endpoint.status()
        assert (status["release"], status["quarantine"]) == ("r173", [])
        assert target.read_text() == "depth = 9\n"
        assert endpoint.ctl("repair").returncode == 0


def test_a_slot_without_its_seal_is_repaired_with_the_other_gone(site: Site) -> None:
    endpoint = site.endpoint
    with endpoint.running():
        endpoint.wait_for_release("r171", seconds=60)
    site.vendor.feed.rename(site.vendor.folder / "away")
    (endpoint.layout.current.resolve() / "release.json").unlink()
    with endpoint.running():
        status = endpoint.wait_for(
            lambda seen: at_rest(seen) and seen["check"]["last_error"] is not None, seconds=60
        )
        assert status["standing"]["code"] == 2
        (site.vendor.folder / "away").rename(site.vendor.feed)
        assert endpoint.ctl("repair").returncode == 0
        status = endpoint.wait_for(at_rest)
        assert status["standing"]["code"] == 0
        assert endpoint.slot_problems() == []


def test_a_release_that_only_renames_a_file_is_installed(site: Site) -> None:
    endpoint = site.endpoint
    with endpoint.running():
        endpoint.wait_for_release("r171", seconds=60)
        content = {"virus-pattern": ("171", b"171" * 50), "engine": ("1", ENGINE)}
        site.vendor.ship(
            "r172",
            content,
            kinds={"engine": "engine"},
            filenames={"virus-pattern": "pattern.new"},
        )
        assert endpoint.ctl("update").returncode == 0
        assert endpoint.status()["release"] == "r172"
        assert (endpoint.layout.current / "virus-pattern" / "pattern.new").exists()
        assert site.ended()[-1] == ("r172", "committed", "update")
        assert endpoint.ctl("update").stdout.startswith("idle: runs r172")

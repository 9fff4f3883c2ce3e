"""The guardian in this process, with its real children: the road, and the ways off it."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import config, layout
from agent.channel import Due
from agent.errors import ControlError
from agent.guardian import recovery
from agent.guardian.control import Request
from agent.guardian.guardian import Guardian
from agent.guardian.ledger import Ledger
from agent.guardian.starter import Children
from agent.loop import Loop
from agent.slots import record as records
from agent.slots import seal as seals
from agent.slots.record import Phase
from tests.support.turns import until
from tests.support.vendor import Vendor

BASE = random.Random(171).randbytes(20_000)
PATTERN = "virus-pattern"
ROOT = Path(__file__).parents[2]


def edition(number: int) -> bytes:
    return BASE[:5000] + f"edition {number}".encode() + BASE[5000:]


class Running:
    """A guardian on a folder; `restart` is another one on the same folder."""

    def __init__(self, folder: Path, vendor: Vendor, extra: str = "") -> None:
        folder.mkdir(parents=True)
        self.path = folder / "config.toml"
        self.path.write_text(
            f'state_dir = "state"\nfetcher_user = ""\nhost_id = "h"\n'
            f'sources = [{{ url = "{vendor.url}", proxy = "" }}]\n'
            f"[check]\njitter_s = 0\nat_start = false\n"
            f"[download]\nattempts = 1\nroom_reserve_bytes = 0\n{extra}"
            "[health]\nwarmup_s = 0\nwindow_s = 1\nprobation_s = 0\nbaseline_s = 0\n"
        )
        (folder / "root.json").write_bytes(vendor.root)
        self.settings = config.load(self.path)
        self.places = layout.resolve(self.settings, self.path)
        self.begin()

    def begin(self, *, boot_id: str = "boot 1") -> None:
        self.loop = Loop()
        self.ledger = Ledger(self.settings, self.places, self.loop)
        self.ledger.boot_id = boot_id
        rebooted = recovery.count_boot(self.ledger)
        self.ledger.prepare()
        self.guardian = Guardian(self.ledger, self.path, starter=Children(self.ledger.loop, None))
        self.guardian.recover(rebooted=rebooted)
        self.guardian.start()

    def end(self) -> None:
        self.guardian.stop()
        self.loop.close()

    def restart(self, *, boot_id: str = "boot 1") -> None:
        self.end()
        self.begin(boot_id=boot_id)

    def ask(self, do: str, **options: Any) -> Any:
        handlers = self.guardian.acting_handlers()
        return handlers[do](Request(do=do, **options))

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(json.dumps(self.ask("status")))
        return found

    def until(self, is_so: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        until(self.loop, lambda: is_so(self.status), seconds=40)
        return self.status

    def rest(self) -> dict[str, Any]:
        """Nothing is in progress or verified any more."""
        return self.until(
            lambda status: (
                status["state"]["name"] in {"idle", "committed", "reverted", "failed"}
                and not status["verifying"]
                and not self.guardian.stager.busy
                and self.guardian.fetcher.pid
            )
        )

    def update(self) -> dict[str, Any]:
        self.rest()
        self.ask("update")
        return self.rest()


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Vendor:
    made = Vendor(tmp_path_factory.mktemp("vendors") / "vendor")
    made.ship("r1", {PATTERN: ("1", edition(1))})
    return made


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts guardians, each on a folder of its own, and ends them after the test."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the children's working directory is /
    started: list[Running] = []

    def begin(vendor: Vendor, extra: str = "") -> Running:
        started.append(Running(tmp_path / f"machine{len(started)}", vendor, extra))
        return started[-1]

    yield begin
    for item in started:
        item.end()


@pytest.fixture
def running(start: Start, vendor: Vendor) -> Running:
    return start(vendor)


@pytest.fixture
def own(tmp_path: Path) -> Vendor:
    """A vendor that ships more than one release."""
    made = Vendor(tmp_path / "vendor")
    made.ship("r1", {PATTERN: ("1", edition(1))})
    return made


def test_a_first_release_is_taken_and_kept(running: Running) -> None:
    status = running.update()
    assert (status["release"], status["state"]["name"]) == ("r1", "committed")
    assert running.places.current.resolve() == running.places.slot("a").resolve()
    assert running.ask("history", count=5)[-1]["outcome"] == "committed"
    assert running.ask("version")["version"]
    again = running.update()
    assert (again["state"]["name"], again["check"]["last"]["decision"]) == ("idle", "current")
    running.ask("check")
    assert running.rest()["check"]["last"]["fetch_bytes"] == 0


def test_what_cant_be_done_now_is_refused_with_the_reason(running: Running) -> None:
    running.rest()
    with pytest.raises(ControlError, match="holds no release to go back to"):
        running.ask("rollback")
    with pytest.raises(ControlError, match="nothing to verify"):
        running.ask("verify")
    with pytest.raises(ControlError, match="no quarantine entry 'x'"):
        running.ask("quarantine-clear", what="x")
    running.ask("update")
    for command in ("update", "check", "rollback"):
        with pytest.raises(ControlError, match="an attempt is in progress"):
            running.ask(command)
    running.rest()


def test_an_update_is_rolled_back_and_held_until_it_is_cleared(start: Start, own: Vendor) -> None:
    running = start(own)
    running.update()
    own.ship("r2", {PATTERN: ("2", edition(2))})
    assert running.update()["release"] == "r2"
    running.ask("rollback")
    status = running.rest()
    assert (status["release"], status["state"]["name"]) == ("r1", "reverted")
    assert status["slots"]["b"]["sealed"] is False
    held = running.update()
    assert held["check"]["last"]["decision"] == "quarantined"
    assert held["standing"]["code"] == 1
    assert running.ask("quarantine-clear")["cleared"] == 1
    assert running.update()["release"] == "r2"


def test_while_the_slots_are_verified_that_is_what_is_in_the_way(running: Running) -> None:
    running.update()
    running.ask("verify")
    for command in ("update", "rollback"):
        with pytest.raises(ControlError, match="installed files are being verified"):
            running.ask(command)
    running.rest()


def test_a_hook_that_fails_reverts_the_release(start: Start, tmp_path: Path, own: Vendor) -> None:
    hook = f'grep -q "edition 1" {tmp_path}/machine0/state/current/{PATTERN}/{PATTERN}.dat'
    extra = f"[[activation]]\nname = 'load'\ncommand = ['sh', '-c', '{hook}']\n"
    running = start(own, extra)
    assert running.update()["release"] == "r1"
    own.ship("r2", {PATTERN: ("2", edition(2))})
    status = running.update()
    assert (status["release"], status["state"]["reason"]) == ("r1", "activation_failed")
    (entry,) = status["quarantine"]
    assert entry["release"] == "r2"
    assert (running.places.evidence / entry["evidence"]).exists()


def test_a_trial_outlives_its_guardian_and_not_its_machine(start: Start, own: Vendor) -> None:
    running = start(own)
    running.update()
    own.ship("r2", {PATTERN: ("2", edition(2))})
    text = running.path.read_text().replace("probation_s = 0", "probation_s = 600")
    running.path.write_text(text)
    running.settings = config.load(running.path)
    running.restart()
    running.rest()
    running.ask("update")
    running.until(lambda status: status["trial"])
    running.restart()
    status = running.until(lambda status: status["trial"] and status["trial"]["gates"])
    assert status["state"]["name"] == "trial"
    running.restart(boot_id="boot 2")  # an orderly stop before it: that costs nothing
    assert running.status["trial"]
    running.end()
    record = records.load(running.places.boot_record)
    assert record.clean_stop
    unclean = records.BootRecord(
        **{name: getattr(record, name) for name in record.__struct_fields__} | {"clean_stop": False}
    )
    records.store(running.places.boot_record, unclean)
    running.begin(boot_id="boot 3")
    status = running.until(lambda status: status["state"]["name"] == "reverted")
    assert (status["release"], status["state"]["reason"]) == ("r1", "tries_used_up")


def test_a_trial_may_be_ended_by_hand(start: Start, own: Vendor) -> None:
    running = start(own)
    running.update()
    own.ship("r2", {PATTERN: ("2", edition(2))})
    text = running.path.read_text().replace("probation_s = 0", "probation_s = 600")
    running.path.write_text(text)
    running.settings = config.load(running.path)
    running.restart()
    running.rest()
    running.ask("update")
    running.until(lambda status: status["trial"])
    assert running.ask("rollback") == {"release": "r1"}
    assert running.rest()["release"] == "r1"


def test_a_torn_record_is_rebuilt_from_the_sealed_slots(running: Running) -> None:
    running.update()
    running.end()
    running.places.boot_record.write_text("torn")
    running.begin()
    assert running.status["release"] == "r1"
    assert running.places.boot_record.with_name("boot.json.unreadable").exists()
    running.rest()
    running.end()
    running.places.boot_record.unlink()
    running.begin()
    assert running.rest()["release"] == "r1"
    assert running.ledger.record.phase is Phase.COMMITTED


def test_damage_that_no_slot_can_mend_is_mended_from_the_feed(running: Running) -> None:
    running.update()
    file = running.places.slot("a") / PATTERN / f"{PATTERN}.dat"
    file.chmod(0o644)
    file.write_bytes(b"altered")
    running.ask("verify")
    status = running.until(
        lambda status: status["release"] == "r1" and status["active_slot"] == "b"
    )
    running.rest()
    assert status["standing"]["code"] in {0, 1, 2}
    seal, _ = seals.read(running.places.slot("b"))
    assert seals.verify(running.places.slot("b"), seal) == []


def test_a_fetcher_that_dies_in_the_middle_fails_the_attempt_only(
    start: Start, vendor: Vendor
) -> None:
    running = start(vendor)
    running.rest()
    running.ask("update")
    pid = running.guardian.fetcher.pid
    assert pid is not None
    os.kill(pid, 9)
    status = running.until(lambda status: status["state"]["name"] == "failed")
    assert status["check"]["last_error"]["code"] == "fetcher_lost"
    running.rest()
    assert running.update()["release"] == "r1"


def test_a_check_that_comes_at_a_bad_time_is_remembered(running: Running) -> None:
    running.rest()
    running.ask("check")
    running.guardian._hear(Due(trigger="schedule"))
    status = running.until(lambda status: status["release"] == "r1" and not status["trial"])
    assert status["release"] == "r1"
    running.rest()

"""The agent as a service: it comes up, updates, goes back, and comes back from kills."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import agentprogram
from tests.support.guest import FEED
from tests.system.systemd.machine import ENGINE, UNITS, Machine, on_trial

AGENT, FETCHER = UNITS[1:]


def test_after_installation_all_units_are_up_and_an_update_is_taken(machine: Machine) -> None:
    guest = machine.guest
    machine.wait_for_units()
    release = machine.ship("good")
    done = guest.run("agentctl", "update", seconds=180)
    assert "kept" in done.stdout or "committed" in done.stdout, done.stdout
    status = json.loads(guest.run("agentctl", "status", "--json").stdout)
    assert (status["release"], status["standing"]["word"]) == (release, "current")
    assert machine.engine_log()[-1] == f"reload good {release}"
    assert guest.run("systemctl", "--failed", "--quiet", "--plain", "list-units").stdout == ""


def test_a_release_with_which_the_engine_burns_a_core_is_reverted_by_itself(
    machine: Machine,
) -> None:
    before = machine.guest.status()["release"]
    bad = machine.ship("burn", health={"probation_s": 600})
    machine.update()
    end = machine.wait_for_end(bad)
    assert (end["outcome"], end["reason"]) == ("reverted", "cpu_pinned")
    assert machine.guest.status()["release"] == before
    machine.guest.wait_until(
        lambda: machine.engine_log()[-1] == f"reload good {before}", "the engine is back"
    )


def test_a_release_with_which_the_engine_crashes_is_reverted_and_the_engine_runs_again(
    machine: Machine,
) -> None:
    before = machine.guest.status()["release"]
    bad = machine.ship("crash", health={"probation_s": 600})
    machine.update()
    end = machine.wait_for_end(bad)
    assert end["outcome"] == "reverted", end
    assert machine.guest.status()["release"] == before
    machine.guest.wait_until(
        lambda: machine.engine_log()[-1].endswith(f"good {before}"), "the engine is back"
    )
    assert machine.guest.unit(ENGINE)["ActiveState"] == "active"


@pytest.mark.parametrize("whom", ["main", "all"])
def test_a_trial_goes_on_after_the_guardian_is_killed(machine: Machine, whom: str) -> None:
    guest = machine.guest
    release = machine.try_out()
    killed = guest.main_pid(AGENT)
    began = time.monotonic()
    guest.run("systemctl", "kill", f"--kill-whom={whom}", "--signal=KILL", AGENT)
    guest.wait_until(lambda: guest.main_pid(AGENT) not in {0, killed}, "a guardian is back")
    assert time.monotonic() - began > 4, "its unit wants a pause of 5 s"
    guest.wait_for(lambda seen: on_trial(seen) == release and (seen["fetcher"] or {}).get("pid"))
    machine.wait_for_units()
    leave(machine, release)


def leave(machine: Machine, release: str) -> None:
    """End a trial that would last an hour."""
    machine.guest.run("agentctl", "rollback")
    machine.wait_for_end(release)


@pytest.mark.parametrize("whom", ["fetcher", "service"])
def test_a_fetcher_that_is_killed_comes_back_and_fetches(machine: Machine, whom: str) -> None:
    guest = machine.guest
    first = guest.wait_for(lambda seen: seen["fetcher"]["pid"])["fetcher"]["pid"]
    if whom == "fetcher":
        guest.run("kill", "-KILL", str(first))
    else:
        guest.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", FETCHER)
    guest.wait_for(lambda seen: seen["fetcher"]["pid"] not in {None, first})
    release = machine.ship("good")
    machine.update()
    assert machine.wait_for_end(release)["outcome"] == "committed"


def test_a_stager_that_is_killed_is_followed_by_another_and_the_update_is_taken(
    machine: Machine,
) -> None:
    guest = machine.guest
    release = machine.ship("good")
    machine.update()
    guest.wait_until(lambda: stager_killed(machine), "a stager was killed", every_s=0.01)
    assert machine.wait_for_end(release)["outcome"] == "committed"
    assert guest.status()["release"] == release
    assert "the stager ended without a result" in guest.journal(AGENT)
    assert guest.run("agentctl", "verify").returncode == 0


def stager_killed(machine: Machine) -> bool:
    """End the stager that builds the slot, if it is there."""
    found = machine.guest.processes("agent.stager")
    if not found or machine.guest.status()["state"]["name"] != "staging":
        return False
    for process in found:
        process.kill()
    return True


def test_the_fetcher_is_nobody_who_can_do_anything(machine: Machine) -> None:
    guest = machine.guest
    pid = guest.wait_for(lambda seen: seen["fetcher"]["pid"])["fetcher"]["pid"]
    lines = guest.file(f"/proc/{pid}/status").read_text().splitlines()
    said = dict(line.split(":\t", 1) for line in lines)
    assert int(said["CapEff"], 16) == int(said["CapBnd"], 16) == 0
    assert (said["NoNewPrivs"], said["Seccomp"]) == ("1", "2")
    assert guest.run("ps", "-o", "user=", "-p", str(pid)).stdout.strip() == "holdfast"
    group = guest.file(f"/proc/{pid}/cgroup").read_text().strip()
    assert group.endswith(FETCHER)


MIRROR = "http://feed.test:8371"


@pytest.fixture
def mirror(machine: Machine) -> Iterator[Machine]:
    """The machine with a web server for its source."""
    server = ["python3", "-m", "http.server", "8371", "--bind", "127.0.0.1", "--directory", FEED]
    (machine.guest.disk / "etc/hosts").write_text("127.0.0.1 localhost feed.test\n")
    machine.guest.run("systemd-run", "--quiet", "--unit=mirror", *server)
    machine.configure(MIRROR)
    machine.guest.run("systemctl", "restart", AGENT)
    yield machine
    machine.configure()
    machine.guest.run("systemctl", "stop", "mirror.service")
    machine.guest.run("systemctl", "restart", AGENT)


def test_the_fetchers_sandbox_lets_it_fetch_over_http(mirror: Machine) -> None:
    guest = mirror.guest
    guest.wait_for(lambda seen: (seen.get("fetcher") or {}).get("pid"))
    release = mirror.ship("good")
    mirror.update()
    assert mirror.wait_for_end(release)["outcome"] == "committed"
    assert guest.status()["check"]["last"]["source"] == MIRROR
    assert "GET /targets/releases/" in guest.journal("mirror.service")


def test_a_new_program_of_the_agent_is_asked_in_the_sandbox_and_kept(
    machine: Machine, tmp_path: Path
) -> None:
    guest = machine.guest
    tree = agentprogram.copy(tmp_path / "program", version="0.2.0")
    release = machine.ship(agent_program=("0.2.0", tree))
    machine.update()
    assert machine.wait_for_end(release)["outcome"] == "committed"
    status = guest.wait_for(lambda seen: seen["fetcher"]["version"] == "0.2.0")
    assert status["program"]["slot"] == status["active_slot"]
    (running,) = guest.processes("agent.fetcher --config")
    assert running.environ()["PYTHONPATH"].startswith("/var/lib/holdfast/slots/")
    assert guest.run("agentctl", "verify").returncode == 0
    bad = agentprogram.spoil(agentprogram.copy(tmp_path / "bad", version="0.3.0"), "blind")
    worse = machine.ship(agent_program=("0.3.0", bad), health={"probation_s": 600})
    machine.update()
    end = machine.wait_for_end(worse)
    assert (end["outcome"], end["reason"]) == ("reverted", "program_cut_off")
    guest.wait_for(lambda seen: seen["fetcher"]["version"] == "0.2.0")

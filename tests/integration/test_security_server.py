"""An agent and its Security Server: enrolled in one command, told, heard, and out of touch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from feed.messages import CHECK_IN_PATH, REPORTS_PATH
from tests.support.endpoint import ROOT, Endpoint
from tests.support.securityserver import SecurityServer
from tests.support.vendor import Vendor

NOWHERE = "http://127.0.0.1:9/feed"  # nobody listens on discard


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    made = Vendor(tmp_path / "vendor")
    made.ship("r171", {"pattern": ("171", b"one " * 500)})
    return made


@pytest.fixture(params=["https", "http"])
def server(vendor: Vendor, request: pytest.FixtureRequest) -> Iterator[SecurityServer]:
    with SecurityServer(vendor.feed, tls=request.param == "https") as made:
        yield made


@pytest.fixture
def plain(vendor: Vendor) -> Iterator[SecurityServer]:
    with SecurityServer(vendor.feed) as made:
        yield made


@pytest.fixture
def endpoint(tmp_path: Path, vendor: Vendor) -> Endpoint:
    """A machine whose one configured source is out of reach: what it gets is the server's."""
    return Endpoint(tmp_path / "m", url=NOWHERE, root=vendor.root, at_start=False)


def enrol(endpoint: Endpoint, server: SecurityServer, *more: str) -> dict[str, Any]:
    done = endpoint.ctl("enroll", server.url, server.token(), "--json", *more)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def connected(status: dict[str, Any]) -> bool:
    return bool(status["server"] and status["server"]["connected"])


def ship(vendor: Vendor, number: int) -> str:
    vendor.ship(f"r{number}", {"pattern": (str(number), f"{number} ".encode() * 500)})
    return f"r{number}"


def has_ended(process: psutil.Process) -> bool:
    """Whether it does nothing any more; who reaps it is another matter."""
    try:
        return process.status() in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
    except psutil.NoSuchProcess:
        return True


def link_of(endpoint: Endpoint) -> psutil.Process:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        pid = endpoint.status()["fetcher"]["pid"]
        with contextlib.suppress(psutil.Error):  # one that has just ended
            for child in psutil.Process(pid).children() if pid else ():
                if "agent.fetcher.link" in child.cmdline():
                    return child
        time.sleep(0.05)
    raise AssertionError("there is no link")


def test_enrolled_in_one_command_the_agent_follows_the_server(
    endpoint: Endpoint, server: SecurityServer, vendor: Vendor
) -> None:
    with endpoint.running():
        said = enrol(endpoint, server)
        assert ("http://" in said["warning"]) == server.url.startswith("http:")
        endpoint.wait_for_release("r171")
        status = endpoint.wait_for(connected)
        assert status["server"]["url"] == server.url
        assert status["check"]["last"]["source"] == f"{server.url}/feed"
        began = time.monotonic()
        ship(vendor, 173)
        newest = server.notify()
        endpoint.wait_for_release("r173")
        assert time.monotonic() - began < 60  # of the 300 to the next check-in
        server.wait_for(lambda: server.check_ins[-1].facts.active_release == "r173")
        server.wait_for(lambda: len(server.reports) == 2)
        assert server.agent.answered == newest
        facts = server.check_ins[-1].facts
        assert (facts.host_id, facts.components) == ("test-host", {"pattern": "173"})
        assert {(item.release, item.outcome) for item in server.reports.values()} == {
            ("r171", "committed"),
            ("r173", "committed"),
        }
        assert [item["trigger"] for item in endpoint.history()] == ["enrolled", "notification"]
        endpoint.wait_for(lambda status: status["server"]["reports_waiting"] == 0)
        text = endpoint.ctl("status").stdout
        assert f"{server.url}  connected since" in text
        assert "0 reports wait" in text


def test_what_is_kept_of_the_server_is_the_fetchers_alone(
    endpoint: Endpoint, plain: SecurityServer
) -> None:
    with endpoint.running():
        enrol(endpoint, plain)
        endpoint.wait_for(connected)
    places = endpoint.layout
    assert stat.S_IMODE(places.server.stat().st_mode) == 0o700
    assert stat.S_IMODE(places.credential.stat().st_mode) == 0o600
    secrets = [*plain.tokens, plain.agent.credential]
    for path in [endpoint.log, *places.state.rglob("*")]:
        if path.is_file() and path != places.credential:
            text = path.read_bytes()
            assert not [item for item in secrets if item.encode() in text], path


def test_a_token_from_a_file_or_standard_input_is_on_no_command_line(
    endpoint: Endpoint, plain: SecurityServer, tmp_path: Path
) -> None:
    kept = tmp_path / "token"
    kept.write_text(f"{plain.token()}\n")
    with endpoint.running():
        from_file = endpoint.ctl("enroll", plain.url, "--token-file", str(kept))
        assert from_file.returncode == 0, from_file.stderr
        assert from_file.stdout.startswith(f"enrolled with {plain.url} as ")
        command = [sys.executable, "-m", "agent.ctl", "enroll", plain.url, "--token-file", "-"]
        piped = subprocess.run(
            [*command, "--config", str(endpoint.config)],
            check=False,
            input=f"{plain.token()}\n",
            env=endpoint._environment(),
            text=True,
            capture_output=True,
            timeout=60,
        )
        assert piped.returncode == 0, piped.stderr
        assert len(plain.agents) == 2
        assert endpoint.ctl("enroll", "--forget", plain.url).returncode == 2
        assert endpoint.ctl("enroll").returncode == 2


def test_a_wrong_pin_sends_the_token_nowhere(endpoint: Endpoint, vendor: Vendor) -> None:
    with SecurityServer(vendor.feed, tls=True) as server, endpoint.running():
        token = server.token(pin=hashlib.sha256(b"another authority").hexdigest())
        done = endpoint.ctl("enroll", server.url, token)
        assert done.returncode == 1
        assert "isn't the one that the token names" in done.stderr
        assert not [bearer for _, _, bearer in server.requests if bearer]
        assert endpoint.status()["server"] is None
        assert not endpoint.layout.enrolment.exists()


def test_without_a_pin_an_unknown_authority_is_refused(endpoint: Endpoint, vendor: Vendor) -> None:
    with SecurityServer(vendor.feed, tls=True) as server, endpoint.running():
        done = endpoint.ctl("enroll", server.url, server.token()[: -len(server.pin) - 1])
        assert done.returncode == 1
        assert "certificate is refused" in done.stderr
        assert server.requests == []


@pytest.mark.parametrize("how", ["unknown", "malformed", "away"])
def test_a_refused_enrolment_leaves_the_one_before(
    endpoint: Endpoint, plain: SecurityServer, how: str
) -> None:
    with endpoint.running():
        enrol(endpoint, plain)
        endpoint.wait_for(connected)
        before = endpoint.layout.credential.read_bytes()
        token, url = plain.token(), plain.url
        if how == "unknown":
            plain.tokens.clear()
        elif how == "malformed":
            token = "hfenr_nonsense"
        else:
            url = "http://127.0.0.1:9"
        done = endpoint.ctl("enroll", url, token)
        assert done.returncode == 1
        assert token not in done.stderr
        assert endpoint.layout.credential.read_bytes() == before
        endpoint.wait_for(connected)
        assert endpoint.status()["server"]["url"] == plain.url


def test_leaving_the_server_returns_to_the_configured_sources(
    endpoint: Endpoint, plain: SecurityServer, vendor: Vendor
) -> None:
    endpoint.configure(vendor.url, at_start=False)
    with endpoint.running():
        enrol(endpoint, plain)
        endpoint.wait_for_release("r171")
        assert endpoint.ctl("enroll", "--forget").returncode == 0
        endpoint.wait_for(lambda status: status["server"] is None)
        assert not endpoint.layout.credential.exists()
        ship(vendor, 173)
        assert endpoint.ctl("update").returncode == 0
        assert endpoint.status()["check"]["last"]["source"] == vendor.url
        assert endpoint.ctl("enroll", "--forget").returncode == 1
        assert endpoint.ctl("enroll", "--rotate").returncode == 1


def test_without_the_server_updates_and_reports_go_on(
    endpoint: Endpoint, plain: SecurityServer, vendor: Vendor
) -> None:
    """The server is away, the agent is killed meanwhile, nothing is lost or told twice."""
    endpoint.configure(vendor.url, at_start=False)
    with endpoint.running():
        enrol(endpoint, plain)
        endpoint.wait_for_release("r171")
        plain.wait_for(lambda: plain.reports)
        plain.stop()
        endpoint.wait_for(lambda status: not connected(status))
        ship(vendor, 173)
        assert endpoint.ctl("update").returncode == 0
        endpoint.wait_for(lambda status: status["server"]["reports_waiting"] == 1)
        endpoint.kill()
    with endpoint.running():  # with the server gone at the start
        status = endpoint.wait_for(lambda status: status["server"] and status["server"]["problem"])
        assert status["server"]["reports_waiting"] == 1
        assert status["server"]["code"] == "server_unreachable"
        assert status["standing"]["word"] == "current"
        ship(vendor, 175)
        assert endpoint.ctl("update").returncode == 0
        plain.start()
        plain.wait_for(lambda: len(plain.reports) == 3, seconds=60)
        told = [item.attempt for batch in plain.batches for item in batch.reports]
        assert len(told) == len(set(told)) == 3
        endpoint.wait_for(connected, seconds=60)
        plain.wait_for(lambda: plain.check_ins[-1].facts.active_release == "r175")
    assert not list(endpoint.layout.spool.glob("*.json"))


def test_a_notification_missed_while_away_is_heard_on_return(
    endpoint: Endpoint, plain: SecurityServer, vendor: Vendor
) -> None:
    with endpoint.running():
        enrol(endpoint, plain)
        endpoint.wait_for_release("r171")
        endpoint.wait_for(connected)
        plain.stop()
        ship(vendor, 173)
        newest = plain.notify()
        endpoint.wait_for(lambda status: not connected(status))
        plain.start()
        endpoint.wait_for_release("r173", seconds=60)
        plain.wait_for(lambda: plain.agent.answered == newest)


def test_a_revoked_credential_is_told_once_and_updates_go_on(
    endpoint: Endpoint, plain: SecurityServer, vendor: Vendor
) -> None:
    endpoint.configure(vendor.url, at_start=False)
    with endpoint.running():
        enrol(endpoint, plain)
        endpoint.wait_for_release("r171")
        endpoint.wait_for(connected)
        with plain.changed:
            plain.agent.revoked = True
            plain.changed.notify_all()
        status = endpoint.wait_for(
            lambda status: status["server"]["code"] == "token_refused", seconds=60
        )
        assert "this credential isn't taken" in status["server"]["problem"]
        assert "[token_refused]" in endpoint.ctl("explain").stdout
        ship(vendor, 173)
        assert endpoint.ctl("update").returncode == 0
        enrol(endpoint, plain)
        endpoint.wait_for(connected)
        plain.wait_for(lambda: {item.release for item in plain.reports.values()} >= {"r173"})
    fails = [line for line in endpoint.log.read_text().splitlines() if '"server_fails"' in line]
    assert len(fails) == 1


def test_the_link_and_the_fetcher_may_be_killed_at_any_time(
    endpoint: Endpoint, plain: SecurityServer, vendor: Vendor
) -> None:
    with endpoint.running():
        enrol(endpoint, plain)
        endpoint.wait_for_release("r171")
        endpoint.wait_for(connected)
        first = link_of(endpoint)
        os.kill(first.pid, signal.SIGKILL)
        endpoint.wait_for(lambda status: link_of(endpoint).pid != first.pid)
        endpoint.wait_for(connected)
        fetcher = endpoint.status()["fetcher"]["pid"]
        orphan = link_of(endpoint)
        os.kill(fetcher, signal.SIGKILL)
        endpoint.wait_for(lambda _: has_ended(orphan))
        endpoint.wait_for(
            lambda status: status["fetcher"]["pid"] not in {None, fetcher} and connected(status)
        )
        ship(vendor, 173)
        plain.notify()
        endpoint.wait_for_release("r173")
        plain.wait_for(lambda: len(plain.reports) == 2)


def test_a_new_credential_replaces_the_old_one_when_it_is_taken(
    endpoint: Endpoint, plain: SecurityServer
) -> None:
    with endpoint.running():
        enrol(endpoint, plain)
        endpoint.wait_for_release("r171")
        endpoint.wait_for(connected)
        plain.wait_for(lambda: plain.reports)
        first = plain.agent.credential
        done = endpoint.ctl("enroll", "--rotate")
        assert done.returncode == 0, done.stderr
        second = plain.agent.credential
        assert second != first
        endpoint.wait_for(connected)
        plain.rotate = True
        plain.notify()  # the server's own wish comes with the answer to a check-in
        plain.wait_for(lambda: plain.agent.credential not in {first, second})
    kept = json.loads(endpoint.layout.credential.read_bytes())
    assert (kept["next"] or kept["current"]) == plain.agent.credential


def test_a_report_that_the_server_cant_read_doesnt_hold_up_the_others(
    endpoint: Endpoint, plain: SecurityServer, vendor: Vendor
) -> None:
    endpoint.configure(vendor.url, at_start=False)
    with endpoint.running():
        enrol(endpoint, plain)
        endpoint.wait_for_release("r171")
        plain.wait_for(lambda: plain.reports)
        plain.answers[REPORTS_PATH] = (503, b"{}")
        for number in (173, 175):
            ship(vendor, number)
            assert endpoint.ctl("update").returncode == 0
        bad = endpoint.history()[-2]["attempt"]
        plain.refuse_reports.add(bad)
        del plain.answers[REPORTS_PATH]
        plain.wait_for(lambda: len(plain.reports) == 2, seconds=60)
        assert bad not in plain.reports
        ship(vendor, 177)
        assert endpoint.ctl("update").returncode == 0
        plain.wait_for(lambda: len(plain.reports) == 3)
        assert plain.batches[-1].dropped == {"committed": 1} or any(
            batch.dropped for batch in plain.batches
        )


def test_a_server_that_answers_nonsense_is_said_and_outlived(
    endpoint: Endpoint, plain: SecurityServer
) -> None:
    with endpoint.running():
        enrol(endpoint, plain)
        endpoint.wait_for_release("r171")
        plain.answers[CHECK_IN_PATH] = (200, b"<html>welcome</html>")
        plain.notify()
        endpoint.wait_for(lambda status: status["server"]["code"] == "server_not_understood")
        del plain.answers[CHECK_IN_PATH]
        endpoint.wait_for(lambda status: not status["server"]["problem"], seconds=60)


class Engine:
    """A protected process that can be made to crash and come back."""

    def __init__(self, pid_file: Path) -> None:
        self._pid_file = pid_file
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
        self._pid_file.write_text(str(self.process.pid))

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def test_a_reverted_update_is_reported_with_its_evidence(
    tmp_path: Path, plain: SecurityServer, vendor: Vendor
) -> None:
    engine = Engine(tmp_path / "engine.pid")
    endpoint = Endpoint(
        tmp_path / "m",
        url=NOWHERE,
        root=vendor.root,
        at_start=False,
        health={"probation_s": 3.0, "baseline_s": 1.0},
        extra=f'[[watch]]\nname = "engine"\npid_file = "{tmp_path / "engine.pid"}"\n',
    )
    try:
        with endpoint.running():
            enrol(endpoint, plain)
            endpoint.wait_for_release("r171", seconds=60)
            ship(vendor, 173)
            plain.notify()
            endpoint.wait_for(lambda status: status["state"]["name"] == "trial")
            deadline = time.monotonic() + 60
            while endpoint.status()["state"]["name"] == "trial":
                assert time.monotonic() < deadline
                engine.stop()
                engine.start()
                time.sleep(1.2)  # a sample sees each of them once
            endpoint.wait_for(lambda status: status["state"]["name"] == "reverted")
            plain.wait_for(lambda: "reverted" in {item.outcome for item in plain.reports.values()})
            (told,) = [item for item in plain.reports.values() if item.outcome == "reverted"]
            assert (told.release, told.from_release) == ("r173", "r171")
            assert told.reason == "crash_loop"
            assert json.loads(bytes(told.evidence))["reason"] == "crash_loop"
    finally:
        engine.stop()


def test_attempts_from_before_the_enrolment_arent_told(
    endpoint: Endpoint, plain: SecurityServer, vendor: Vendor
) -> None:
    endpoint.configure(vendor.url, at_start=True)
    with endpoint.running():
        endpoint.wait_for_release("r171")
        enrol(endpoint, plain)
        ship(vendor, 173)
        plain.notify()
        endpoint.wait_for_release("r173")
        plain.wait_for(lambda: plain.reports)
        assert [item.release for item in plain.reports.values()] == ["r173"]


@pytest.mark.alone
def test_guardian_fetcher_and_link_are_small(
    endpoint: Endpoint, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"):
        monkeypatch.delenv(name, raising=False)  # coverage would be part of what is seen
    with SecurityServer(vendor.feed, tls=True) as server, endpoint.running() as guardian:
        enrol(endpoint, server)
        endpoint.wait_for_release("r171")
        endpoint.wait_for(connected)
        server.wait_for(lambda: server.reports)
        status = endpoint.status()
        pids = {
            "guardian": guardian.pid,
            "fetcher": status["fetcher"]["pid"],
            "link": link_of(endpoint).pid,
        }
        found = {
            name: psutil.Process(pid).memory_full_info().pss >> 10 for name, pid in pids.items()
        }
        print(found)
        assert sum(found.values()) <= 60 << 10, found


def test_the_modules_of_the_link_are_few() -> None:
    """asyncio isn't among them: the link waits in two threads instead."""
    code = (
        "import sys, agent.fetcher.link, httpcore; "
        "print(sorted({'asyncio', 'rich', 'tuf', 'cryptography'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"

"""The Security Server as one process, between a real vendor and real agents."""

from __future__ import annotations

import datetime
import signal
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import tls
from tests.support.databases import postgresql
from tests.support.endpoint import Endpoint
from tests.support.premises import Premises
from tests.support.vendor import Vendor

V171 = b"".join(b"%d harmless\n" % number for number in range(20_000))
V173 = V171.replace(b"500 harmless", b"500 suspicious")
PATTERN = "virus-pattern"


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    made = Vendor(tmp_path / "vendor")
    made.ship("r171", {PATTERN: ("171", V171)})
    return made


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest, tmp_path: Path, vendor: Vendor) -> Iterator[Premises]:
    """A server that mirrors the vendor, on each kind of database."""
    folder = tmp_path / "server"
    if request.param == "sqlite":
        yield Premises(folder, source=vendor.url, root=vendor.root)
        return
    with postgresql(request.getfixturevalue("postgresql_cluster")) as url:
        yield Premises(folder, source=vendor.url, root=vendor.root, database=url)


@pytest.fixture
def server(tmp_path: Path, vendor: Vendor) -> Premises:
    return Premises(tmp_path / "server", source=vendor.url, root=vendor.root)


@pytest.fixture
def endpoint(tmp_path: Path, vendor: Vendor) -> Endpoint:
    """An agent without any source but its server."""
    return Endpoint(tmp_path / "endpoint", url="file:///nowhere", root=vendor.root, at_start=False)


def test_an_agent_enrolled_in_one_command_is_pushed_what_the_server_rebuilt(
    either: Premises, endpoint: Endpoint, vendor: Vendor
) -> None:
    with either.running(), endpoint.running():
        either.wait_for(lambda told: told["mirror"]["releases"] == ["r171"])
        endpoint.ctl("enroll", either.url, either.token(), check=True)
        endpoint.wait_for(lambda status: status["release"] == "r171")
        either.wait_for(lambda told: told["agents"]["connected"] == 1)
        vendor.ship("r173", {PATTERN: ("173", V173)})
        done = either.ctl("sync", "--wait")
        assert done["outcome"] == "switched"
        assert done["fetched_bytes"] < done["saved_bytes"]
        endpoint.wait_for(lambda status: status["release"] == "r173")
        either.wait_for(lambda _: len(either.ctl("reports")["reports"]) == 2)
        newest, oldest = either.ctl("reports")["reports"]
        assert (newest["release"], newest["outcome"], newest["trigger"]) == (
            "r173",
            "committed",
            "notification",
        )
        assert oldest["release"] == "r171"
        (row,) = either.ctl("agents")
        assert row["active_release"] == "r173"
        assert row["host_id"] == "test-host"
        told = either.wait_for(lambda told: told["rounds"]["answered"] == 1)
        assert told["problems"] == []
        assert either.stop() == 0


def test_a_server_that_was_killed_serves_and_tells_on(
    either: Premises, endpoint: Endpoint, vendor: Vendor
) -> None:
    with either.running(), endpoint.running():
        either.wait_for(lambda told: told["mirror"]["releases"] == ["r171"])
        port = either.url.rpartition(":")[2]
        text = either.config.read_text().replace('"127.0.0.1:0"', f'"127.0.0.1:{port}"')
        endpoint.ctl("enroll", either.url, either.token(), check=True)
        either.wait_for(
            lambda _: [row["active_release"] for row in either.ctl("agents")] == ["r171"]
        )
        either.kill()
        vendor.ship("r173", {PATTERN: ("173", V173)})
        either.config.write_text(text)
        with either.running():
            either.wait_for(lambda told: told["mirror"]["releases"] == ["r173"])
            (row,) = either.ctl("agents")
            assert row["active_release"] == "r171"
            endpoint.wait_for(lambda status: status["release"] == "r173", seconds=60)


def test_a_server_without_any_configuration_is_set_up_by_its_link(
    tmp_path: Path, vendor: Vendor
) -> None:
    server = Premises(tmp_path / "server")
    with server.running():
        (line,) = [line for line in server.log.read_text().splitlines() if "set up" in line]
        page, _, token = line.split()[2].partition("#")
        trust = ssl.create_default_context(cadata=server.access["authority"])
        with urllib.request.urlopen(page, context=trust, timeout=10) as answer:
            assert "script-src 'sha256-" in answer.headers["Content-Security-Policy"]
        body = {"token": token, "name": "Ada", "source": vendor.url}
        made = _post(server, "/setup", body | {"trust_root": vendor.root.decode()})
        server.wait_for(lambda told: told["mirror"]["releases"] == ["r171"])
        endpoint = Endpoint(
            tmp_path / "endpoint", url="file:///nowhere", root=vendor.root, at_start=False
        )
        with endpoint.running():
            endpoint.ctl("enroll", made["url"], made["enrol"], check=True)
            endpoint.wait_for(lambda status: status["release"] == "r171")
        again = server.run("setup-link")
        assert again.returncode == 1
        assert "there is an administrator" in again.stderr
        assert token not in server.log.read_text().replace(line, "")
        assert made["token"] not in server.log.read_text()
    with server.running():
        assert "set up" not in server.log.read_text().partition(line)[2]


def _post(server: Premises, path: str, body: dict[str, str]) -> dict[str, str]:
    from server.ctl import access
    from server.ctl.client import Client

    with Client(access.local(server.state / "serverctl.json")) as client:
        told: dict[str, str] = client.post(path, body)
    return told


def test_distribution_that_is_switched_off_waits_for_an_administrator(
    server: Premises, endpoint: Endpoint, vendor: Vendor
) -> None:
    with server.running(), endpoint.running():
        server.wait_for(lambda told: told["mirror"]["releases"] == ["r171"])
        endpoint.ctl("enroll", server.url, server.token(), check=True)
        endpoint.wait_for(lambda status: status["release"] == "r171")
        server.ctl("policy", "distribute_automatically=false")
        before = server.status()["rounds"]["newest"]
        vendor.ship("r173", {PATTERN: ("173", V173)})
        server.ctl("sync", "--wait")
        assert server.status()["rounds"]["newest"] == before
        server.ctl("notify")
        endpoint.wait_for(lambda status: status["release"] == "r173")


def test_servers_chain_and_the_last_agent_verifies_from_the_vendors_root(
    tmp_path: Path, server: Premises, endpoint: Endpoint, vendor: Vendor
) -> None:
    with server.running():
        server.wait_for(lambda told: told["mirror"]["releases"] == ["r171"])
        authority = tmp_path / "first-ca.pem"
        authority.write_text(server.access["authority"])
        source = f'[[sources]]\nurl = "{server.url}/feed"\nproxy = ""\nauthority = "{authority}"\n'
        second = Premises(tmp_path / "second", root=vendor.root, extra=source)
        with second.running(), endpoint.running():
            second.wait_for(lambda told: told["mirror"]["releases"] == ["r171"])
            endpoint.ctl("enroll", second.url, second.token(), check=True)
            endpoint.wait_for(lambda status: status["release"] == "r171")
            vendor.ship("r173", {PATTERN: ("173", V173)})
            server.ctl("sync", "--wait")
            assert second.ctl("sync", "--wait")["saved_bytes"] > 0
            endpoint.wait_for(lambda status: status["release"] == "r173")
            refused = second.run("upstream", "enrol", server.url, server.token())
            assert refused.returncode == 1
            assert "--for server makes the other kind" in refused.stderr
            joined = second.run("upstream", "enrol", server.url, server.token("server"))
            assert joined.returncode == 0, joined.stderr
            server.wait_for(lambda _: bool(server.ctl("upstream")["below"]))
            (below,) = server.ctl("upstream")["below"]
            assert below["counts"]["agents"] == 1
            assert below["name"].startswith("server-")
            assert "test-host" not in str(below["counts"])
            foreign = second.run("upstream", "enrol", server.url, second.token())
            assert foreign.returncode == 1
            assert "The token wasn't sent" in foreign.stderr


def test_an_origin_serves_the_publishers_folder_and_tells_of_each_change(
    tmp_path: Path, endpoint: Endpoint, vendor: Vendor
) -> None:
    origin = Premises(tmp_path / "origin", extra=f'origin = "{vendor.feed}"')
    with origin.running(), endpoint.running():
        assert origin.wait_for(lambda _: True)["mirror"]["releases"] == ["r171"]
        endpoint.ctl("enroll", origin.url, origin.token(), check=True)
        endpoint.wait_for(lambda status: status["release"] == "r171")
        vendor.ship("r173", {PATTERN: ("173", V173)})
        endpoint.wait_for(lambda status: status["release"] == "r173")
        refused = origin.run("sync")
        assert refused.returncode == 1
        assert "publisher publish changes it" in refused.stderr
        origin.wait_for(lambda _: len(origin.ctl("reports")["reports"]) == 2)


def test_it_ends_at_once_though_agents_listen(server: Premises, endpoint: Endpoint) -> None:
    with server.running() as process, endpoint.running():
        endpoint.ctl("enroll", server.url, server.token(), check=True)
        server.wait_for(lambda told: told["agents"]["connected"] == 1)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(20) == 0
        assert time.monotonic() - began < 10  # without the streams' end it would be for ever


def test_one_server_has_a_state_folder_and_one_a_port(server: Premises, tmp_path: Path) -> None:
    with server.running():
        second = Premises(tmp_path / "other")
        second.config.write_text(server.config.read_text().replace('"state"', f'"{server.state}"'))
        refused = second.run("run")
        assert refused.returncode == 1
        assert "another server's" in refused.stderr
        port = server.url.rpartition(":")[2]
        taken = second.run("run", "--listen", f"127.0.0.1:{port}")
        assert taken.returncode in {1, 78}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('listen = "nowhere"', "expected address:port"),
        ('[tls]\nmode = "given"', "needs certificate and key"),
        ('[tls]\nnames = ["a..b"]', "can't be a name in a certificate"),
        ("sync = 5", "unknown key"),
        ('trust_root = "."', "can't be read"),
        ('origin = "x"\nsources = [{ url = "file:///y" }]', "exclude each other"),
    ],
)
def test_a_configuration_that_cant_be_used_ends_it_for_good(
    tmp_path: Path, text: str, expected: str
) -> None:
    server = Premises(tmp_path)
    server.config.write_text(text)
    done = server.run("run")
    assert done.returncode == 78
    assert expected in done.stderr


def test_a_trust_root_that_is_lost_is_a_problem(server: Premises) -> None:
    with server.running():
        server.wait_for(lambda told: told["mirror"]["releases"] == ["r171"])
        assert server.status()["problems"] == []
        (server.folder / "root.json").unlink()
        assert server.status()["problems"] == [
            "no trust root is known: serverctl source --trust-root FILE"
        ]
        refused = server.run("sync", "--wait")
        assert refused.returncode == 1
        assert "no trust root" in refused.stderr


def test_serverctl_reaches_a_server_with_a_given_certificate(tmp_path: Path) -> None:
    server = Premises(tmp_path / "server", tls="given")
    given = tls.prepare(
        tmp_path / "given", ["files.example"], now=datetime.datetime.now(datetime.UTC)
    )
    with server.config.open("a") as file:
        file.write(f'certificate = "{given.certificate}"\nkey = "{given.key}"\n')
    with server.running():
        assert "PRIVATE" not in server.access["certificate"]
        assert server.run("status").returncode == 1  # no source yet


def test_serverctl_says_what_to_do_when_no_server_runs(tmp_path: Path, vendor: Vendor) -> None:
    server = Premises(tmp_path / "server", source=vendor.url, root=vendor.root)
    never = server.run("status")
    assert never.returncode == 4
    assert "serverctl run starts one" in never.stderr
    with server.running():
        pass
    ended = server.run("status")
    assert ended.returncode == 4
    assert "doesn't answer" in ended.stderr


def test_a_named_proxy_is_believed_about_its_clients(tmp_path: Path) -> None:
    server = Premises(tmp_path / "server", tls="off", extra='proxies = ["127.0.0.1"]')
    with server.running():
        asked = urllib.request.Request(
            f"{server.url}/api/v1/status", headers={"X-Forwarded-For": "192.0.2.77"}
        )
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(asked, timeout=10)
        server.wait_for(lambda _: '"client": "192.0.2.77"' in server.log.read_text())

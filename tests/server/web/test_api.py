"""The API on a real server and both databases: agents, administrators, and who may what."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from feed.messages import (
    AUTHORITY_PATH,
    CHECK_IN_PATH,
    COUNTS_PATH,
    CREDENTIAL_PATH,
    ENROL_PATH,
    NOTIFICATIONS_PATH,
    REPORTS_PATH,
)
from server.accounts import audit
from server.errors import StorageError
from server.fleet import reports as reporting
from server.settings import Limits
from server.storage.database import Database
from tests.support import webserver
from tests.support.webserver import WebServer, bearer, facts

API = "/api/v1"
REPORT = {
    "attempt": "a1",
    "outcome": "reverted",
    "release": "r173",
    "ended": 1000.0,
    "evidence": {"cpu": [1, 2]},
}


def problem(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of a refusal, which has its whole form."""
    told = answer.json()
    assert set(told) == {"code", "sentence", "request_id"}
    assert told["request_id"] == answer.headers["x-request-id"]
    assert told["sentence"]
    return answer.status_code, told["code"]


def test_an_agent_enrols_checks_in_and_reports(server: WebServer, admin: str) -> None:
    agent = server.enrol("host-1")
    assert server.check_in(agent, "host-1", heard_round=0).json()["look"] is False
    with server.client(agent["credential"]) as client:
        for _ in range(2):  # the answer to the first is lost
            told = client.post(REPORTS_PATH, json={"reports": [REPORT]})
            assert told.json() == {"taken": ["a1"]}
    with server.client(admin) as client:
        rows = client.get(f"{API}/reports").json()["reports"]
        assert [(row["name"], row["outcome"], row["has_evidence"]) for row in rows] == [
            ("host-1", "reverted", True)
        ]
        shown = client.get(f"{API}/reports/{rows[0]['id']}").json()
        assert shown["evidence"] == {"cpu": [1, 2]}
        detail = client.get(f"{API}/agents/{agent['agent_id']}").json()
        assert detail["agent"]["name"] == "host-1"
        assert len(detail["reports"]) == 1


def test_what_fails_here_is_answered_later_and_said_in_the_log(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = server.enrol("host-1")

    async def away(*_: object, **__: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(server.parts.check_ins, "take", away)
    with structlog.testing.capture_logs() as logged:
        answers = [server.check_in(agent, "host-1") for _ in range(3)]
    assert {problem(answer) for answer in answers} == {(503, "storage_unusable")}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
    (line,) = [one for one in logged if one["event"] == "check_in_failed"]
    assert line["reason"] == "the disk is full"


def test_one_agent_does_not_speak_for_another(server: WebServer) -> None:
    server.enrol("victim")
    agent = server.enrol("host-1")
    answer = server.check_in(agent, "victim")
    assert problem(answer) == (409, "other_machine")


def test_a_revoked_agent_is_refused_everywhere_from_then_on(server: WebServer, admin: str) -> None:
    agent = server.enrol("host-1")
    with server.client(admin) as client:
        assert client.delete(f"{API}/agents/{agent['agent_id']}").status_code == 204
    with server.client(agent["credential"]) as client:
        for method, path in (
            ("POST", CHECK_IN_PATH),
            ("POST", REPORTS_PATH),
            ("POST", CREDENTIAL_PATH),
            ("GET", NOTIFICATIONS_PATH),
        ):
            answer = client.request(method, path, json={"facts": facts(), "reports": []})
            assert problem(answer) == (401, "token_refused"), path
            assert answer.headers["www-authenticate"] == "Bearer"


def test_a_credential_changes_with_its_first_use_and_the_old_one_ends(server: WebServer) -> None:
    agent = server.enrol("host-1")
    with server.client(agent["credential"]) as client:
        new = client.post(CREDENTIAL_PATH).json()["credential"]
    assert server.check_in(agent, "host-1").status_code == 200
    assert server.check_in({"credential": new}, "host-1").status_code == 200
    assert server.check_in(agent, "host-1").status_code == 401


def test_an_administrator_has_an_agent_change_its_credential(server: WebServer, admin: str) -> None:
    agent = server.enrol("host-1")
    with server.client(admin) as client:
        asked = client.post(f"{API}/agents/{agent['agent_id']}/rotate")
        assert asked.status_code == 204
        assert client.post(f"{API}/agents/{'0' * 32}/rotate").status_code == 404
    assert server.check_in(agent, "host-1").json()["rotate"] is True
    with server.client(agent["credential"]) as client:
        new = {"credential": client.post(CREDENTIAL_PATH).json()["credential"]}
    assert server.check_in(new, "host-1").json()["rotate"] is False
    assert server.check_in(agent, "host-1").status_code == 401


def test_each_kind_of_token_is_good_for_its_own_kind_alone(
    server: WebServer, admin: str, database: Database
) -> None:
    agent = server.enrol("host-1")["credential"]
    enrol = webserver.enrolment_token(database)
    with server.client() as client:
        for token, path in (
            (agent, f"{API}/status"),
            (enrol, f"{API}/status"),
            (admin, NOTIFICATIONS_PATH),
            (agent, "/metrics"),
        ):
            answer = client.get(path, headers=bearer(token))
            assert problem(answer) == (403, "token_of_another_kind")
        made = client.post(ENROL_PATH, headers=bearer(admin), json={"facts": facts()})
        assert problem(made) == (403, "token_of_another_kind")
        for headers in ({}, {"Authorization": "Basic eDp5"}, {"Authorization": "Bearer"}):
            answer = client.get(f"{API}/status", headers=headers)
            assert problem(answer) == (401, "token_missing")


@pytest.mark.parametrize("bound", ["time", "uses"])
def test_an_enrolment_token_is_good_within_its_bounds(
    server: WebServer, admin: str, bound: str
) -> None:
    made = {"uses": 1} if bound == "uses" else {"expires_at": time.time() + 3600}
    with server.client(admin) as client:
        body = {"kind": "enrol", "name": "lab", **made}
        told = client.post(f"{API}/tokens", json=body).json()
        assert told["url"] == "https://server.example:8443"
    with server.client(told["token"]) as client:
        assert client.post(ENROL_PATH, json={"facts": facts("a")}).status_code == 200
        again = client.post(ENROL_PATH, json={"facts": facts("b")})
        assert again.status_code == (401 if bound == "uses" else 200)
    with server.client(admin) as client:
        assert client.delete(f"{API}/tokens/{told['id']}").status_code == 204
    with server.client(told["token"]) as client:
        assert client.post(ENROL_PATH, json={"facts": facts("c")}).status_code == 401


def test_set_up_works_once(database: Database, feed: Path) -> None:
    token = webserver.setup_token(database)
    with webserver.served(database, feed) as server, server.client() as client:
        wrong = client.post(f"{API}/setup", json={"token": "hfset_x", "name": "ada"})
        assert problem(wrong) == (401, "token_refused")
        body = {"token": token, "name": "ada", "source": "https://vendor.example/feed"}
        done = client.post(f"{API}/setup", json=body).json()
        status = client.get(f"{API}/status", headers=bearer(done["token"]))
        assert status.json()["mirror"]["source"] == "https://vendor.example/feed"
        enrolled = client.post(ENROL_PATH, headers=bearer(done["enrol"]), json={"facts": facts()})
        assert enrolled.status_code == 200
        assert client.post(f"{API}/setup", json=body).status_code == 401
        link = client.post(f"{API}/setup-link", headers=bearer(done["token"]))
        assert link.status_code == 409


def test_agents_are_listed_in_pages_moved_and_grouped(server: WebServer, admin: str) -> None:
    agents = [server.enrol(f"host-{number}") for number in range(5)]
    with server.client(admin) as client:
        assert client.post(f"{API}/groups", json={"name": "pilot"}).status_code == 201
        moved = client.patch(f"{API}/agents/{agents[0]['agent_id']}", json={"group": "pilot"})
        assert moved.json()["group"] == "pilot"
        assert problem(client.delete(f"{API}/groups/pilot"))[0] == 409
        groups = {
            row["name"]: row["agents"] for row in client.get(f"{API}/groups").json()["groups"]
        }
        assert groups == {"default": 4, "pilot": 1}
        names, after = [], None
        while True:
            query = {"limit": 2} | ({"after": after} if after else {})
            page = client.get(f"{API}/agents", params=query).json()
            names += [row["name"] for row in page["agents"]]
            after = page["next"]
            if after is None:
                break
        assert names == [f"host-{number}" for number in range(5)]
        pilot = client.get(f"{API}/agents", params={"group": "pilot"}).json()["agents"]
        assert [row["name"] for row in pilot] == ["host-0"]
        missing = client.get(f"{API}/agents/{'0' * 32}")
        assert problem(missing) == (404, "not_found")


def test_the_policy_changes_field_by_field_and_refuses_nonsense(
    server: WebServer, admin: str
) -> None:
    with server.client(admin) as client:
        told = client.patch(f"{API}/policy", json={"check_in_s": 60.0}).json()
        assert (told["check_in_s"], told["notify_times"]) == (60.0, 5)
        assert client.get(f"{API}/policy").json() == told
        for body in ({"check_in_s": 0}, {"nonsense": 1}, {"source": "ftp://x"}):
            assert problem(client.patch(f"{API}/policy", json=body)) == (400, "policy_invalid")
        who = [(row["who"], row["action"]) for row in client.get(f"{API}/audit").json()["entries"]]
        assert who == [("ada", "policy_changed")]
    agent = server.enrol()
    assert agent["check_in_s"] == 60.0


def test_a_sync_is_asked_for_and_refused_while_one_runs(server: WebServer, admin: str) -> None:
    mirror: Any = server.parts.mirror
    with server.client(admin) as client:
        answer = client.post(f"{API}/sync")
        assert (answer.status_code, answer.json()) == (202, {"asked": True})
        mirror.busy = True
        assert problem(client.post(f"{API}/sync")) == (409, "busy")
        assert client.get(f"{API}/status").json()["mirror"]["running"]["what"] == "r173"
        for path in ("retention", "source", "downstream", "rounds", "tokens"):
            assert client.get(f"{API}/{path}").status_code == 200
        assert client.post(f"{API}/scrub").json()["checked"] == 1


def test_counts_come_from_servers_alone(server: WebServer, admin: str) -> None:
    below = server.enrol("server-2", role="server")
    agent = server.enrol("host-1")
    body = {"serial": 1, "agents": 7, "silent": 1, "releases": {"r173": 7}}
    with server.client() as client:
        told = client.post(COUNTS_PATH, headers=bearer(below["credential"]), json=body)
        assert told.status_code == 200
        other = client.post(COUNTS_PATH, headers=bearer(agent["credential"]), json=body)
        assert problem(other) == (403, "not_a_server")
        listed = client.get(f"{API}/downstream", headers=bearer(admin)).json()["servers"]
        assert [(row["name"], row["counts"]["agents"]) for row in listed] == [("server-2", 7)]


def test_bodies_that_are_no_message_are_refused(server: WebServer, admin: str) -> None:
    agent = server.enrol("host-1")["credential"]
    with server.client(agent) as client:
        for body in (
            b"",
            b"{",
            b"null",
            b"[]",
            b"\xff\xfe",
            b'{"facts": {"host_id": ""}}',
            b'{"facts": 1e999}',
            b"[" * 100_000,
            b'{"facts": {"host_id": "a\\u0000b"}}',
        ):
            answer = client.post(CHECK_IN_PATH, content=body)
            assert problem(answer) == (400, "invalid"), body[:50]
    with server.client(admin) as client:
        answer = client.get(f"{API}/agents", params={"group": "a\0b"})
        assert answer.status_code == 400
        assert client.get(f"{API}/agents", params={"after": "é~"}).status_code == 400
        assert client.get(f"{API}/reports/{10**30}").status_code in {400, 404}


def test_health_needs_no_token_and_metrics_need_an_administrators(
    server: WebServer, admin: str, feed: Path
) -> None:
    server.enrol("host-1")
    with server.client() as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 200
        (feed / "metadata" / "timestamp.json").unlink()
        unready = client.get("/readyz")
        assert (unready.status_code, unready.json()["sentence"]) == (503, "no feed is served yet")
        assert client.get("/metrics").status_code == 401
        told = client.get("/metrics", headers=bearer(admin)).text
    assert 'holdfast_agents{state="unknown"} 1.0' in told
    assert 'route="/api/v1/enrol"' in told
    assert "holdfast_connections 1.0" in told


def test_a_servers_own_authority_is_told_without_a_token(database: Database, feed: Path) -> None:
    with webserver.served(database, feed, authority="PEM") as server, server.client() as client:
        assert client.get(AUTHORITY_PATH).json() == {"certificate": "PEM"}


def test_a_guesser_is_slowed_down_and_his_neighbours_are_not(
    database: Database, feed: Path
) -> None:
    limits = Limits(enrolments_per_s=0.01, agent_requests_burst=100)
    with webserver.served(database, feed, limits=limits) as server:
        agent = server.enrol("host-1")
        assert server.check_in(agent, "host-1").status_code == 200
        with server.client(f"hfadm_{'0' * 32}_{'x' * 43}") as guesser:
            statuses = [guesser.get(f"{API}/status").status_code for _ in range(30)]
            assert statuses[0] == 401
            assert statuses[-1] == 429
            assert int(guesser.get(f"{API}/status").headers["retry-after"]) > 1
        assert server.check_in(agent, "host-1").status_code == 200


def test_a_flood_of_one_agent_leaves_the_others_served(database: Database, feed: Path) -> None:
    limits = Limits(agent_requests_per_s=0.01, agent_requests_burst=5, enrolments_per_s=100.0)
    with webserver.served(database, feed, limits=limits) as server:
        loud, quiet = server.enrol("loud"), server.enrol("quiet")
        statuses = [server.check_in(loud, "loud").status_code for _ in range(12)]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) <= 8
        assert server.check_in(quiet, "quiet").status_code == 200


def test_a_request_id_is_kept_if_it_is_sane(server: WebServer) -> None:
    with server.client() as client:
        assert client.get("/healthz", headers={"X-Request-ID": "a-1"}).headers["x-request-id"] == (
            "a-1"
        )
        odd = client.get("/healthz", headers={"X-Request-ID": "a b"}).headers["x-request-id"]
        assert len(odd) == 16


def test_a_sources_password_is_neither_shown_nor_kept_in_the_audit(
    server: WebServer, admin: str
) -> None:
    secret = "https://user:pw@vendor.example/feed"
    with server.client(admin) as client:
        told = client.patch(f"{API}/policy", json={"source": secret})
        assert told.json()["source"] == "https://vendor.example/feed"
        shown = client.get(f"{API}/policy")
        audited = client.get(f"{API}/audit")
        assert "pw" not in told.text + shown.text + audited.text
        assert "vendor.example" in audited.text
        whole = shown.json() | {"check_in_s": 60.0}  # as it was told, with one change
        assert client.patch(f"{API}/policy", json=whole).json()["check_in_s"] == 60.0
    assert server.parts.policy().source == secret


def test_a_token_in_a_path_is_masked_in_the_log(server: WebServer, admin: str) -> None:
    with structlog.testing.capture_logs() as logged, server.client(admin) as client:
        client.delete(f"{API}/tokens/{admin}")
        client.get(f"{API}/x{admin}y")
    secret = admin.split("_", 2)[2]
    asked = [one["path"] for one in logged if one["event"] == "request"]
    assert len(asked) == 2
    assert all(admin[:38] in path for path in asked)
    assert secret not in str(logged)


def test_more_than_a_page_is_asked_for_page_by_page(
    server: WebServer, admin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "PAGE_MAX", 3)
    monkeypatch.setattr(audit, "PAGE_MAX", 3)
    agent = server.enrol("host-1")
    with server.client(agent["credential"]) as client:
        told = [REPORT | {"attempt": f"a{number}"} for number in range(7)]
        client.post(REPORTS_PATH, json={"reports": told})
    with server.client(admin) as client:
        for number in range(7):
            client.post(f"{API}/groups", json={"name": f"g{number}"})
        for path, rows, cursor in (("reports", "reports", "after"), ("audit", "entries", "before")):
            found, place = 0, {}
            while True:
                page = client.get(f"{API}/{path}", params={"limit": 1000, **place}).json()
                found += len(page[rows])
                if page["next"] is None:
                    break
                place = {cursor: page["next"]}
            assert found == 7

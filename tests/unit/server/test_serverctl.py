"""serverctl: what it prints, what it asks, what it makes of the answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from server.ctl import asking, show
from server.ctl.access import Access
from server.ctl.client import Client
from server.ctl.main import cli
from server.ctl.mirror import status_lines

HOSTILE = "\\[/x] [bold]\x1b[2J\x9b2J\x07\u202e\r\n"
Handler = Callable[[httpx.Request], httpx.Response]


def client(handler: Handler) -> Client:
    """Asks `handler` instead of a server."""
    made = Client(Access(url="http://server", token="hfadm"))
    made._http = httpx.Client(base_url="http://server", transport=httpx.MockTransport(handler))
    return made


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run serverctl against a handler."""

    def run(handler: Handler, *arguments: str) -> Result:
        monkeypatch.setattr(asking, "client_of", lambda _context: client(handler))
        return CliRunner().invoke(cli, list(arguments))

    return run


def answering(**answers: Any) -> Handler:
    """A server that answers each path with what is given for its last part."""

    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=answers[request.url.path.rpartition("/")[2]])

    return handle


AGENT = {
    "id": "1", "name": HOSTILE, "host_id": "h", "group": "all", "platform": "linux",
    "agent_version": "1", "region": "global", "active_release": None, "state": HOSTILE,
    "reason": HOSTILE, "seen_at": 1.0, "revoked_at": None, "silent": False,
}  # fmt: skip
DETAIL = {"agent": AGENT, "components": {HOSTILE: "1"}, "reports": []}


def is_harmless(text: str) -> bool:
    return all(char.isprintable() or char == "\n" for char in text)


def test_a_machines_name_neither_is_markup_nor_moves_the_cursor(
    ask: Callable[..., Result],
) -> None:
    listed = ask(answering(agents={"agents": [AGENT], "next": None}), "agents")
    assert listed.exit_code == 0, listed.output
    assert "\\[/x] [bold]\ufffd[2J" in listed.output
    shown = ask(answering(**{"1": DETAIL}), "agents", "show", "1")
    assert shown.exit_code == 0, shown.output
    assert is_harmless(listed.output + shown.output)


def test_json_is_escaped_and_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"name": HOSTILE, "far": "\U000e0001 å"}
    show.emit_json(value)
    text = capsys.readouterr().out
    assert is_harmless(text)
    assert json.loads(text) == value
    assert "å" in text


@pytest.mark.parametrize("body", [b"<html>", b'{"evidence": "\xff"}', b"[" * 100_000])
@pytest.mark.parametrize("status", [200, 502])
def test_what_is_no_json_is_an_error_in_words(
    ask: Callable[..., Result], body: bytes, status: int
) -> None:
    done = ask(lambda _: httpx.Response(status, content=body), "reports", "show", "1")
    assert done.exit_code == 1
    assert done.stderr.startswith("serverctl: http://server/api/v1/reports/1 answers ")


def test_a_refusals_words_are_cleaned(ask: Callable[..., Result]) -> None:
    words = {"code": "x", "sentence": HOSTILE, "request_id": "1"}
    done = ask(lambda _: httpx.Response(409, json=words), "sync")
    assert done.exit_code == 1
    assert is_harmless(done.stderr)


ID, SECRET = "0123456789abcdef" * 2, "s" * 43


@pytest.mark.parametrize("given", [ID, f"hfadm_{ID}_{SECRET}", f"hfenr_{ID}_{SECRET}_{'a' * 64}"])
def test_a_token_is_revoked_by_its_id_and_its_secret_is_in_no_address(
    ask: Callable[..., Result], given: str
) -> None:
    asked: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        return httpx.Response(204)

    done = ask(handle, "tokens", "revoke", given)
    assert done.output == f"{ID} is revoked\n"
    assert asked == [f"DELETE /api/v1/tokens/{ID}"]


@pytest.mark.parametrize("given", [f"hfadm_{ID}_{SECRET[1:]}", f"{ID}_{SECRET}", "../groups/g"])
def test_half_a_token_is_sent_nowhere(ask: Callable[..., Result], given: str) -> None:
    done = ask(lambda _: pytest.fail("asked"), "tokens", "revoke", given)
    assert done.exit_code == 2
    assert SECRET[1:] not in done.output


COMMANDS = {
    ("agents", "move", "1", "g"): AGENT,
    ("agents", "revoke", "1"): None,
    ("agents", "rotate", "1"): None,
    ("groups", "create", "g"): {"name": "g", "agents": 0},
    ("groups", "remove", "g"): None,
    ("reports", "show", "1"): {"id": 1, "evidence": {}},
    ("tokens", "revoke", ID): None,
    ("upstream", "enrol", "https://next", "hfenr"): {"url": "https://next", "agent_id": "1"},
    ("upstream", "leave"): None,
}


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_what_changes_something_says_so_in_json_too(
    ask: Callable[..., Result], arguments: tuple[str, ...]
) -> None:
    told = COMMANDS[arguments]

    def handle(_: httpx.Request) -> httpx.Response:
        return httpx.Response(204) if told is None else httpx.Response(200, json=told)

    plain = ask(handle, *arguments)
    assert plain.exit_code == 0, plain.output
    assert plain.output
    done = ask(handle, *arguments, "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    assert said if told is None else said == told


@pytest.mark.parametrize(
    ("command", "name", "cursor"),
    [("reports", "reports", "after"), ("audit", "entries", "before")],
)
def test_the_last_thousand_are_a_thousand(
    ask: Callable[..., Result], command: str, name: str, cursor: str
) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        query = request.url.params
        start = int(query.get(cursor, 5000)) - 1
        rows = [{"id": start - number} for number in range(min(int(query["limit"]), 500))]
        return httpx.Response(200, json={name: rows, "next": rows[-1]["id"]})

    done = ask(handle, command, "--last", "1000", "--json")
    assert [row["id"] for row in json.loads(done.output)[name]] == list(range(4999, 3999, -1))


def test_a_scrub_is_waited_for_as_long_as_it_takes(ask: Callable[..., Result]) -> None:
    limits: list[dict[str, float | None]] = []

    def handle(request: httpx.Request) -> httpx.Response:
        limits.append(request.extensions["timeout"])
        return httpx.Response(200, json={"sentence": "all good", "damaged": []})

    assert ask(handle, "scrub").output == "all good\n"
    assert limits[0]["read"] is None
    assert limits[0]["connect"] == 5.0


def test_the_status_names_the_code_of_a_sync_that_failed() -> None:
    told = {
        "problems": ["x"], "sentence": "x", "version": "1", "up_s": 1.0,
        "mirror": {
            "source": None, "releases": [], "running": None, "next_at": None,
            "fetched_bytes": 0, "saved_bytes": 0,
            "last": {"ended_at": 1.0, "outcome": "failed", "code": "trust_refused",
                     "sentence": "why"},
        },
        "agents": {"enrolled": 0, "connected": 0, "silent": 0, "states": {}},
        "rounds": {"newest": 0, "answered": 0},
    }  # fmt: skip
    (line,) = [line for line in status_lines(told) if line.startswith("last sync")]
    assert line.endswith("  failed: trust_refused")

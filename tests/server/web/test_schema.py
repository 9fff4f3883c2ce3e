"""The whole API against what its own description allows, and against what it doesn't.

schemathesis makes requests from the OpenAPI document; every one must be answered
as documented, never with 500, and in time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from server.settings import Limits
from server.storage.database import Database
from tests.support import webserver
from tests.support.webserver import WebServer, bearer

EACH_S = 5.0
EXAMPLES = 6
LIMITS = Limits(agent_requests_per_s=1e6, agent_requests_burst=1_000_000, enrolments_per_s=1e6)
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)


def test_every_request_is_answered_as_documented(database: Database, feed: Path) -> None:
    admin = webserver.administrator(database)
    with webserver.served(database, feed, limits=LIMITS) as server:
        tokens = {
            "administrator": admin,
            "agent": server.enrol(role="server")["credential"],
            "enrolment": webserver.enrolment_token(database),
        }
        with server.client() as client:
            schema = schemathesis.openapi.from_dict(client.get("/api/v1/openapi.json").json())
        schema.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
        with requests.Session() as session:
            _ask_everything(schema, server, session, tokens)


def _ask_everything(
    schema: Any, server: WebServer, session: requests.Session, tokens: dict[str, str]
) -> None:
    asked = sum(
        _ask(result.ok(), server, session, tokens) for result in schema.get_all_operations()
    )
    assert asked > 100


def _ask(operation: Any, server: WebServer, session: Any, tokens: dict[str, str]) -> int:
    """Make requests of one operation; how many."""
    headers, asked = _headers(operation, tokens), 0

    @given(case=operation.as_strategy())
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def play(case: Any) -> None:
        nonlocal asked
        asked += 1
        response = case.call(base_url=server.url, session=session, headers=headers, timeout=EACH_S)
        case.validate_response(response, checks=CHECKS)

    play()
    return asked


def _headers(operation: Any, tokens: dict[str, str]) -> dict[str, str]:
    asked = operation.definition.raw.get("security") or []
    return next((bearer(tokens[name]) for item in asked for name in item), {})


@pytest.mark.parametrize("path", ["/api/v1/openapi.json"])
def test_the_description_names_every_path_and_who_may_ask(
    lone_database: Database, feed: Path, path: str
) -> None:
    with webserver.served(lone_database, feed) as server, server.client() as client:
        told = client.get(path).json()
    assert set(told["components"]["securitySchemes"]) == {"administrator", "agent", "enrolment"}
    open_to_all = {
        route
        for route, item in told["paths"].items()
        for operation in item.values()
        if not operation.get("security")
    }
    assert open_to_all == {"/api/v1/authority", "/api/v1/setup", "/healthz", "/readyz"}

"""Whether the process is up, whether it can serve, and its numbers."""

from __future__ import annotations

from litestar import Response
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec
from litestar.params import SkipValidation
from sqlalchemy import text

from server.errors import ServerError
from server.web.files import FeedFiles
from server.web.metrics import CONTENT_TYPE, Metrics
from server.web.models import Health
from server.web.parts import Parts
from server.web.routes import CLOSED, AnyRequest, PartsGiven, open_get

FilesGiven = NamedDependency[SkipValidation[FeedFiles]]
MetricsGiven = NamedDependency[SkipValidation[Metrics]]

UNREADY = {503: ResponseSpec(Health, generate_examples=False, description="Not yet, or not now.")}


@open_get("/healthz", tags=["health"])
async def healthz() -> Health:
    """The process is up."""
    return Health(sentence="up")


@open_get("/readyz", tags=["health"], responses=UNREADY)
async def readyz(parts: PartsGiven, files: FilesGiven) -> Response[Health]:
    """The database answers, a feed is served, and agents are told."""
    sentence = await _unready(parts, files)
    return Response(Health(sentence=sentence or "ready"), status_code=503 if sentence else 200)


async def _unready(parts: Parts, files: FeedFiles) -> str:
    try:
        await parts.database.read(lambda session: session.execute(text("SELECT 1")).scalar())
    except ServerError as error:
        return f"the database doesn't answer: {error.code}"
    if not files.is_there:
        return "no feed is served yet"
    return "" if parts.hub.is_alive else "agents aren't told: the log says why"


@open_get(
    "/metrics",
    tags=["health"],
    security=[{"administrator": []}],
    responses={status: spec for status, spec in CLOSED.items() if status != 200},
    media_type="text/plain",
)
async def metrics(request: AnyRequest, parts: PartsGiven, metrics: MetricsGiven) -> Response[bytes]:
    """For Prometheus, with an administrator's token."""
    await parts.door.administrator(request.scope)  # type: ignore[arg-type]
    return Response(await metrics.text(), media_type=CONTENT_TYPE)


HANDLERS = (healthz, readyz, metrics)

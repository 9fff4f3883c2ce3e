"""A static server for trying a feed out: Range, ETag and 304, on loopback.

A published feed is plain files; for real use put nginx, an object store or a
CDN before the folder (docs/feed-format.md).
"""

from __future__ import annotations

from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles


def app(feed: Path) -> Starlette:
    """The ASGI application that serves `feed`."""
    return Starlette(routes=[Mount("/", StaticFiles(directory=feed), name="feed")])


def run(feed: Path, *, host: str, port: int) -> None:
    """Serve until interrupted. Ends the process with status 1 if the port is taken."""
    uvicorn.run(app(feed), host=host, port=port, log_level="warning", access_log=False)

"""What the commands that ask a server share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

from server import layout, settings
from server.ctl import access
from server.ctl.client import Client
from server.ctl.main import Context

PAGE = 200

P = ParamSpec("P")
T = TypeVar("T")

as_json = click.option("--json", "as_json", is_flag=True, help="The answer as JSON.")


def client_of(context: Context) -> Client:
    """Asks the server that the options name. Raises ConfigError."""
    if context.url and context.token_file:
        return Client(access.remote(context.url, context.token_file, context.authority))
    return Client(access.local(places_of(context).local_access))


def places_of(context: Context) -> layout.Layout:
    """The folder of this machine's server. Raises ConfigError."""
    path = context.config or layout.default_config()
    state_dir = context.state_dir
    if state_dir is not None:
        return layout.resolve(state_dir, None)
    return layout.resolve(settings.load(path).state_dir, path)


def asks(command: Callable[Concatenate[Client, P], T]) -> Callable[P, T]:
    """A command whose first argument is the client."""

    @functools.wraps(command)
    def with_client(*args: Any, **kwargs: Any) -> T:
        with client_of(click.get_current_context().obj) as client:
            return command(client, *args, **kwargs)

    return with_client


def pages(client: Client, path: str, name: str, **query: Any) -> list[dict[str, Any]]:
    """All pages of a list."""
    found: list[dict[str, Any]] = []
    after: str | None = None
    while True:
        told = client.get(path, **query, after=after, limit=PAGE)
        found += told[name]
        after = told["next"]
        if after is None:
            return found


def newest(
    client: Client, path: str, name: str, *, last: int, cursor: str = "after", **query: Any
) -> dict[str, Any]:
    """The first page of a list with `last` entries, put together from as many as that takes.

    cursor is what the list calls the parameter that `next` goes into.
    """
    found: list[dict[str, Any]] = []
    following: Any = None
    while True:
        given = query | {cursor: following, "limit": min(last - len(found), PAGE)}
        told = client.get(path, **given)
        found += told[name]
        following = told["next"]
        if following is None or len(found) >= last:
            return {name: found, "next": following}

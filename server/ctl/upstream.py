"""serverctl upstream: the next server, which gets counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from server.ctl import show
from server.ctl.asking import as_json, asks
from server.ctl.client import Client


@click.group("upstream", help="Send counts to the next server.", invoke_without_command=True)
@as_json
@click.pass_context
def upstream(context: click.Context, *, as_json: bool) -> None:
    """Without a command: which it is, and what servers below have told."""
    if context.invoked_subcommand is None:
        _show(as_json=as_json)


@asks
def _show(client: Client, *, as_json: bool) -> None:
    told = client.get("/upstream") | {"below": client.get("/downstream")["servers"]}
    if as_json:
        show.emit_json(told)
        return
    show.say(f"next server  {told['url'] or 'none: serverctl upstream enrol URL'}")
    show.table(
        ("server", "#agents", "#silent", "releases", "told"),
        (_row(row) for row in told["below"]),
        none="no server is enrolled here",
    )


def _row(row: dict[str, Any]) -> tuple[object, ...]:
    counts = row["counts"]
    releases = ", ".join(f"{name} {count}" for name, count in sorted(counts["releases"].items()))
    when = show.when(row["received_at"])
    return row["name"], counts["agents"], counts["silent"], releases, when


@upstream.command("enrol", help="Enrol with it; its administrator makes the token.")
@click.argument("url")
@click.argument("token", required=False)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Where the token is, instead of the command line; - for standard input.",
)
@as_json
@asks
def enrol(
    client: Client, *, url: str, token: str | None, token_file: Path | None, as_json: bool
) -> None:
    """Numbers are sent at once, and then each hour; no machine's name."""
    if token_file is not None:
        with click.open_file(str(token_file)) as file:
            token = file.read().strip()
    if not token:
        raise click.UsageError("a token is needed: serverctl tokens create enrol, on that server")
    told = client.put("/upstream", {"url": url, "token": token})
    show.done(told, f"enrolled with {told['url']} as {told['agent_id']}", as_json=as_json)


@upstream.command("leave", help="Send nothing more.")
@as_json
@asks
def leave(client: Client, *, as_json: bool) -> None:
    """The next server keeps what it was told last."""
    client.delete("/upstream")
    show.done({"url": None}, "no counts are sent any more", as_json=as_json)

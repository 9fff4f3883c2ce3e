"""serverctl tokens, policy, audit, setup-link: who may what, and what holds."""

from __future__ import annotations

import re
import time
from typing import Any

import click
import msgspec

from server.accounts import tokens as secrets
from server.ctl import show
from server.ctl.asking import as_json, asks, newest
from server.ctl.client import Client

UNITS_S = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


class Period(click.ParamType[float]):
    """`30m`, `12h`, `7d`, `2w`: seconds."""

    name = "period"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """A number and a unit."""
        found = re.fullmatch(r"([0-9]{1,5})([mhdw])", str(value))
        if found is None:
            self.fail(f"{value!r}: expected a number and m, h, d or w, such as 7d", param, ctx)
        return int(found[1]) * UNITS_S[found[2]]


@click.group("tokens", help="Administrators' and enrolment tokens.", invoke_without_command=True)
@as_json
@click.pass_context
def tokens(context: click.Context, *, as_json: bool) -> None:
    """Without a command: the list, without the secrets, which nobody keeps."""
    if context.invoked_subcommand is None:
        _tokens(as_json=as_json)


@asks
def _tokens(client: Client, *, as_json: bool) -> None:
    told = client.get("/tokens")
    if as_json:
        show.emit_json(told)
        return
    show.table(
        ("id", "kind", "for", "name", "group", "uses left", "expires", "made"),
        (
            (
                row["id"],
                row["kind"],
                row["role"] if row["kind"] == "enrol" else "",
                row["name"],
                row["group"],
                "any" if row["uses_left"] is None else row["uses_left"],
                "revoked" if row["revoked_at"] else _expiry(row["expires_at"]),
                show.when(row["created_at"]),
            )
            for row in told["tokens"]
        ),
        none="no tokens",
    )


def _expiry(moment: float | None) -> str:
    return "never" if moment is None else show.when(moment)


@tokens.command("create", help="A new one, printed this once.")
@click.argument("kind", type=click.Choice(["admin", "enrol"]))
@click.option("--name", default="", help="For whom or what, for people.")
@click.option(
    "--for",
    "role",
    type=click.Choice(["agent", "server"]),
    default="agent",
    show_default=True,
    help="enrol: what the token makes.",
)
@click.option("--group", help="enrol: the group that agents come into.")
@click.option("--uses", type=click.IntRange(1, 1_000_000), help="enrol: so many machines.")
@click.option("--expires", type=Period(), help="After 30m, 12h, 7d, 2w.")
@as_json
@asks
def create(
    client: Client,
    *,
    kind: str,
    name: str,
    role: str,
    group: str | None,
    uses: int | None,
    expires: float | None,
    as_json: bool,
) -> None:
    """An enrolment token carries the digest of the server's authority."""
    told = client.post(
        "/tokens",
        {
            "kind": kind,
            "name": name or kind,
            "role": role,
            "group": group,
            "uses": uses,
            "expires_at": None if expires is None else time.time() + expires,
        },
    )
    if as_json:
        show.emit_json(told)
    elif role == "server":
        click.echo(f"serverctl upstream enrol {told['url']} {told['token']}")
    elif kind == "enrol":
        click.echo(f"agentctl enroll {told['url']} {told['token']}")
    else:
        click.echo(told["token"])


@tokens.command("revoke", help="Refused from now on; TOKEN is its id, or all of it.")
@click.argument("token")
@as_json
@asks
def revoke(client: Client, *, token: str, as_json: bool) -> None:
    """Agents that enrolled with it stay."""
    name = _id_of(token)
    client.delete(f"/tokens/{name}")
    show.done({"id": name, "revoked": True}, f"{name} is revoked", as_json=as_json)


def _id_of(token: str) -> str:
    """The id in a token: addresses are logged, so the secret is in none."""
    whole = secrets.parse(token)
    if whole is None and not re.fullmatch(r"[0-9a-f]{32}", token):
        raise click.UsageError("expected a token or its id, 32 hex digits: serverctl tokens")
    return whole.id if whole else token


@click.command("policy", help="What is in force; KEY=VALUE changes it.")
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")
@as_json
@asks
def policy(client: Client, *, changes: tuple[str, ...], as_json: bool) -> None:
    """Values as in JSON; docs/api.md has them all."""
    told = (
        client.patch("/policy", dict(_change(text) for text in changes))
        if changes
        else client.get("/policy")
    )
    if as_json:
        show.emit_json(told)
        return
    for name, value in told.items():
        show.say(f"{name} = {msgspec.json.encode(value).decode()}")


def _change(text: str) -> tuple[str, Any]:
    name, mark, value = text.partition("=")
    if not mark:
        raise click.UsageError(f"{text!r}: expected KEY=VALUE")
    try:
        return name, msgspec.json.decode(value)
    except msgspec.DecodeError:
        return name, value


@click.command("audit", help="What administrators did, the newest first.")
@click.option("--last", type=click.IntRange(1, 1000), default=50, show_default=True)
@as_json
@asks
def audit(client: Client, *, last: int, as_json: bool) -> None:
    """Kept by the server, for good."""
    told = newest(client, "/audit", "entries", last=last, cursor="before")
    if as_json:
        show.emit_json(told)
        return
    show.table(
        ("at", "who", "action", "detail"),
        (
            (
                show.when(row["at"]),
                row["who"],
                row["action"],
                msgspec.json.encode(row["detail"]).decode(),
            )
            for row in told["entries"]
        ),
        none="nothing yet",
    )


@click.command("setup-link", help="A new set-up link, while there is no administrator.")
@as_json
@asks
def setup_link(client: Client, *, as_json: bool) -> None:
    """The one before is refused from then on."""
    told = client.post("/setup-link")
    if as_json:
        show.emit_json(told)
    else:
        show.say(told["url"])

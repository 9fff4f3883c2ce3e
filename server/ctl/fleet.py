"""serverctl notify, agents, groups, reports: the machines."""

from __future__ import annotations

from typing import Any

import click

from server.ctl import show
from server.ctl.asking import as_json, asks, newest, pages
from server.ctl.client import Client


@click.command("notify", help="Tell all connected agents to look now.")
@as_json
@asks
def notify(client: Client, *, as_json: bool) -> None:
    """A notification says look now, never what to install."""
    told = client.post("/notify")
    if as_json:
        show.emit_json(told)
    else:
        show.say(
            f"round {told['round']}: {told['connected']} connected agents are told within "
            f"{told['window_s']:.0f} s, the others when they come back"
        )


@click.group("agents", help="Every machine.", invoke_without_command=True)
@click.option("--group", help="Only of this group.")
@click.option("--release", help="Only those that run this release.")
@click.option("--silent", is_flag=True, help="Only those that are silent.")
@as_json
@click.pass_context
def agents(
    context: click.Context, *, group: str | None, release: str | None, silent: bool, as_json: bool
) -> None:
    """Without a command: the list."""
    if context.invoked_subcommand is None:
        _list(group=group, release=release, silent=silent, as_json=as_json)


@asks
def _list(
    client: Client, *, group: str | None, release: str | None, silent: bool, as_json: bool
) -> None:
    found = pages(client, "/agents", "agents", group=group, release=release, silent=silent or None)
    if as_json:
        show.emit_json(found)
        return
    show.table(
        ("id", "name", "group", "release", "state", "agent", "seen"),
        (
            (
                row["id"],
                row["name"],
                row["group"],
                row["active_release"],
                "revoked" if row["revoked_at"] else "silent" if row["silent"] else row["state"],
                row["agent_version"],
                show.when(row["seen_at"]),
            )
            for row in found
        ),
        none="no agents; serverctl tokens create enrol makes a token for agentctl enroll",
    )


@agents.command("show", help="All about one.")
@click.argument("agent")
@as_json
@asks
def show_agent(client: Client, *, agent: str, as_json: bool) -> None:
    """With its components and its last reports."""
    told = client.get(f"/agents/{agent}")
    if as_json:
        show.emit_json(told)
        return
    row = told["agent"]
    for name in ("id", "name", "host_id", "group", "platform", "agent_version", "region"):
        show.say(f"{name:<15}{row[name]}")
    show.say(f"{'runs':<15}{row['active_release'] or 'nothing yet'}")
    show.say(f"{'state':<15}{row['state']} [{row['reason']}]")
    show.say(f"{'seen':<15}{show.when(row['seen_at'])}")
    for component, version in sorted(told["components"].items()):
        show.say(f"{'component':<15}{component} {version}")
    _reports(told["reports"])


@agents.command("move", help="Into another group.")
@click.argument("agent")
@click.argument("group")
@as_json
@asks
def move(client: Client, *, agent: str, group: str, as_json: bool) -> None:
    """The group has to be there."""
    told = client.patch(f"/agents/{agent}", {"group": group})
    show.done(told, f"{agent} is in {group}", as_json=as_json)


@agents.command("revoke", help="Its credential is refused from now on.")
@click.argument("agent")
@as_json
@asks
def revoke(client: Client, *, agent: str, as_json: bool) -> None:
    """The machine goes on updating by its other sources."""
    client.delete(f"/agents/{agent}")
    show.done({"id": agent, "revoked": True}, f"{agent} is revoked", as_json=as_json)


@agents.command("rotate", help="It gets another credential at its next check-in.")
@click.argument("agent")
@as_json
@asks
def rotate(client: Client, *, agent: str, as_json: bool) -> None:
    """The old one holds until the new one is used."""
    client.post(f"/agents/{agent}/rotate")
    line = f"{agent} is asked to change its credential"
    show.done({"id": agent, "asked": True}, line, as_json=as_json)


@click.group("groups", help="Groups of machines.", invoke_without_command=True)
@as_json
@click.pass_context
def groups(context: click.Context, *, as_json: bool) -> None:
    """Without a command: the list."""
    if context.invoked_subcommand is None:
        _groups(as_json=as_json)


@asks
def _groups(client: Client, *, as_json: bool) -> None:
    told = client.get("/groups")
    if as_json:
        show.emit_json(told)
        return
    rows = ((row["name"], row["agents"]) for row in told["groups"])
    show.table(("group", "#agents"), rows, none="no groups")


@groups.command("create", help="A new one.")
@click.argument("name")
@as_json
@asks
def create_group(client: Client, *, name: str, as_json: bool) -> None:
    """Agents come in by `agents move`, or by a token of the group."""
    told = client.post("/groups", {"name": name})
    show.done(told, f"group {name} is there", as_json=as_json)


@groups.command("remove", help="An empty one.")
@click.argument("name")
@as_json
@asks
def remove_group(client: Client, *, name: str, as_json: bool) -> None:
    """Refused while agents are in it."""
    client.delete(f"/groups/{name}")
    show.done({"name": name, "removed": True}, f"group {name} is gone", as_json=as_json)


@click.group("reports", help="How attempts ended.", invoke_without_command=True)
@click.option("--outcome", type=click.Choice(["committed", "reverted", "failed", "held"]))
@click.option("--release", help="Only of this release.")
@click.option("--last", type=click.IntRange(1, 1000), default=50, show_default=True)
@as_json
@click.pass_context
def reports(
    context: click.Context, *, outcome: str | None, release: str | None, last: int, as_json: bool
) -> None:
    """Without a command: the newest."""
    if context.invoked_subcommand is None:
        _recent(outcome=outcome, release=release, last=last, as_json=as_json)


@asks
def _recent(
    client: Client, *, outcome: str | None, release: str | None, last: int, as_json: bool
) -> None:
    told = newest(client, "/reports", "reports", last=last, outcome=outcome, release=release)
    if as_json:
        show.emit_json(told)
    else:
        _reports(told["reports"])


def _reports(found: list[dict[str, Any]]) -> None:
    show.table(
        ("id", "machine", "release", "outcome", "reason", "ended", "sentence"),
        (
            (
                str(row["id"]),
                row["name"],
                row["release"],
                row["outcome"],
                row["reason"],
                show.when(row["ended_at"]),
                row["sentence"],
            )
            for row in found
        ),
        none="no reports",
    )


@reports.command("show", help="One, with its evidence.")
@click.argument("report", type=int)
@as_json
@asks
def show_report(client: Client, *, report: int, as_json: bool) -> None:
    """JSON in either case: that is what evidence is."""
    del as_json
    show.emit_json(client.get(f"/reports/{report}"))

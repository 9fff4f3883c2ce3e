"""serverctl status, sync, source, retention, scrub: what is served."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import click

from server.ctl import show
from server.ctl.asking import as_json, asks
from server.ctl.client import Client
from server.ctl.main import EXIT_REFUSED

POLL_S = 0.3


@click.command("status", help="What is served, from where, and how the fleet is.")
@as_json
@click.option("--quiet", is_flag=True, help="Only the exit code.")
@asks
def status(client: Client, *, as_json: bool, quiet: bool) -> None:
    """Exit code 0 well, 1 something is wrong."""
    told = client.get("/status")
    if as_json:
        show.emit_json(told)
    elif not quiet:
        for line in status_lines(told):
            show.say(line)
    if told["problems"]:
        raise click.exceptions.Exit(EXIT_REFUSED)


def status_lines(told: dict[str, Any]) -> list[str]:
    """The status for people."""
    mirror, fleet, rounds = told["mirror"], told["agents"], told["rounds"]
    lines = [f"{'WELL' if not told['problems'] else 'WRONG'}  {told['sentence']}"]
    lines += [f"            {problem}" for problem in told["problems"][1:]]
    lines.append(f"server      {told['version']}, up {show.ago(told['up_s']).removesuffix(' ago')}")
    lines.append(f"source      {mirror['source'] or 'none yet: serverctl source URL'}")
    if mirror["releases"]:
        lines.append(f"serves      {', '.join(mirror['releases'])}")
    last = mirror["last"]
    if last:
        lines.append(f"last sync   {show.when(last['ended_at'])}  {_outcome(last)}")
        lines.append(f"            {last['sentence']}")
    running = mirror["running"]
    if running:
        done, total = running["done_bytes"], running["total_bytes"]
        lines.append(f"syncing     {running['what']}: {show.size(done)} of {show.size(total)}")
    elif mirror["next_at"]:
        lines.append(f"next        {show.when(mirror['next_at'])}")
    lines.append(
        f"bytes       {show.size(mirror['fetched_bytes'])} fetched, "
        f"{show.size(mirror['saved_bytes'])} saved by duplication"
    )
    states = ", ".join(f"{count} {name}" for name, count in fleet["states"].items())
    lines.append(
        f"agents      {fleet['enrolled']} enrolled, {fleet['connected']} connected, "
        f"{fleet['silent']} silent{f'; {states}' if states else ''}"
    )
    if rounds["newest"]:
        lines.append(f"told        round {rounds['newest']}: {rounds['answered']} answered")
    return lines


def _outcome(last: dict[str, Any]) -> str:
    return f"{last['outcome']}: {last['code']}" if last["code"] else str(last["outcome"])


@click.command("sync", help="Look at the source now.")
@click.option("--wait", is_flag=True, help="Until it is done.")
@as_json
@asks
def sync(client: Client, *, wait: bool, as_json: bool) -> None:
    """Ask for a sync; exit code 1 when waiting for one that fails."""
    before = _last_run(client.get("/status"))
    told = client.post("/sync")
    if wait:
        told = _wait(client, before, quiet=as_json)
    if as_json:
        show.emit_json(told)
    elif wait:
        show.say(f"{told['outcome']}: {told['sentence']}")
        show.say(
            f"{show.size(told['fetched_bytes'])} fetched, "
            f"{show.size(told['saved_bytes'])} saved by duplication"
        )
    else:
        show.say("asked for; serverctl status shows how it goes")
    if wait and told["outcome"] == "failed":
        raise click.exceptions.Exit(EXIT_REFUSED)


def _last_run(told: dict[str, Any]) -> int:
    last = told["mirror"]["last"]
    return int(last["id"]) if last else 0


def _wait(client: Client, before: int, *, quiet: bool) -> Any:
    shown = ""
    while True:
        told = client.get("/status")
        running = told["mirror"]["running"]
        if running is None and _last_run(told) > before:
            return told["mirror"]["last"]
        line = running["what"] if running else ""
        if line and line != shown and not quiet:
            click.echo(show.clean(f"{line}: {show.size(running['total_bytes'])}"), err=True)
        shown = line or shown
        time.sleep(POLL_S)


@click.command("source", help="Point the mirror at a feed; without URL, show it.")
@click.argument("url", required=False)
@click.option(
    "--trust-root",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The vendor's first root.json.",
)
@as_json
@asks
def source(client: Client, *, url: str | None, trust_root: Path | None, as_json: bool) -> None:
    """Kept in the policy, unless the server's file names sources."""
    if url is None and trust_root is None:
        told = client.get("/source")
    else:
        root = trust_root.read_text(encoding="utf-8") if trust_root else None
        told = client.put("/source", {"url": url, "trust_root": root})
    if as_json:
        show.emit_json(told)
        return
    show.say(f"source      {told['url'] or 'none'}")
    show.say(f"trust root  {told['trust_root_sha256'] or 'none: --trust-root FILE'}")


@click.command("retention", help="What is kept, and what less of it would cost.")
@click.option("--keep", type=click.IntRange(1, 14), help="Keep so many versions from now on.")
@as_json
@asks
def retention(client: Client, *, keep: int | None, as_json: bool) -> None:
    """Nothing is removed before the next sync."""
    if keep is not None:
        client.patch("/policy", {"versions_kept": keep})
    told = client.get("/retention")
    if as_json:
        show.emit_json(told)
        return
    show_retention(told["choices"], in_force=told["in_force"])


def show_retention(choices: list[dict[str, Any]], *, in_force: int) -> None:
    """The table for people."""
    show.table(
        ("versions kept", "#bytes", "#agents that would download fulls", ""),
        _runs(choices, in_force),
        none="nothing is served yet",
    )


def _runs(choices: list[dict[str, Any]], in_force: int) -> list[tuple[object, ...]]:
    """A row for each run of choices that cost the same."""
    rows: list[tuple[object, ...]] = []
    costs = itertools.groupby(choices, key=lambda row: (row["bytes"], row["agents_to_fulls"]))
    for (size, agents), run in costs:
        kept = [row["versions_kept"] for row in run]
        name = str(kept[0]) if len(kept) == 1 else f"{min(kept)} to {max(kept)}"
        rows.append((name, size, agents, f"{in_force} in force" if in_force in kept else ""))
    return rows


@click.command("scrub", help="Hold every served file against its signature.")
@as_json
@asks
def scrub(client: Client, *, as_json: bool) -> None:
    """Damaged files are taken away and fetched again; exit code 1 if there were any."""
    told = client.post("/scrub", is_long=True)
    if as_json:
        show.emit_json(told)
    else:
        show.say(told["sentence"])
        for line in told["damaged"]:
            show.say(f"  {line}")
    if told["damaged"]:
        raise click.exceptions.Exit(EXIT_REFUSED)

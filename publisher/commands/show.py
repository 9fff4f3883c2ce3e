"""`publisher show`: what there is."""

from __future__ import annotations

import click

from publisher import console, home, inventory
from publisher.cli import Context
from publisher.commands.rollout import tabulate

RELEASES_SHOWN = 15


@click.command("show")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON; all releases.")
@click.pass_obj
def command(context: Context, as_json: bool) -> None:  # noqa: FBT001
    """Releases, components, roles with keys and expiry, rollouts."""
    found = inventory.take(home.look(context.home))
    if as_json:
        console.emit_json(found)
        return
    newest = found.releases[-RELEASES_SHOWN:]
    more = f" (newest {len(newest)} of {len(found.releases)})" if newest != found.releases else ""
    console.table(
        f"releases{more}",
        *("id", "created", "components"),
        rows=[(item.id, item.created, _versions(item.components)) for item in newest],
    )
    console.table(
        "components",
        *("name", "newest", "versions", "incrementals from", "bytes"),
        rows=[
            (
                item.name,
                item.versions[0],
                str(len(item.versions)),
                " ".join(item.increments_to_newest),
                f"{item.full_bytes:,}",
            )
            for item in found.components
        ],
        numbers=1,
    )
    console.table(
        "roles",
        *("role", "keys", "version", "expires", "days left"),
        rows=[
            (
                item.name,
                f"{item.threshold} of {' '.join(keyid[:12] for keyid in item.keys)}",
                str(item.version),
                item.expires,
                f"{item.days_left:.1f}{' !' if item.due else ''}",
            )
            for item in found.roles
        ],
        numbers=1,
    )
    tabulate(list(found.rollouts))
    if found.staged:
        console.say(f"prepared, not published: {', '.join(found.staged)}")
    elif not found.releases:
        console.say(
            "nothing is published; next: publisher release RELEASE_ID --component "
            "NAME:KIND:VERSION=PATH"
        )


def _versions(components: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in components.items())

"""`publisher init`: keys and an empty signed feed."""

from __future__ import annotations

import click
import msgspec

from publisher import console, setup
from publisher.cli import Context


@click.command("init")
@click.option("--region", "regions", multiple=True, help="A region to roll out to; repeatable.")
@click.option("--root-keys", type=click.IntRange(1, 32), default=1, show_default=True)
@click.option("--root-threshold", type=click.IntRange(1, 32), default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
@click.pass_obj
def command(
    context: Context,
    regions: tuple[str, ...],
    root_keys: int,
    root_threshold: int,
    as_json: bool,  # noqa: FBT001 - click passes flags
) -> None:
    """Make keys and an empty signed feed in the work folder.

    Refuses a folder that has one already. --root-threshold of the --root-keys
    have to sign each new root.
    """
    made = setup.create(
        context.home,
        regions=regions or ("global",),
        root_keys=root_keys,
        root_threshold=root_threshold,
    )
    if as_json:
        console.emit_json(msgspec.structs.asdict(made))
        return
    console.say(f"made {made.home}: an empty feed in {made.feed}")
    console.say(f"clients trust {made.trust_root}: ship it with the agent as root.json")
    rows = [
        (role, path, "take offline" if offline else "stays online")
        for role, path, offline in made.keys
    ]
    console.table("keys", "role", "file", "", rows=rows)
    console.say(
        "next: publisher release RELEASE_ID --component NAME:KIND:VERSION=PATH, "
        "then publisher publish"
    )

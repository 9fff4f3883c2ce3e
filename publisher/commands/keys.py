"""`publisher keys`: where keys are, and replacing them."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from publisher import console, home, inventory, rotation
from publisher.cli import Context

JSON = click.option("--json", "as_json", is_flag=True, help="Report as JSON.")


@click.group("keys")
def command() -> None:
    """List and replace keys."""


@command.command("list")
@JSON
@click.pass_obj
def list_keys(context: Context, as_json: bool) -> None:  # noqa: FBT001
    """Every key: id, what it signs, where its private half is."""
    found = inventory.keys(home.look(context.home))
    if as_json:
        console.emit_json(found)
        return
    console.table(
        "keys",
        *("id", "signs", "where", ""),
        rows=[
            (
                item.id[:12],
                ", ".join(item.roles) or "nothing (unused)",
                item.uri or "not registered",
                "here" if item.here else "not here",
            )
            for item in found
        ],
    )


@command.command()
@click.argument("role")
@click.option("--lost", is_flag=True, help="The old key is gone: don't ask for it.")
@click.option("--key", "keyid", help="Which one, by the start of its id, if the role has several.")
@click.option("--uri", help="Where the new private key is (awskms:, gcpkms:, hsm:, file2:, …).")
@click.option(
    "--public-key",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The public half of the key at --uri, PEM.",
)
@JSON
@click.pass_obj
def rotate(
    context: Context,
    role: str,
    lost: bool,  # noqa: FBT001 - click passes flags
    keyid: str | None,
    uri: str | None,
    public_key: Path | None,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Give ROLE a new key; the old one stops counting and its file is deleted.

    Needs the root key for root, targets, snapshot and timestamp, the targets
    key for the others. Clients follow by themselves.
    """
    if (uri is None) != (public_key is None):
        raise click.UsageError("--uri and --public-key go together")
    with home.work(context.home) as desk:
        done = rotation.rotate(
            desk,
            role,
            lost=lost,
            keyid=keyid,
            uri=uri,
            public_pem=public_key.read_bytes() if public_key else None,
        )
    if as_json:
        console.emit_json(
            {**msgspec.structs.asdict(done), "seconds": round(context.elapsed_s(), 3)}
        )
        return
    console.say(f"{role}: key {done.new[:12]} in place of {done.old[:12]}")
    console.say(
        f"signed {', '.join(done.signed)}; live {context.elapsed_s():.2f} s after the command"
    )
    if not done.deleted:
        console.say("destroy what copies of the old key exist elsewhere")

"""serverctl run: the server itself."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from server import layout, settings
from server.ctl.main import Context
from server.settings import Config


@click.command("run", help="Run the server until it is stopped.")
@click.option("--listen", help="address:port (default: the file's, else [::]:8443).")
@click.option("--source", help="The feed to mirror: https://, http:// or file://.")
@click.option(
    "--trust-root",
    type=click.Path(path_type=Path, dir_okay=False, exists=True, resolve_path=True),
    help="The vendor's first root.json.",
)
@click.option(
    "--origin",
    type=click.Path(path_type=Path, file_okay=False, exists=True, resolve_path=True),
    help="Serve this publisher's feed folder instead of mirroring one.",
)
@click.option("--plain", is_flag=True, help="HTTP without TLS: loopback, or behind a proxy.")
@click.pass_obj
def run(
    context: Context,
    *,
    listen: str | None,
    source: str | None,
    trust_root: Path | None,
    origin: Path | None,
    plain: bool,
) -> None:
    """Prints its address and, until there is an administrator, a set-up link."""
    path = context.config or layout.default_config()
    config = _with(
        settings.load(path),
        listen=listen,
        sources=(settings.Source(url=source),) if source else None,
        trust_root=str(trust_root) if trust_root else None,
        origin=str(origin) if origin else None,
        tls=settings.Tls(mode="off") if plain else None,
    )
    settings.check(config, "the command line")
    state_dir = context.state_dir or config.state_dir
    places = layout.resolve(state_dir, None if context.state_dir else path)

    from server import run as process  # noqa: PLC0415 - --help doesn't wait for the server

    process.run(config, places)


def _with(config: Config, **given: object) -> Config:
    changes = {name: value for name, value in given.items() if value is not None}
    return msgspec.structs.replace(config, **changes)

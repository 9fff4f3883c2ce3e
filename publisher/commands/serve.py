"""`publisher serve`: the feed over HTTP on this machine."""

from __future__ import annotations

import click

from publisher import console, home, serve
from publisher.cli import Context


@click.command("serve")
@click.option("--port", type=click.IntRange(1, 65535), default=8360, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.pass_obj
def command(context: Context, port: int, host: str) -> None:
    """Serve the feed to try it out; Ctrl-C ends it. Not for production."""
    feed = home.look(context.home).home.feed
    shown = f"[{host}]" if ":" in host else host
    console.say(f"serving {feed} at http://{shown}:{port}/ (Ctrl-C ends it)")
    serve.run(feed, host=host, port=port)

"""`publisher publish`: sign, put into the feed, refresh."""

from __future__ import annotations

import click
import msgspec

from publisher import console, home, publish
from publisher.cli import Context


@click.command("publish")
@click.argument("release_id", required=False)
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
@click.pass_obj
def command(context: Context, release_id: str | None, as_json: bool) -> None:  # noqa: FBT001
    """Sign and publish the prepared release RELEASE_ID (default: the only one).

    With nothing prepared it is the heartbeat: a fresh timestamp, and whatever
    else expires soon. Run it from a timer, at least daily. Killed anywhere it
    leaves the feed valid and can be run again.
    """
    with home.work(context.home) as desk:
        done = publish.publish(desk, release_id)
        feed = desk.home.feed
    for warning in done.warnings:
        console.warn(warning)
    if as_json:
        console.emit_json(
            {**msgspec.structs.asdict(done), "seconds": round(context.elapsed_s(), 3)}
        )
        return
    what = f"release {done.release} is in {feed}" if done.release else f"refreshed {feed}"
    console.say(f"{what}; signed {', '.join(done.signed)} in {context.elapsed_s():.2f} s")
    if done.release:
        console.say(f"nobody is offered it yet; next: publisher rollout start {done.release}")

"""`publisher publish`: sign, put into the feed, refresh."""

from __future__ import annotations

import click
import msgspec

from publisher import console, home, publish
from publisher.cli import Context


@click.command("publish")
@click.argument("release_id", required=False)
@click.option("--refresh", is_flag=True, help="Release nothing: only sign what gets old.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
@click.pass_obj
def command(
    context: Context,
    release_id: str | None,
    refresh: bool,  # noqa: FBT001 - click passes flags
    as_json: bool,  # noqa: FBT001
) -> None:
    """Sign and publish the prepared release RELEASE_ID (default: the only one).

    With nothing prepared, or --refresh, it is the heartbeat: a fresh timestamp,
    and whatever else expires soon. Run `publisher publish --refresh` from a
    timer, at least daily. Killed anywhere it leaves the feed valid and can be
    run again.
    """
    if refresh and release_id:
        raise click.UsageError("--refresh publishes no release")
    with home.work(context.home) as desk:
        done = publish.refresh(desk) if refresh else publish.publish(desk, release_id)
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

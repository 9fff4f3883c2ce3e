"""`publisher rollout`: who is offered which release."""

from __future__ import annotations

import click

from feed.rollout import RolloutPlan
from publisher import console, home, rollout
from publisher.catalogue import Catalogue
from publisher.cli import Context

REGION = click.option("--region", "regions", multiple=True, help="Only there; repeatable.")
REASON = click.option("--reason", required=True, help="Why; machines show it.")
JSON = click.option("--json", "as_json", is_flag=True, help="Report as JSON.")


@click.group("rollout")
def command() -> None:
    """Say who is offered which release.

    Needs the rollout, snapshot and timestamp keys only.
    """


@command.command()
@click.argument("release_id")
@REGION
@JSON
@click.pass_obj
def start(context: Context, release_id: str, regions: tuple[str, ...], as_json: bool) -> None:  # noqa: FBT001
    """Offer RELEASE_ID to everyone, now (default: in every configured region)."""
    with home.work(context.home) as desk:
        plans = rollout.start(desk, release_id, regions=regions)
    _report(context, plans, as_json=as_json)


@command.command()
@REASON
@REGION
@JSON
@click.pass_obj
def halt(context: Context, reason: str, regions: tuple[str, ...], as_json: bool) -> None:  # noqa: FBT001
    """Offer the current release to nobody new (default: everywhere)."""
    with home.work(context.home) as desk:
        plans = rollout.halt(desk, reason=reason, regions=regions)
    _report(context, plans, as_json=as_json)


@command.command()
@REGION
@JSON
@click.pass_obj
def resume(context: Context, regions: tuple[str, ...], as_json: bool) -> None:  # noqa: FBT001
    """Go on with what was halted (default: everywhere)."""
    with home.work(context.home) as desk:
        plans = rollout.resume(desk, regions=regions)
    _report(context, plans, as_json=as_json)


@command.command()
@click.option("--to", required=True, metavar="OLDER_ID", help="The release to go back to.")
@REASON
@REGION
@JSON
@click.pass_obj
def withdraw(
    context: Context,
    to: str,
    reason: str,
    regions: tuple[str, ...],
    as_json: bool,  # noqa: FBT001 - click passes flags
) -> None:
    """Send everyone back to OLDER_ID (default: everywhere it is older)."""
    with home.work(context.home) as desk:
        plans = rollout.withdraw(desk, to=to, reason=reason, regions=regions)
    _report(context, plans, as_json=as_json)


@command.command()
@JSON
@click.pass_obj
def show(context: Context, as_json: bool) -> None:  # noqa: FBT001
    """The plans in force."""
    desk = home.look(context.home)
    plans = Catalogue(desk.repository, desk.home.targets).plans()
    if as_json:
        console.emit_json(plans)
    elif plans:
        tabulate(plans)
    else:
        console.say("nothing is rolled out yet; next: publisher rollout start RELEASE_ID")


def tabulate(plans: list[RolloutPlan]) -> None:
    """The plans as a table."""
    console.table(
        "rollouts",
        *("region", "state", "release", "fallback", "decided", "reason"),
        rows=[
            (p.region, p.state.value, p.release, p.fallback or "", p.decided, p.reason)
            for p in plans
        ],
    )


def _report(context: Context, plans: list[RolloutPlan], *, as_json: bool) -> None:
    seconds = context.elapsed_s()
    if as_json:
        console.emit_json({"plans": plans, "seconds": round(seconds, 3)})
        return
    tabulate(plans)
    console.say(f"signed and live {seconds:.2f} s after the command")

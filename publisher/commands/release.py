"""`publisher release`: from files and folders to a prepared release."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from feed.delta import Effort
from feed.manifest import Kind
from publisher import console, home, release, settings
from publisher.cli import Context
from publisher.settings import CompatibilityInput, ComponentInput, ReleaseInput
from publisher.staging import ComponentReport, Staged

FORM = "NAME:KIND:VERSION=PATH"
AUDIENCE_FORM = "NAME:TRAIT=VALUE"
TRAIT_FORM = "TRAIT=VALUE"


@click.command("release")
@click.argument("release_id")
@click.option(
    "--component", "components", multiple=True, metavar=FORM, help="A file or folder; repeatable."
)
@click.option(
    "--from",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A release file (TOML): components, compatibility, activation, health.",
)
@click.option(
    "--audience",
    "audiences",
    multiple=True,
    metavar=AUDIENCE_FORM,
    help="For whom a component given here is; NAME: alone: for everybody. Repeatable.",
)
@click.option(
    "--default-trait",
    "traits",
    multiple=True,
    metavar=TRAIT_FORM,
    help="A trait of machines that say nothing else; repeatable.",
)
@click.option("--os", "systems", multiple=True, help="sys.platform it is for; repeatable.")
@click.option("--only", is_flag=True, help="Drop components that aren't named here.")
@click.option(
    "--effort",
    type=click.Choice([effort.name.lower() for effort in Effort]),
    help="How hard to try for small incrementals (default: publisher.toml).",
)
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
@click.pass_obj
def command(
    context: Context,
    release_id: str,
    components: tuple[str, ...],
    file: Path | None,
    audiences: tuple[str, ...],
    traits: tuple[str, ...],
    systems: tuple[str, ...],
    only: bool,  # noqa: FBT001 - click passes flags
    effort: str | None,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Build release RELEASE_ID: payloads, compressed copies, incrementals, manifest.

    KIND is pattern, engine, program, config, policy or settings. What the
    previous release has and this one doesn't name is carried over. Nothing is
    published: that is `publisher publish`.
    """
    wanted = settings.load_release(file) if file else ReleaseInput()
    named = tuple(parse_component(text) for text in components)
    wanted = msgspec.structs.replace(
        wanted,
        components=with_audiences(wanted.components + named, audiences),
        default_traits={**wanted.default_traits, **dict(map(_parse_trait, traits))},
    )
    if systems:
        limits = CompatibilityInput(os=systems, agent_min=wanted.compatibility.agent_min)
        wanted = msgspec.structs.replace(wanted, compatibility=limits)
    desk = home.look(context.home)
    with console.StepProgress(quiet=as_json) as progress:
        staged = release.prepare(
            desk,
            release_id,
            wanted,
            only=only,
            effort=Effort[effort.upper()] if effort else None,
            progress=progress,
        )
    if as_json:
        console.emit_json(staged)
    else:
        _report(staged)


def parse_component(text: str) -> ComponentInput:
    """A --component.

    Raises click.UsageError: says what is expected.
    """
    label, equals, path = text.partition("=")
    parts = label.split(":")
    if not equals or not path or len(parts) != 3:
        raise click.UsageError(f"--component {text!r}: expected {FORM}")
    name, kind, version = parts
    if kind not in set(Kind):
        raise click.UsageError(
            f"--component {text!r}: kind {kind!r}, expected one of {', '.join(Kind)}"
        )
    return ComponentInput(name=name, kind=Kind(kind), version=version, path=path)


def with_audiences(
    components: tuple[ComponentInput, ...], texts: tuple[str, ...]
) -> tuple[ComponentInput, ...]:
    """`components` with what --audience says of them.

    Raises click.UsageError: not such a text, or no such component.
    """
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        name, colon, trait = text.partition(":")
        if not colon or name not in {item.name for item in components}:
            raise click.UsageError(
                f"--audience {text!r}: expected {AUDIENCE_FORM} of a component that is given"
            )
        found.setdefault(name, {}).update(dict([_parse_trait(trait)] if trait else []))
    return tuple(
        msgspec.structs.replace(item, audience=found.get(item.name, item.audience))
        for item in components
    )


def _parse_trait(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise click.UsageError(f"{text!r}: expected {TRAIT_FORM}")
    return name, value


def _report(staged: Staged) -> None:
    console.table(
        f"release {staged.release.id}",
        *("component", "version", "what", "format", "kept", "bytes", "share", "CPU s"),
        rows=[row for item in staged.components for row in _rows(item)],
        numbers=3,
    )
    console.say(f"prepared; next: publisher publish {staged.release.id}")


def _rows(item: ComponentReport) -> list[tuple[str, ...]]:
    full = item.full_bytes
    if item.origin != "new":
        return [(item.name, item.version, item.origin, "", "", f"{full:,}", "", "")]
    rows: list[tuple[str, ...]] = [
        (item.name, item.version, "full", "", "yes", f"{full:,}", "", "")
    ]
    if item.zst_bytes:
        level = f"zstd {item.zst_level}"
        packed = f"{item.zst_bytes:,}"
        rows.append(("", "", "compressed", level, "yes", packed, "100%", f"{item.zst_cpu_s:.1f}"))
    for made in item.increments:
        kept = "yes" if made.keep else f"left out: {made.why_not}"
        share = f"{made.share:.1%}" if made.format else ""
        cpu = f"{made.cpu_s:.1f}"
        rows.append(("", "", f"from {made.old}", made.format, kept, f"{made.length:,}", share, cpu))
    return rows

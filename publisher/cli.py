"""The `publisher` command: which commands there are, where errors become exit codes.

Commands live in publisher.commands and are imported when they run, so that
`publisher --help` doesn't wait for cryptography.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import click

EXIT_REFUSED = 1
EXIT_KEYS = 3
EXIT_HOME = 4

EXIT_CODES = """\
Exit codes: 0 done; 1 refused, nothing changed (what was asked for contradicts
the feed, or a file can't be used); 2 wrong usage; 3 a key isn't here or doesn't
fit; 4 the folder, the feed or the disk is the problem."""


@dataclass(frozen=True)
class Context:
    """What every command gets: the work folder, and when the command began."""

    home: Path
    started: float

    def elapsed_s(self) -> float:
        """Seconds since the command began."""
        return perf_counter() - self.started


class LazyGroup(click.Group):
    """A group whose commands are imported when they run; the table has their help."""

    table: ClassVar[dict[str, str]] = {
        "init": "Make keys and an empty signed feed.",
        "release": "Build a release: payloads, incrementals, manifest.",
        "publish": "Sign and publish what is prepared; refresh the feed.",
        "rollout": "Say who is offered which release.",
        "show": "Releases, components, roles and rollouts.",
        "keys": "List and replace keys.",
        "serve": "Serve the feed on this machine, to try it out.",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """In the order in which they are used."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command's module."""
        if cmd_name not in self.table:
            return None
        module = importlib.import_module(f"publisher.commands.{cmd_name}")
        found: click.Command = module.command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """From the table, importing nothing."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.table.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an expected error is one sentence and an exit code."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            code = exit_code(error)
            if code is None:
                raise
            click.echo(f"publisher: {describe(error)}", err=True)
            raise click.exceptions.Exit(code) from error


def exit_code(error: Exception) -> int | None:
    """The exit code of an expected error; None for a bug."""
    from feed.errors import FeedError  # noqa: PLC0415 - only when something went wrong
    from publisher import errors  # noqa: PLC0415

    if isinstance(error, errors.SigningError):
        return EXIT_KEYS
    if isinstance(error, errors.HomeError | errors.DamageError | OSError):
        return EXIT_HOME
    if isinstance(error, errors.PublisherError | FeedError):
        return EXIT_REFUSED
    return None


def describe(error: Exception) -> str:
    """The sentence that goes to the person."""
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}; nothing half-written was published, run again"
    return str(error)


@click.group(cls=LazyGroup, epilog=EXIT_CODES)
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="HOLDFAST_PUBLISHER_HOME",
    default=Path(),
    help="The work folder (default: HOLDFAST_PUBLISHER_HOME, or the current folder).",
)
@click.version_option(package_name="holdfast")
@click.pass_context
def cli(ctx: click.Context, home: Path) -> None:
    """The vendor's release desk: build, sign, roll out, take back.

    A first release: init, release ID --component NAME:KIND:VERSION=PATH,
    publish, rollout start ID.
    """
    ctx.obj = Context(home=home.absolute(), started=perf_counter())


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script."""
    cli(args=arguments, prog_name="publisher")

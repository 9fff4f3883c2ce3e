"""The `serverctl` command: what there is, and where errors become exit codes.

Commands are in server.ctl.<name> and are imported when they run.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import click

from server import __version__

EXIT_REFUSED = 1
EXIT_NOT_ALLOWED = 3
EXIT_NO_SERVER = 4
EXIT_CONFIG = 78  # EX_CONFIG of `run`: the service manager doesn't try again

EXIT_CODES = """\
Exit codes: 0 done; 1 refused, or something is wrong; 2 wrong usage; 3 the token
isn't accepted; 4 the server doesn't answer. `run` ends with 78 when its
configuration can't be used."""


@dataclass(frozen=True)
class Context:
    """Where the server is that a command is for."""

    config: Path | None
    state_dir: str | None
    url: str | None
    token_file: Path | None
    authority: Path | None


class LazyGroup(click.Group):
    """A group whose commands are imported when they run; the table has their help."""

    table: ClassVar[dict[str, tuple[str, str]]] = {
        "run": ("run", "Run the server."),
        "status": ("mirror", "What is served, from where, and how the fleet is."),
        "sync": ("mirror", "Look at the source now."),
        "source": ("mirror", "Point the mirror at a feed."),
        "retention": ("mirror", "What is kept, and what less of it would cost."),
        "scrub": ("mirror", "Hold every served file against its signature."),
        "notify": ("fleet", "Tell all connected agents to look now."),
        "agents": ("fleet", "Every machine: list, show, move, revoke, rotate."),
        "groups": ("fleet", "Groups of machines."),
        "reports": ("fleet", "How attempts ended, with their evidence."),
        "tokens": ("accounts", "Administrators' and enrolment tokens."),
        "policy": ("accounts", "What is in force; KEY=VALUE changes it."),
        "audit": ("accounts", "What administrators did."),
        "setup-link": ("accounts", "A new set-up link, while there is no administrator."),
        "upstream": ("upstream", "Send counts to the next server."),
    }

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """In the order in which they are used."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command's module."""
        if cmd_name not in self.table:
            return None
        module = importlib.import_module(f"server.ctl.{self.table[cmd_name][0]}")
        found: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """From the table, importing nothing."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.table.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an expected error is one sentence and an exit code."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            code = exit_code(error, running=ctx.invoked_subcommand == "run")
            if code is None:
                raise
            click.echo(f"serverctl: {_printable(error)}", err=True)
            raise click.exceptions.Exit(code) from error


def exit_code(error: Exception, *, running: bool = False) -> int | None:
    """The exit code of an expected error; None for a bug."""
    from feed.errors import FeedError  # noqa: PLC0415 - only when something went wrong
    from server.ctl.client import AskError  # noqa: PLC0415
    from server.errors import ConfigError, ServerError  # noqa: PLC0415

    if isinstance(error, AskError):
        if error.status in {401, 403}:
            return EXIT_NOT_ALLOWED
        return EXIT_REFUSED if error.status else EXIT_NO_SERVER
    if isinstance(error, ConfigError):
        return EXIT_CONFIG if running else EXIT_NO_SERVER
    return EXIT_REFUSED if isinstance(error, ServerError | FeedError | OSError) else None


def _printable(error: Exception) -> str:
    """Its lines; a server's or a file's words may be among them."""
    from server.ctl.show import clean  # noqa: PLC0415 - only when something went wrong

    return "\n".join(clean(line) for line in str(error).split("\n"))


@click.group(cls=LazyGroup, epilog=EXIT_CODES)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file (default: HOLDFAST_SERVER_CONFIG; as root /etc/holdfast/server.toml).",
)
@click.option("--state-dir", help="The server's folder, instead of the file's.")
@click.option("--server", "url", envvar="HOLDFAST_SERVER", help="Ask this server: https://…")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="An administrator's token for --server.",
)
@click.option(
    "--authority",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The certificate authority of --server, PEM (default: what this machine trusts).",
)
@click.version_option(__version__)
@click.pass_context
def cli(
    ctx: click.Context,
    config: Path | None,
    state_dir: str | None,
    url: str | None,
    token_file: Path | None,
    authority: Path | None,
) -> None:
    """The Security Server: mirrors a signed feed, tells its agents, accounts for them.

    serverctl run starts it and prints a set-up link; the other commands ask a
    server that runs.
    """
    if url and not token_file:
        raise click.UsageError("--server needs --token-file, with an administrator's token in it")
    ctx.obj = Context(
        config=config, state_dir=state_dir, url=url, token_file=token_file, authority=authority
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script."""
    cli(args=arguments, prog_name="serverctl")

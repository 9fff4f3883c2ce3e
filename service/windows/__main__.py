"""python -m service.windows: see the package. Run it as administrator."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agent import config, layout
from agent.errors import AgentError, ConfigError
from agent.host import windows_services as services
from service.windows import manager, plan

if sys.platform != "win32":
    raise ImportError("services of this kind are Windows'")

STRAYS_SHOWN = 5  # in an error


def main() -> int:
    """0 done, 1 refused, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m service.windows")
    commands = parser.add_subparsers(dest="command", required=True)
    install = commands.add_parser("install", help="both services and their folders")
    install.add_argument("--config", type=Path, default=layout.default_path(), metavar="PATH")
    commands.add_parser("remove", help="both services; state and configuration stay")
    for name, help_text in (
        ("protect", "have an engine's service start after the boot guard"),
        ("unprotect", "take that back"),
    ):
        commands.add_parser(name, help=help_text).add_argument("service")
    given = parser.parse_args()
    try:
        _do(given)
    except (AgentError, OSError) as error:
        print(f"holdfast: {given.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _do(given: argparse.Namespace) -> None:
    if given.command == "install":
        path = given.config.absolute()
        _check_folder(path)
        manager.claim(path.parent)
        manager.install(layout.resolve(config.load(path), path), path, python=sys.executable)
        print("installed; start it with: sc start HoldfastAgent")
    elif given.command == "remove":
        freed = manager.remove()
        print("removed" + (f"; {', '.join(freed)} no longer wait for it" if freed else ""))
    elif given.command == "protect":
        services.protect(given.service)
    else:
        services.unprotect(given.service)


def _check_folder(path: Path) -> None:
    """Raises ConfigError: the folder holds what isn't ours, and would get our rights."""
    folder = path.parent
    if folder == layout.machine_folder() or not folder.exists():
        return
    if any(plan.is_configured_by(line, str(path)) for line in manager.command_lines()):
        return
    strays = plan.strays((item.name for item in folder.iterdir()), config=path.name)
    if strays:
        raise ConfigError(
            f"{folder} holds {', '.join(strays[:STRAYS_SHOWN])} too, and the configuration's "
            "folder is for administration alone; put it into a folder of its own"
        )


if __name__ == "__main__":
    raise SystemExit(main())

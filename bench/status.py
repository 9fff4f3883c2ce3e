"""What `agentctl status` costs whoever runs it every minute, beside `python -c pass`."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from bench import machine
from bench.figures import Figure, Section

GOAL_TIMES = 5.0
ROOT = Path(__file__).parents[1]


def run(*, quick: bool) -> Section:
    """Ask a real guardian, again and again."""
    times = 7 if quick else 41
    with machine.folder() as place:
        desk = machine.vendor(place)
        with machine.installed(place / "endpoint", url=desk.url, root=desk.root) as endpoint:
            asked = [*_agentctl(), "status", "--config", str(endpoint.config)]
            environment = _with_bytecode(place / "pycache")
            commands = (asked, [*asked, "--json"], [sys.executable, "-c", "pass"])
            for command in commands:
                machine.wall_s(command, environment)
            text_s, json_s, pass_s = machine.taking_turns(
                [partial(machine.wall_s, command, environment) for command in commands], times
            )
    peer = f"{pass_s * 1e3:.1f} ms (python -c pass)"
    return Section(
        title="agentctl status",
        how=f"Wall time of `{' '.join(_shown(asked))}` against a running guardian and of "
        f"`python -c pass` of the same interpreter, compiled modules at hand, taking turns "
        f"{times} times; medians.",
        figures=tuple(
            Figure(
                what,
                f"{seconds * 1e3:.1f} ms",
                peer,
                ratio=seconds / pass_s,
                goal=f"at most {GOAL_TIMES:g} times",
                met=seconds <= GOAL_TIMES * pass_s,
            )
            for what, seconds in (("agentctl status", text_s), ("agentctl status --json", json_s))
        ),
    )


def _with_bytecode(cache: Path) -> dict[str, str]:
    """An environment in which modules are compiled once, as an installation has them."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(cache)}


def _agentctl() -> list[str]:
    """The installed command, or the module where there is none."""
    script = Path(sys.executable).with_name("agentctl")
    return [str(script)] if script.exists() else [sys.executable, "-m", "agent.ctl"]


def _shown(command: list[str]) -> list[str]:
    return [Path(command[0]).name, *command[1:-2]]

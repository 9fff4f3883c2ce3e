"""The command line: which benches, how long, and where the figures go."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable
from pathlib import Path

from bench import check, delta, endtoend, flip, idle, pinned, release, status
from bench.figures import Section, show, write
from bench.server import checkins, files, push, sync

DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"

BENCHES: dict[str, Callable[..., Section]] = {
    "flip": flip.run,
    "status": status.run,
    "idle": idle.run,
    "check": check.run,
    "pinned": pinned.run,
    "delta": delta.run,
    "endtoend": endtoend.run,
    "release": release.run,
    "push": push.run,
    "files": files.run,
    "sync": sync.run,
    "checkins": checkins.run,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the named benches; 1 when a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(BENCHES)}")
    parser.add_argument("--quick", action="store_true", help="shorter runs; nothing is written")
    parser.add_argument("--no-write", action="store_true", help="leave docs/performance.md alone")
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(BENCHES):
        parser.error(f"no such bench: {', '.join(sorted(unknown))}")
    sections = []
    for name in given.names or BENCHES:
        command = shlex.join(["python", "-m", "bench", name])
        load = os.getloadavg()[0]
        section = BENCHES[name](quick=given.quick)
        sections.append(section)
        show(section)
        if not (given.quick or given.no_write):
            write(DOCUMENT, name, section, command=command, load=load)
    return 0 if all(section.met for section in sections) else 1


if __name__ == "__main__":
    raise SystemExit(main())

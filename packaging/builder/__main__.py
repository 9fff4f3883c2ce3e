"""The command line: `python -m builder deb rpm`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from builder import deb, project, wheels
from builder.errors import BuildError
from builder.project import ROOT, Target

KINDS = {"deb": deb.build}


def main(arguments: list[str] | None = None) -> int:
    """Build what was named; 1 and a sentence when that can't be done."""
    given = _parser().parse_args(arguments)
    try:
        _build(given)
    except BuildError as error:
        print(f"builder: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="builder", description="Build the agent's packages.")
    parser.add_argument("kinds", nargs="+", choices=sorted(KINDS), metavar="KIND")
    parser.add_argument("--python", default="3.11", help="the target's (default %(default)s)")
    parser.add_argument("--machine", default="x86_64", choices=["x86_64", "aarch64"])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="FOLDER")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "wheels", metavar="FOLDER")
    return parser


def _build(given: argparse.Namespace) -> None:
    what = project.read()
    target = Target(system="linux", machine=given.machine, python=given.python)
    given.out.mkdir(parents=True, exist_ok=True)
    others = wheels.dependencies(target, given.cache.absolute())
    with tempfile.TemporaryDirectory(prefix="holdfast-build-") as folder:
        work = Path(folder)
        own = wheels.own(what, work)
        for kind in given.kinds:
            path = KINDS[kind](what, target, work, given.out.absolute(), own, others)
            print(f"{path}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())

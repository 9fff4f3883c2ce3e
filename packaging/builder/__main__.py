"""The command line: `python -m builder deb rpm --product server`."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from builder import deb, project, rpm, wheels, windows
from builder.errors import BuildError
from builder.job import Job
from builder.product import AGENT, PRODUCTS, Product
from builder.project import ROOT, Project, Target
from builder.wheels import Wheel

KINDS: dict[str, Callable[[Job], list[Path]]] = {
    "deb": deb.build,
    "rpm": rpm.build,
    "windows": windows.build,
}
ON_WINDOWS = (AGENT,)
SUMS = "SHA256SUMS"


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
    parser = argparse.ArgumentParser(prog="builder", description="Build the packages.")
    parser.add_argument("kinds", nargs="+", choices=sorted(KINDS), metavar="KIND")
    parser.add_argument(
        "--product",
        action="append",
        choices=sorted(PRODUCTS),
        help="may be given again; all of them unless given",
    )
    parser.add_argument("--python", default="3.11", help="the target's (default %(default)s)")
    parser.add_argument("--machine", default="x86_64", choices=["x86_64", "aarch64"])
    parser.add_argument(
        "--python-dir", type=Path, metavar="FOLDER", help="windows: the interpreter to bundle"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="FOLDER")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "wheels", metavar="FOLDER")
    parser.add_argument(
        "--level",
        type=int,
        default=6,
        choices=range(10),
        metavar="0..9",
        help="of compression (default %(default)s; 0: the quickest there is)",
    )
    return parser


def _build(given: argparse.Namespace) -> None:
    os.umask(0o022)
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="holdfast-build-") as folder:
        what = project.read()
        own = wheels.own(what, Path(folder))
        for product, kind in _wanted(given):
            work = Path(folder, product.name, kind)
            work.mkdir(parents=True)
            for path in KINDS[kind](_job(product, kind, given, what, own, work)):
                print(f"{path}  {path.stat().st_size:,} bytes", flush=True)
    _sum_up(given.out)


def _wanted(given: argparse.Namespace) -> list[tuple[Product, str]]:
    products = [PRODUCTS[name] for name in given.product or PRODUCTS]
    found = [
        (product, kind)
        for product in products
        for kind in given.kinds
        if kind != "windows" or product in ON_WINDOWS
    ]
    if not found:
        raise BuildError("windows: there is an installer of the agent only")
    return found


def _sum_up(folder: Path) -> None:
    """Write the digests of all that is in `folder`, as sha256sum reads them."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != SUMS
    ]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8", newline="\n")


def _job(
    product: Product, kind: str, given: argparse.Namespace, what: Project, own: Wheel, work: Path
) -> Job:
    system = "win32" if kind == "windows" else "linux"
    target = Target(system=system, machine=given.machine, python=given.python)
    return Job(
        product=product,
        project=what,
        target=target,
        own=own,
        others=wheels.dependencies(product.lock, target, given.cache.absolute()),
        work=work,
        out=given.out.absolute(),
        level=given.level,
        python_dir=given.python_dir and given.python_dir.absolute(),
    )


if __name__ == "__main__":
    sys.exit(main())

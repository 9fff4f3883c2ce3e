"""The tree of an installed product on Linux, without what .deb and .rpm want on top.

The program's folder in /opt is a virtual environment over the distribution's
Python, written by hand: `pyvenv.cfg`, a link to an interpreter that is there on
the target whatever this machine has, and the wheels. Nothing in it depends on
where or when it was made.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from builder import unpack
from builder.job import Job
from builder.product import LINUX, SETTINGS, UNITS, Product
from builder.project import Target

DROP_INS_SINCE = 254  # of systemd, which knows RestartSteps=; older ones would warn
MANUAL = Path("usr/share/man")

# -B: byte code is written at an install, and flushed there. What a boot or a root shell
# wrote later could be torn by a power cut.
_COMMAND = """\
#!/{program}/bin/python3 -IB
import sys

from {module} import {function}

sys.exit({function}())
"""


def lay_out(root: Path, job: Job, *, units: str) -> None:
    """Write the whole tree below `root`, an empty folder; `units` is the distribution's."""
    product = job.product
    _environment(root / product.program, job.target)
    folder = modules(root, job)
    for wheel in job.others:
        unpack.unpack(wheel, folder)
    unpack.unpack(job.own, folder, only=product.parts)
    for name, entry in unpack.commands(job.own, folder).items():
        _command(root, product, name, entry)
    _units(root / units, product, job.target)
    for name in product.manual:
        _put(LINUX / "man" / name, root / MANUAL / f"man{name[-1]}" / name)
    for path in product.documents:
        _put(path, root / product.pages / path.name)
    _put(LINUX / product.settings, root / SETTINGS / product.settings)


def modules(root: Path, job: Job) -> Path:
    """The folder below `root` that the program imports from."""
    return root / job.product.modules(job.target.python)


def set_modes(root: Path, epoch: int) -> None:
    """Folders 0755, commands 0755, files 0644, nothing younger than `epoch`."""
    for path in [root, *sorted(root.rglob("*"))]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or _is_command(path) else 0o644)
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def _is_command(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"#!" and path.suffix != ".py"


def _environment(folder: Path, target: Target) -> None:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python3").symlink_to(f"/usr/bin/python{target.python}")
    (folder / "bin" / "python").symlink_to("python3")
    lines = [
        "home = /usr/bin",
        "include-system-site-packages = false",
        f"version = {target.python}",
    ]
    (folder / "pyvenv.cfg").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _command(root: Path, product: Product, name: str, entry: str) -> None:
    module, _, function = entry.partition(":")
    text = _COMMAND.format(program=product.program, module=module, function=function)
    (root / product.program / "bin" / name).write_text(text, encoding="utf-8")
    if name in product.commands:
        link = root / product.commands[name] / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"/{product.program}/bin/{name}")


def _units(folder: Path, product: Product, target: Target) -> None:
    for name in product.units:
        _put(UNITS / name, folder / name)
        if target.systemd >= DROP_INS_SINCE:
            for path in sorted(UNITS.glob(f"{name}.d/*.conf")):
                _put(path, folder / path.parent.name / path.name)


def _put(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, place)

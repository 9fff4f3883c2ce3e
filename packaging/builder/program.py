"""The tree of an installed Linux agent, without what .deb and .rpm want on top.

/opt/holdfast is a virtual environment over the distribution's Python, written
by hand: `pyvenv.cfg`, a link to an interpreter that is there on the target
whatever this machine has, and the wheels. Nothing in it depends on where or
when it was made.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from builder import unpack
from builder.project import ROOT, Target
from builder.wheels import Wheel

PROGRAM = Path("opt/holdfast")
PARTS = ("agent", "feed")  # of the project's wheel
LINUX = ROOT / "packaging" / "linux"
UNITS = ROOT / "service" / "systemd"
UNIT_KINDS = (".service", ".socket", ".target", ".timer", ".slice")
OTHERS_UNITS = ("holdfast-serverd",)  # the server has a package of its own
DROP_INS_SINCE = 254  # of systemd, which knows RestartSteps=; older ones would warn
PAGES = ("install.md", "operations.md", "agentctl.md", "configuration.md", "threat-model.md")
SYSTEM_COMMANDS = {"agentctl": "usr/bin", "agentd": "usr/sbin"}

_COMMAND = """\
#!/opt/holdfast/bin/python3 -I
import sys

from {module} import {function}

sys.exit({function}())
"""


class Places(NamedTuple):
    """Where a distribution has what differs from one to the other."""

    units: str
    documents: str  # of this package
    manual: str = "usr/share/man"


def lay_out(root: Path, target: Target, places: Places, own: Wheel, others: list[Wheel]) -> None:
    """Write the whole tree below `root`, an empty folder."""
    _environment(root / PROGRAM, target)
    folder = modules(root, target)
    for wheel in others:
        unpack.unpack(wheel, folder)
    unpack.unpack(own, folder, only=PARTS)
    for name, entry in unpack.commands(own, folder).items():
        _command(root, name, entry)
    _units(root / places.units, target)
    _manual(root / places.manual)
    _documents(root / places.documents)
    _put(LINUX / "config.toml", root / "etc/holdfast/config.toml")
    (root / "var/lib/holdfast").mkdir(parents=True)


def modules(root: Path, target: Target) -> Path:
    """The folder below `root` that the program imports from."""
    return root / PROGRAM / "lib" / f"python{target.python}" / "site-packages"


def units() -> list[Path]:
    """The agent's units, by name."""
    found = [path for path in UNITS.iterdir() if path.suffix in UNIT_KINDS]
    return sorted(path for path in found if not path.name.startswith(OTHERS_UNITS))


def enabled_units() -> list[str]:
    """The names of those that an administrator enables."""
    return [path.name for path in units() if "[Install]" in path.read_text(encoding="utf-8")]


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


def _command(root: Path, name: str, entry: str) -> None:
    module, _, function = entry.partition(":")
    text = _COMMAND.format(module=module, function=function)
    (root / PROGRAM / "bin" / name).write_text(text, encoding="utf-8")
    if name in SYSTEM_COMMANDS:
        link = root / SYSTEM_COMMANDS[name] / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"/{PROGRAM}/bin/{name}")


def _units(folder: Path, target: Target) -> None:
    for path in units():
        _put(path, folder / path.name)
    if target.systemd >= DROP_INS_SINCE:
        for path in sorted(UNITS.glob("*.d/*.conf")):
            _put(path, folder / path.parent.name / path.name)


def _manual(folder: Path) -> None:
    for path in sorted((LINUX / "man").glob("*.[1-8]")):
        _put(path, folder / f"man{path.suffix[1:]}" / path.name)


def _documents(folder: Path) -> None:
    for path in (ROOT / "config.example.toml", *(ROOT / "docs" / name for name in PAGES)):
        _put(path, folder / path.name)


def _put(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, place)

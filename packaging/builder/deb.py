"""The .deb: the tree, Debian's documents, and the maintainer scripts."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
from email.utils import formatdate
from pathlib import Path

from builder import licences, program
from builder.errors import BuildError
from builder.project import REVISION, ROOT, VENDOR, Project, Target
from builder.scripts import rendered
from builder.wheels import Wheel

DEBIAN = ROOT / "packaging" / "debian"
PLACES = program.Places(units="lib/systemd/system", documents="usr/share/doc/holdfast")
SCRIPTS = ("preinst", "postinst", "prerm", "postrm")

_CONTROL = """\
Package: holdfast
Version: {version}
Section: admin
Priority: optional
Architecture: {machine}
Maintainer: {vendor}
Installed-Size: {kilobytes}
Depends: python{python}, passwd
Recommends: systemd, ca-certificates
Description: {summary}
 The agent follows a signed feed, rebuilds incremental patches into one of two
 slots, switches in one step, watches CPU, memory and health of the protected
 engines after the switch, and goes back to the prior slot by itself when the
 update hurts.
 .
 The libraries it needs are in /opt/holdfast; the interpreter is Debian's.
"""


def version(project: Project, target: Target) -> str:
    return f"{project.version}-{REVISION}+py{target.python.replace('.', '')}"


def build(
    project: Project, target: Target, work: Path, out: Path, own: Wheel, others: list[Wheel]
) -> Path:
    """Write the package into `out`; returns its path. `work` is an empty folder."""
    root = work / "deb"
    program.lay_out(root, target, PLACES, own, others)
    _document(root / PLACES.documents, project, target, others)
    program.set_modes(root, project.epoch)
    _control(root, project, target)
    package = out / f"holdfast_{version(project, target)}_{target.debian_machine}.deb"
    command = ["dpkg-deb", "--root-owner-group", "-Zxz", "-z6", "--threads-max=1", "--build"]
    _run([*command, str(root), str(package)], project)
    return package


def _document(folder: Path, project: Project, target: Target, others: list[Wheel]) -> None:
    modules = folder.parents[3] / program.PROGRAM / "lib" / f"python{target.python}/site-packages"
    (folder / "copyright").write_text(licences.copyright_file(others, modules), encoding="utf-8")
    changes = (
        f"holdfast ({version(project, target)}) stable; urgency=medium\n\n"
        f"  * Version {project.version}. CHANGELOG.md of the sources says what is new.\n\n"
        f" -- {VENDOR}  {formatdate(project.epoch)}\n"
    )
    (folder / "changelog.Debian.gz").write_bytes(gzip.compress(changes.encode(), 9, mtime=0))
    whole = (ROOT / "CHANGELOG.md").read_bytes()
    (folder / "changelog.gz").write_bytes(gzip.compress(whole, 9, mtime=0))
    for page in sorted((folder.parents[1] / "man").rglob("*.[1-8]")):
        packed = gzip.compress(page.read_bytes(), 9, mtime=0)
        page.with_name(f"{page.name}.gz").write_bytes(packed)
        page.unlink()
    lintian = folder.parents[1] / "lintian" / "overrides" / "holdfast"
    lintian.parent.mkdir(parents=True)
    lintian.write_bytes((DEBIAN / "lintian-overrides").read_bytes())


def _control(root: Path, project: Project, target: Target) -> None:
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    folder = root / "DEBIAN"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    control = _CONTROL.format(
        version=version(project, target),
        machine=target.debian_machine,
        vendor=VENDOR,
        kilobytes=sum(-(-path.stat().st_size // 1024) for path in files),
        python=target.python,
        summary=f"{project.summary[0].lower()}{project.summary[1:]}",
    )
    _write(folder / "control", control)
    _write(folder / "conffiles", "/etc/holdfast/config.toml\n")
    sums = (f"{_md5(path)}  {path.relative_to(root)}\n" for path in files)
    _write(folder / "md5sums", "".join(sums))
    for name in SCRIPTS:
        _write(folder / name, rendered(DEBIAN / name), mode=0o755)


def _write(path: Path, text: str, *, mode: int = 0o644) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
    path.chmod(mode)


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _run(command: list[str], project: Project) -> None:
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(project.epoch), "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise BuildError(f"{command[0]} isn't installed; docs/install.md lists the tools") from error
    if done.returncode != 0:
        raise BuildError(f"{command[0]} ended with {done.returncode}:\n{done.stderr.strip()}")

"""The Windows installer, built on Linux with NSIS.

What is installed, in a folder of each installation's own (service/windows/programs.py):

    python\\    the interpreter that --python-dir names, and a ._pth of ours, so
               that it looks nowhere else for modules
    lib\\       the wheels of the lock
    beside\\    what lies beside that folder, where people look for it: agentctl.cmd;
               agentctl-service.cmd, which makes and starts the services; the
               example of a configuration; the uninstaller

The interpreter is what `python-3.X-embed-amd64.zip` of python.org holds, or a
folder like it: python.exe, python3XX.dll and the standard library. Only its
files are taken, not what is in its site-packages.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense

from builder import sbom, unpack
from builder.errors import BuildError
from builder.job import Job
from builder.project import ROOT
from builder.wheels import digest_of

WINDOWS = ROOT / "packaging" / "windows"
PARTS = ("agent", "feed", "service")
NOT_OURS = ("site-packages", "__pycache__", "test", "tests")
# What pywin32's .pth file would add to a Python that reads it.
LIBRARIES = ("", "win32", "win32\\lib", "Pythonwin")
PROGRAM = "%~dp0@PROGRAM@"  # as service/windows/programs.py fills it in
UNINSTALLER = "uninstall.exe"
COMMANDS = {
    "agentctl.cmd": f'@"{PROGRAM}\\python\\python.exe" -I -m agent.ctl %*\r\n',
    "agentctl-service.cmd": (
        f'@"{PROGRAM}\\python\\python.exe" -I "{PROGRAM}\\setup_agent.py" finish %*\r\n'
    ),
}


class Interpreter(NamedTuple):
    """A Windows Python to bundle."""

    folder: Path
    library: Path  # python3XX.dll
    version: str


def build(job: Job) -> list[Path]:
    """Write the installer and its bill of materials; returns their paths. Raises BuildError."""
    interpreter = _interpreter(job)
    root = job.work / "windows"
    _lay_out(root, interpreter, job)
    package = job.out / f"holdfast-{job.project.version}-{job.target.machine}.exe"
    script = job.work / "holdfast.nsi"
    script.write_text(_script(root, package, job), encoding="utf-8")
    for path in [root, *sorted(root.rglob("*"))]:
        os.utime(path, (job.project.epoch, job.project.epoch))
    job.run("makensis", "-V2", "-WX", "-INPUTCHARSET", "UTF8", str(script))
    return [package, sbom.write(job, package, root / "lib", _listed(interpreter))]


def _interpreter(job: Job) -> Interpreter:
    if job.python_dir is None:
        raise BuildError(
            "the installer bundles a Windows Python: unpack python.org's "
            f"python-{job.target.python}.X-embed-amd64.zip and name the folder with --python-dir"
        )
    library = job.python_dir / f"python{job.target.python.replace('.', '')}.dll"
    if not library.exists() or not (job.python_dir / "python.exe").exists():
        raise BuildError(
            f"{job.python_dir} has no python.exe with {library.name}: expected a Windows "
            f"Python {job.target.python}"
        )
    # The third number stands in the library as text, beside its build's.
    found = re.search(rf"{re.escape(job.target.python)}\.\d+".encode(), library.read_bytes())
    version = found[0].decode() if found else job.target.python
    return Interpreter(job.python_dir, library, version)


def _lay_out(root: Path, interpreter: Interpreter, job: Job) -> None:
    shutil.copytree(interpreter.folder, root / "python", ignore=shutil.ignore_patterns(*NOT_OURS))
    lib = root / "lib"
    for wheel in job.others:
        unpack.unpack(wheel, lib)
    unpack.unpack(job.own, lib, only=PARTS)
    for library in sorted((lib / "pywin32_system32").glob("*.dll")):
        shutil.copyfile(library, root / "python" / library.name)
    (root / "python" / f"{interpreter.library.stem}._pth").write_text(
        "\n".join(_search_path(root / "python", interpreter)) + "\n", encoding="utf-8"
    )
    beside = root / "beside"
    beside.mkdir()
    for name, text in COMMANDS.items():
        (beside / name).write_text(text, encoding="utf-8", newline="")
    shutil.copyfile(ROOT / "config.example.toml", beside / "config.example.toml")
    for path in (WINDOWS / "setup_agent.py", WINDOWS / "config.toml"):
        shutil.copyfile(path, root / path.name)


def _search_path(folder: Path, interpreter: Interpreter) -> list[str]:
    """The lines of ._pth, relative to the interpreter."""
    standard = [f"{interpreter.library.stem}.zip", "Lib", "DLLs"]
    return [
        *(name for name in standard if (folder / name).exists()),
        ".",
        *(f"..\\lib\\{name}".rstrip("\\") for name in LIBRARIES),
    ]


def _script(root: Path, package: Path, job: Job) -> str:
    text = (WINDOWS / "holdfast.nsi").read_text(encoding="utf-8")
    files = [path for path in root.rglob("*") if path.is_file()]
    beside = sorted([*(path.name for path in (root / "beside").iterdir()), UNINSTALLER])
    values = {
        "VERSION": job.project.version,
        "PUBLISHER": job.project.packager.partition(" <")[0],
        "OUT": str(package),
        "UNINSTALLER": UNINSTALLER,
        "COMPRESSOR": "/SOLID lzma" if job.level else "zlib",
        "KILOBYTES": str(sum(path.stat().st_size for path in files) // 1024),
        "FILES": "\n".join(_copying(root)),
        "REMOVALS": "\n".join(f'    Delete "$INSTDIR\\{name}"' for name in beside),
    }
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def _copying(root: Path) -> list[str]:
    """The lines that copy every file, sorted: File /r takes them as the disk has them."""
    lines = []
    for folder in [root, *sorted(path for path in root.rglob("*") if path.is_dir())]:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        if files:
            place = str(folder.relative_to(root)).replace("/", "\\").strip(".")
            lines.append(f'    SetOutPath "$program\\{place}"'.replace('\\"', '"'))
            lines += [f'    File "{str(path).replace("$", "$$")}"' for path in files]
    return lines


def _listed(interpreter: Interpreter) -> Component:
    return Component(
        type=ComponentType.PLATFORM,
        name="cpython",
        version=interpreter.version,
        bom_ref=f"pkg:generic/cpython@{interpreter.version}",
        licenses=[DisjunctiveLicense(id="PSF-2.0")],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest_of(interpreter.library))],
    )

"""A real Windows CPython under Wine, made once and kept in a folder.

    python -m tests.system.windows.environment build/wine

`make test-windows` does so. Needs Debian's wine64 and gcc-mingw-w64-x86-64, and
a package index. What is official comes from wheels, held against hashes:
python311.dll with the standard library's extension modules (panda3d carries them
in deploy_libs/), and the agent's dependencies (requirements/agent.txt). The
standard library's sources are those of the Python 3.11 that runs this. Three
files are built here: a python.exe that calls Py_Main, a python3.dll that forwards
to python311.dll, and a bcryptprimitives.dll, which Wine 8 lacks.

The stamp `.made` is written last; a folder without it is made again.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[3]
LOCK = ROOT / "requirements" / "agent.txt"
INTERPRETER = (
    "panda3d==1.10.16 "
    "--hash=sha256:37acfb92655c4226879f95c988e2ef1449a53c54486d6c1ebc00e2772429af82"
)
COMPILER = "x86_64-w64-mingw32-gcc"
DUMPER = "x86_64-w64-mingw32-objdump"
COMMANDS = ("wine", "wineserver", COMPILER, DUMPER)
VERSION = "3.11"

PYTHON_EXE = r"""
#include <windows.h>
int wmain(int argc, wchar_t **argv) {
    HMODULE python = LoadLibraryW(L"python311.dll");
    int (*run)(int, wchar_t **) =
        python ? (int (*)(int, wchar_t **))GetProcAddress(python, "Py_Main") : 0;
    return run ? run(argc, argv) : 125;
}
"""
FORWARDER = "int DllMainCRTStartup(void) { return 1; }\n"
RANDOM = r"""
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(void *buffer, ULONG length);
__declspec(dllexport) BOOL WINAPI ProcessPrng(unsigned char *data, SIZE_T length) {
    return SystemFunction036(data, (ULONG)length);
}
"""


def make(folder: Path) -> None:
    """Make the environment in `folder` unless it is there already.

    Raises SystemExit, with the reason: it can't be made here.
    """
    stamp, wanted = folder / ".made", _recipe()
    if stamp.exists() and stamp.read_text(encoding="ascii") == wanted:
        return
    if absent := [name for name in COMMANDS if shutil.which(name) is None]:
        raise SystemExit(f"needs {', '.join(absent)}")
    if sys.version_info[:2] != (3, 11):
        raise SystemExit(f"needs Python {VERSION}'s library, this is {sys.version.split()[0]}")
    shutil.rmtree(folder, ignore_errors=True)
    python = folder / "python"
    (python / "DLLs").mkdir(parents=True)
    _fetch(folder / "interpreter", INTERPRETER)
    _fetch(folder / "wheels", _windows_lines(LOCK.read_text(encoding="utf-8")))
    _place_interpreter(folder, python)
    _place_library(python)
    _build(folder / "build", python)
    for wheel in sorted((folder / "wheels").glob("*.whl")):
        _unzip(wheel, python / "Lib" / "site-packages")
    _finish_pywin32(python)
    stamp.write_text(wanted, encoding="ascii")


def _recipe() -> str:
    return hashlib.sha256(Path(__file__).read_bytes() + LOCK.read_bytes()).hexdigest()


def _windows_lines(lock: str) -> str:
    """The pins that hold on Windows, markers taken off: pip would judge them for this system."""
    kept = []
    for entry in re.split(r"\n(?=[a-z0-9])", lock):
        pin, _, marker = entry.partition(" \\\n")[0].partition(" ; ")
        if not re.match(r"[a-z0-9-]+==", pin):
            continue
        foreign = "sys_platform" in marker and "win32" not in marker
        if not foreign and "python_full_version >= '3.1" not in marker:
            kept.append(entry.replace(f" ; {marker}", "") if marker else entry)
    return "\n".join(kept)


def _fetch(folder: Path, lines: str) -> None:
    folder.mkdir()
    wanted = folder / "wanted.txt"
    wanted.write_text(lines + "\n", encoding="utf-8")
    options = ("--platform", "win_amd64", "--python-version", VERSION, "--only-binary=:all:")
    _run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--require-hashes", *options, "-d", str(folder), "-r", str(wanted)),
    )


def _place_interpreter(folder: Path, python: Path) -> None:
    (wheel,) = (folder / "interpreter").glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        for name in opened.namelist():
            file = Path(name).name
            if not name.startswith("deploy_libs/") or file.startswith("api-ms-"):
                continue
            beside = file.lower().startswith(("python3", "vcruntime"))
            place = python if beside else python / "DLLs"
            (place / file).write_bytes(opened.read(name))


def _place_library(python: Path) -> None:
    import sysconfig

    source = Path(sysconfig.get_path("stdlib"))
    left_out = (
        "test",
        "tests",
        "lib-dynload",
        "site-packages",
        "sitecustomize.py",  # Debian has one there, which would hide the tests' own
        "__pycache__",
        "config-*",
        "idlelib",
    )
    shutil.copytree(source, python / "Lib", ignore=shutil.ignore_patterns(*left_out))


def _build(work: Path, python: Path) -> None:
    work.mkdir()
    sources = {"python.c": PYTHON_EXE, "forward.c": FORWARDER, "random.c": RANDOM}
    for name, text in sources.items():
        (work / name).write_text(text, encoding="ascii")
    _run(COMPILER, "-municode", "-O1", "-o", str(python / "python.exe"), str(work / "python.c"))
    names = _exports(python / "python311.dll")
    lines = "\n".join(f"  {name} = python311.{name}" for name in names)
    (work / "python3.def").write_text(f"LIBRARY python3\nEXPORTS\n{lines}\n", encoding="ascii")
    forward = (str(work / "python3.def"), str(work / "forward.c"))
    _run(COMPILER, "-shared", "-nostdlib", "-o", str(python / "python3.dll"), *forward)
    random = (str(work / "random.c"), "-ladvapi32")
    _run(COMPILER, "-shared", "-O1", "-o", str(python / "bcryptprimitives.dll"), *random)


def _exports(library: Path) -> list[str]:
    listed = _run(DUMPER, "-p", str(library))
    table = listed.partition("[Ordinal/Name Pointer] Table")[2]
    return re.findall(r"\[\s*\d+\]\s+(?:\+base\[\s*\d+\]\s+\w+\s+)?(_?Py\w+)", table)


def _unzip(wheel: Path, place: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(place)


def _finish_pywin32(python: Path) -> None:
    """What pywin32's .pth and post-install script would do."""
    packages = python / "Lib" / "site-packages"
    for library in (packages / "pywin32_system32").glob("*.dll"):
        shutil.copy(library, python / library.name)
    folders = ("win32", "win32\\lib", "Pythonwin")
    (packages / "pywin32.pth").write_text("\n".join(folders) + "\n", encoding="ascii")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:6])}…: {done.stderr[-2000:] or done.stdout[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    make(Path(sys.argv[1]).absolute())

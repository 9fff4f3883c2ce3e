"""Make the virtual environment that every make target runs in.

    python requirements/prepare.py .venv

Needs nothing but Python 3.11 with its own pip, and a package index.

 * Only what requirements/dev.txt pins is installed, each file held against
   its hash; the project itself is installed from this folder, in place.
 * The stamp `.ready` is written last: a set-up that failed or was stopped is
   done again from an empty folder.
 * The stamp holds digests of what was installed from, so a changed lock makes
   a new environment, and a file that was merely touched costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
import tomllib
import venv
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "dev.txt"
PIP_LINES_KEPT = 15  # of pip's output, shown when it fails
STOPPED_BY_USER = 130  # 128 + SIGINT, as shells say it


class SetupError(Exception):
    """The environment can't be made; the text says why and what to do."""


def main(folder: Path) -> int:
    """Bring the environment in `folder` up to date; returns the exit code."""
    started = time.monotonic()
    try:
        changed = prepare(folder)
    except SetupError as error:
        print(f"set-up failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up stopped; the next make starts it afresh", file=sys.stderr)
        return STOPPED_BY_USER
    if changed:
        print(f"{folder} is ready after {time.monotonic() - started:.0f} s", flush=True)
    return 0


def prepare(folder: Path) -> bool:
    """Install what differs from the stamp; True if anything did."""
    stamp, python = folder / ".ready", _python_of(folder)
    wanted = {"packages": _packages_digest(), "project": _project_digest()}
    found = _read_stamp(stamp) if python.exists() else {}
    if found == wanted:
        stamp.touch()
        return False
    stamp.unlink(missing_ok=True)
    if found.get("packages") != wanted["packages"]:
        _create(folder)
        _install_packages(python)
    _install_project(python)
    _write_stamp(stamp, wanted)
    return True


def _python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _packages_digest() -> str:
    """Of the lock, and of what the scripts in the environment hold: version and place."""
    version = ".".join(map(str, sys.version_info[:2]))
    return _sha256(f"{version}\n{ROOT}\n".encode() + LOCK.read_bytes())


def _project_digest() -> str:
    """Of those parts of pyproject.toml that change what is installed."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    settings = tomllib.loads(text)
    parts = [settings.get("build-system"), settings["project"], settings["tool"].get("hatch")]
    return _sha256(json.dumps(parts, sort_keys=True).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_stamp(stamp: Path) -> dict[str, str]:
    """What the stamp says; empty when it is missing or isn't one of ours."""
    try:
        content = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_stamp(stamp: Path, content: dict[str, str]) -> None:
    temporary = stamp.with_name(".ready.new")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(stamp)


def _create(folder: Path) -> None:
    """An empty environment in `folder`, in place of the one that was there."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        raise SetupError(f"{folder} is not a virtual environment and won't be replaced")
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"making {folder} with Python {version}", flush=True)
    try:
        venv.create(folder, clear=True, with_pip=True, symlinks=sys.platform != "win32")
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(f"{folder} can't be made with {sys.executable}: {error}") from error


def _install_packages(python: Path) -> None:
    total = sum(line[:1].isalnum() for line in LOCK.read_text(encoding="utf-8").splitlines())
    print(f"fetching and installing {total} locked packages", flush=True)
    _pip(python, "--require-hashes", "-r", str(LOCK), total=total)


def _install_project(python: Path) -> None:
    print("installing holdfast in place", flush=True)
    _pip(python, "--no-deps", "--no-build-isolation", "-e", str(ROOT), total=0)


def _pip(python: Path, *arguments: str, total: int) -> None:
    """Run `pip install`; its own output is shown only when it fails."""
    options = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    command = [str(python), "-m", "pip", "install", *options, *arguments]
    kept: deque[str] = deque(maxlen=PIP_LINES_KEPT)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        progress = _Progress(total)
        for line in pip.stdout or ():
            kept.append(line)
            progress.show(line)
        progress.close()
    if pip.returncode != 0:
        sys.stderr.writelines(kept)
        raise SetupError(f"pip ended with {pip.returncode}; its last words are above")


class _Progress:
    """One line that counts packages on a terminal, a few lines elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._seen = 0
        self._terminal = sys.stdout.isatty()

    def show(self, line: str) -> None:
        words = line.split()
        if not self._total or not words:
            return
        if words[0] in ("Collecting", "Processing", "Ignoring"):
            self._seen += 1
            self._count()
        elif words[0] == "Installing":
            self._say("  fetched; unpacking and compiling")

    def close(self) -> None:
        if self._total and self._terminal:
            print(flush=True)

    def _count(self) -> None:
        if self._terminal or self._seen % 10 == 0:
            self._say(f"  {self._seen} of {self._total}")

    def _say(self, text: str) -> None:
        print(f"\r\033[K{text}" if self._terminal else text, end="", flush=True)
        if not self._terminal:
            print(flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

"""Runs Windows programs under Wine, in a prefix of its own.

Wine ends a prefix's services soon after the last program in it, and starts them
with the next one: `kept` holds it up, and leaving it is a shutdown.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.system.windows import environment

ROOT = Path(__file__).parents[3]
STARTING_S = 120.0


class Wine:
    """The Windows Python of `folder`, with a fresh prefix at `prefix`."""

    def __init__(self, folder: Path, prefix: Path) -> None:
        environment.make(folder)
        self.python = folder / "python" / "python.exe"
        self.drive_c = prefix / "drive_c"
        self._environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "WINEPREFIX": str(prefix),
            "WINEDEBUG": "-all",
            "WINEARCH": "win64",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        packages = folder / "python" / "Lib" / "site-packages"
        (packages / "holdfast.pth").write_text(f"{windows_path(ROOT)}\n")
        (packages / "sitecustomize.py").write_text("import tests.system.windows.stand_ins\n")

    def run(self, *command: str, seconds: float = STARTING_S) -> subprocess.CompletedProcess[str]:
        """A program, to its end; its output is a pipe, which is what Python needs here."""
        return subprocess.run(
            ["wine", *command],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )

    def module(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """python -m, isolated as the services are."""
        return self.run(str(self.python), "-I", "-m", name, *arguments)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """The machine is up; what it starts by itself is, too."""
        code = "import sys; print('up', flush=True); sys.stdin.read()"
        keeper = subprocess.Popen(
            ["wine", str(self.python), "-I", "-c", code],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert keeper.stdout is not None
        assert keeper.stdout.readline().strip() == "up"
        try:
            yield
        finally:
            keeper.communicate()
            self.shut_down()

    def be_patient(self) -> None:
        """Let a service take two minutes to connect, on a busy machine; Wine allows ten seconds."""
        key = "HKLM\\System\\CurrentControlSet\\Control"
        self.run("reg", "add", key, "/v", "ServicesPipeTimeout", "/d", "120000", "/f")
        self.shut_down()  # it is read when the service manager starts

    def shut_down(self) -> None:
        """End every program of this prefix."""
        subprocess.run(["wineserver", "-k"], env=self._environment, check=False)
        subprocess.run(["wineserver", "-w"], env=self._environment, check=False, timeout=60)

    def sc(self, *arguments: str) -> str:
        """Windows' own service control; its output may be inherited by what it starts."""
        log = self.drive_c.parent / "sc.log"
        with log.open("w") as out:
            subprocess.run(
                ["wine", "sc", *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                timeout=STARTING_S,
                check=False,
            )
        return log.read_text(errors="replace")


def windows_path(path: Path) -> str:
    """How Wine's programs call a path of this machine."""
    return "Z:" + str(path.absolute()).replace("/", "\\")


def missing() -> str:
    """Why nothing can run here; empty when it can."""
    if "HOLDFAST_WINE" not in os.environ:
        return "HOLDFAST_WINE names no folder for the Windows Python (docs/development.md)"
    absent = [name for name in environment.COMMANDS if shutil.which(name) is None]
    return f"needs {', '.join(absent)}" if absent else ""

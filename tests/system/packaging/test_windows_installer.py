"""The Windows installer: installed, configured and removed under Wine.

HOLDFAST_WINE names the folder of the Windows Python that tests/system/windows
makes; it is bundled here in the place of python.org's.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import packages

INTERPRETER = Path(os.environ.get("HOLDFAST_WINE", "/nowhere"), "python")
INSTALLED = "C:\\Program Files\\Holdfast"
PYTHON = f"{INSTALLED}\\python\\python.exe"

pytestmark = [
    pytest.mark.system("makensis", "wine"),
    pytest.mark.xdist_group("wine"),
    pytest.mark.skipif(
        not (INTERPRETER / "python.exe").exists(), reason="needs HOLDFAST_WINE, a Windows Python"
    ),
    pytest.mark.skipif(
        not (packages.ROOT / "service" / "windows").exists(), reason="needs service/windows"
    ),
    pytest.mark.timeout(900),
]


class Machine:
    """A Wine prefix of the test's own."""

    def __init__(self, prefix: Path) -> None:
        self.drive = prefix / "drive_c"
        self.program = self.drive / "Program Files" / "Holdfast"
        self.data = self.drive / "ProgramData" / "Holdfast"
        self.environment = {**os.environ, "WINEPREFIX": str(prefix), "WINEDEBUG": "-all"}

    def run(self, *command: str | Path) -> tuple[int, str]:
        """The exit code and what was said. What it leaves running may hold the pipe open."""
        with subprocess.Popen(
            ["wine", *map(str, command)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            assert process.stdout is not None
            code = process.wait(300)
            os.set_blocking(process.stdout.fileno(), False)
            return code, (process.stdout.read() or b"").decode(errors="replace")

    def has_service(self) -> bool:
        return self.run("sc", "query", "HoldfastAgent")[0] == 0


@pytest.fixture(scope="module")
def installer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("windows") / "dist"
    packages.build(packages.ROOT, out, "windows", f"--python-dir={INTERPRETER}")
    (made,) = out.glob("*.exe")
    return made


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path / "prefix")
    made.drive.parent.mkdir()
    subprocess.run(
        ["wineboot", "--init"], env=made.environment, check=True, stderr=subprocess.DEVNULL
    )
    yield made
    subprocess.run(["wineserver", "-k"], env=made.environment, check=False)


def test_an_installed_agent_waits_for_its_configuration_and_leaves_nothing(
    installer: Path, machine: Machine, tmp_path: Path
) -> None:
    assert machine.run(installer, "/S")[0] == 0
    assert (machine.data / "config.toml").exists()
    assert not machine.has_service()
    code, said = machine.run(PYTHON, "-I", "-m", "agent.ctl", "version", "--json")
    assert code == 0, said
    assert json.loads(said)["agentctl"]

    brought = tmp_path / "brought"
    brought.mkdir()
    (brought / "config.toml").write_text('[[sources]]\nurl = "file:///C:/nowhere"\n')
    (brought / "root.json").write_text("{}")
    path = "Z:" + str(brought).replace("/", "\\")
    code, said = machine.run(PYTHON, "-I", f"{INSTALLED}\\setup_agent.py", "finish", "--from", path)
    assert (machine.data / "root.json").exists(), said
    assert machine.has_service()

    # The uninstaller goes on by itself, from a copy in another folder.
    assert machine.run(f"{INSTALLED}\\uninstall.exe", "/S", "/PURGE")[0] == 0
    until = time.monotonic() + 120
    while (machine.program.exists() or machine.has_service()) and time.monotonic() < until:
        time.sleep(0.5)
    assert not machine.program.exists()
    assert not machine.data.exists()
    assert not machine.has_service()


def test_the_installer_is_the_same_twice(installer: Path, tmp_path: Path) -> None:
    packages.build(packages.ROOT, tmp_path / "out", "windows", f"--python-dir={INTERPRETER}")
    assert (tmp_path / "out" / installer.name).read_bytes() == installer.read_bytes()

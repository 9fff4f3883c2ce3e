"""The Windows installer: installed, configured and removed under Wine.

HOLDFAST_WINE names the folder of the Windows Python that tests/system/windows
makes; it is bundled here in the place of python.org's.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import packages

INTERPRETER = Path(os.environ.get("HOLDFAST_WINE", "/nowhere"), "python")
INSTALLED = "C:\\Program Files\\Holdfast"
SERVICES = "HKLM\\SYSTEM\\CurrentControlSet\\Services"
CONFIG = """
fetcher_user = ""
sources = [{ url = "file:///C:/nowhere" }]
"""
# setup_agent.py finish --from FOLDER, as it is when the second service can't be made.
CUT_OFF = """
import runpy, sys
from service.windows import manager
make = manager._install
def fail(handle, service, command):
    if service.name == "HoldfastAgent":
        raise OSError("no second one")
    make(handle, service, command)
manager._install = fail
sys.argv = [sys.argv[1], "finish", "--from", sys.argv[2]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

pytestmark = [
    pytest.mark.system("makensis", "wine"),
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

    def start(self, *command: str | Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["wine", *map(str, command)],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, *command: str | Path) -> tuple[int, str]:
        """The exit code and what was said. What it leaves running may hold the pipe open."""
        with self.start(*command) as process:
            assert process.stdout is not None
            code = process.wait(300)
            os.set_blocking(process.stdout.fileno(), False)
            return code, (process.stdout.read() or b"").decode(errors="replace")

    def be_patient(self) -> None:
        """Let a service take two minutes to connect; Wine allows ten seconds."""
        key = "HKLM\\System\\CurrentControlSet\\Control"
        self.run("reg", "add", key, "/v", "ServicesPipeTimeout", "/d", "120000", "/f")
        self.shut_down()

    def shut_down(self) -> None:
        for option in ("-k", "-w"):
            subprocess.run(["wineserver", option], env=self.environment, check=False, timeout=60)

    @contextlib.contextmanager
    def running(self, python: str | Path, holds: str = "") -> Iterator[None]:
        """Something runs from that Python. While anything runs, Wine keeps its services up."""
        held = f"f = open({holds!r}); " if holds else ""
        code = f"import sys; {held}print('up', flush=True); sys.stdin.read()"
        with self.start(python, "-I", "-c", code) as process:
            assert process.stdout is not None
            assert b"up" in process.stdout.readline()
            yield
            # `with` ends its input and waits for it

    def programs(self) -> list[str]:
        return sorted(path.name for path in self.program.glob("program-*"))

    def files(self, name: str) -> set[Path]:
        """Of a program, without the byte code that it writes itself."""
        found = (self.program / name).rglob("*")
        return {path for path in found if "__pycache__" not in path.parts}

    def python(self, *arguments: str) -> tuple[int, str]:
        """The installed program's own."""
        return self.run(f"{INSTALLED}\\{self.programs()[-1]}\\python\\python.exe", "-I", *arguments)

    def has_service(self) -> bool:
        return self.run("sc", "query", "HoldfastAgent")[0] == 0

    def served_by(self) -> set[str]:
        """The programs that the services' command lines name."""
        lines = [
            self.run("reg", "query", f"{SERVICES}\\{name}", "/v", "ImagePath")[1]
            for name in ("HoldfastAgent", "HoldfastBootGuard")
        ]
        return set(re.findall(r"Holdfast\\(program-[^\\]+)", "\n".join(lines)))

    def state_of(self, name: str) -> str:
        said = self.run("sc", "query", name)[1]
        found = re.search(r"STATE\s*:\s*\d+\s+(\w+)", said)
        return found[1] if found else said

    def wait_for(self, name: str, state: str) -> None:
        until = time.monotonic() + 120
        while (now := self.state_of(name)) != state:
            assert time.monotonic() < until, f"{name}: {now}"
            time.sleep(0.5)

    def remove(self, *options: str) -> None:
        """The uninstaller goes on by itself, from a copy in another folder."""
        assert self.run(f"{INSTALLED}\\uninstall.exe", "/S", *options)[0] == 0
        until = time.monotonic() + 120
        while (self.program / "uninstall.exe").exists() or self.has_service():
            assert time.monotonic() < until, [*self.program.iterdir()]
            time.sleep(0.5)


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
    made.be_patient()
    try:
        with made.running(INTERPRETER / "python.exe"):
            yield made
    finally:
        made.shut_down()


def brought(folder: Path) -> str:
    """A folder for /CONFIG, as Windows calls it."""
    folder.mkdir()
    (folder / "config.toml").write_text(CONFIG)
    (folder / "root.json").write_text("{}")
    return "Z:" + str(folder).replace("/", "\\")


def test_an_installed_agent_waits_for_its_configuration_and_leaves_nothing(
    installer: Path, machine: Machine, tmp_path: Path
) -> None:
    assert machine.run(installer, "/S")[0] == 0
    assert (machine.data / "config.toml").exists()
    assert not machine.has_service()
    code, said = machine.run("cmd", "/c", f"{INSTALLED}\\agentctl.cmd", "version", "--json")
    assert code == 0, said
    assert json.loads(said)["agentctl"]

    (name,) = machine.programs()
    setup = f"{INSTALLED}\\{name}\\setup_agent.py"
    # One that fails between the two services is made up for by the next.
    code, said = machine.python("-c", CUT_OFF, setup, brought(tmp_path / "brought"))
    assert code == 1, said
    assert not machine.has_service()
    code, said = machine.python(setup, "finish")
    assert code == 0, said
    assert (machine.data / "root.json").exists()
    machine.wait_for("HoldfastAgent", "RUNNING")

    sealed = machine.data / "state" / "slots" / "a" / "engine.dll"
    sealed.parent.mkdir(parents=True)
    sealed.write_bytes(b"MZ")
    sealed.chmod(0o444)
    with machine.running(INTERPRETER / "python.exe", holds="C:\\ProgramData\\Holdfast\\root.json"):
        code, said = machine.python(setup, "remove", "--purge")
        assert code == 3, said
        assert "In use, so it stays" in said
        assert "root.json" in said
    assert not sealed.exists()

    # As docs/install.md says for who wants to wait for the end.
    shutil.copy(machine.program / "uninstall.exe", machine.drive)
    where = f"_?={INSTALLED}".split()  # without quotes
    assert machine.run("C:\\uninstall.exe", "/S", "/PURGE", *where)[0] == 0
    assert not machine.program.exists()
    assert not machine.data.exists()
    assert not machine.has_service()


def test_an_upgrade_goes_beside_what_runs_and_is_what_runs_then(
    installer: Path, machine: Machine, tmp_path: Path
) -> None:
    config = brought(tmp_path / "brought")
    assert machine.run(installer, "/S", f"/CONFIG={config}")[0] == 0
    machine.wait_for("HoldfastAgent", "RUNNING")
    (old,) = machine.programs()
    whole = machine.files(old)

    with machine.running(f"{INSTALLED}\\{old}\\python\\python.exe"):
        assert machine.run(installer, "/S")[0] == 0
        assert machine.files(old) == whole
        new = machine.programs()[-1]
        assert machine.served_by() == {new} != {old}
        for name in ("HoldfastAgent", "HoldfastBootGuard"):
            machine.wait_for(name, "RUNNING")
        assert new in (machine.program / "agentctl.cmd").read_text()

    # One that fails leaves what runs as it is.
    (tmp_path / "wrong" / "config.toml").mkdir(parents=True)
    wrong = "Z:" + str(tmp_path / "wrong").replace("/", "\\")
    assert machine.run(installer, "/S", f"/CONFIG={wrong}")[0] == 3
    assert machine.served_by() == {new}
    machine.wait_for("HoldfastAgent", "RUNNING")
    assert new in (machine.program / "agentctl.cmd").read_text()
    assert machine.programs() == [new]

    # Windows refuses a stop while an engine depends on it; Wine doesn't.
    control = "import win32serviceutil as w; w.ControlService('{}', 200)"
    for name in ("HoldfastAgent", "HoldfastBootGuard"):
        code, said = machine.python("-c", control.format(name))
        assert code == 0, said
    assert machine.state_of("HoldfastAgent") == "RUNNING"  # the guard's own control isn't its
    machine.wait_for("HoldfastBootGuard", "STOPPED")
    machine.wait_for("HoldfastAgent", "RUNNING")


def test_what_was_removed_while_in_use_can_be_installed_again(
    installer: Path, machine: Machine, tmp_path: Path
) -> None:
    config = brought(tmp_path / "brought")
    assert machine.run(installer, "/S", f"/CONFIG={config}")[0] == 0
    (old,) = machine.programs()
    with machine.running(f"{INSTALLED}\\{old}\\python\\python.exe"):
        machine.wait_for("HoldfastAgent", "RUNNING")
        machine.remove()
        assert (machine.program / old / "python" / "python.exe").exists()
        assert machine.run(installer, "/S")[0] == 0
        machine.wait_for("HoldfastAgent", "RUNNING")
        assert machine.served_by() == {machine.programs()[-1]} != {old}


def test_the_installer_is_the_same_twice(installer: Path, tmp_path: Path) -> None:
    packages.build(packages.ROOT, tmp_path / "out", "windows", f"--python-dir={INTERPRETER}")
    assert (tmp_path / "out" / installer.name).read_bytes() == installer.read_bytes()

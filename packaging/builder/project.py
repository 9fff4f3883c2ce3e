"""What is built, for which machines, and what time it is in the packages."""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path
from typing import NamedTuple

from builder.errors import BuildError

ROOT = Path(__file__).resolve().parents[2]
PACKAGER = "Holdfast packagers <packages@holdfast.invalid>"  # unless the environment says
GLIBC = "2.34"  # RHEL 9 has it; Debian 12 has 2.36
REVISION = 1  # of the packaging, within one version of the program


class Project(NamedTuple):
    """What pyproject.toml says, and the time of the last commit."""

    version: str
    summary: str
    epoch: int  # Unix seconds; no file in a package is younger
    packager: str  # who answers for the packages: `Name <address>`


class Target(NamedTuple):
    """The machines that a package is for."""

    system: str  # "linux" or "win32", as sys.platform says it
    machine: str  # "x86_64" or "aarch64"
    python: str  # "3.11": compiled wheels fit one minor version

    @property
    def platforms(self) -> list[str]:
        """Tags of the wheels that run there, the best first."""
        if self.system == "win32":
            return [{"x86_64": "win_amd64", "aarch64": "win_arm64"}[self.machine]]
        tags = [
            f"manylinux_{GLIBC.replace('.', '_')}",
            "manylinux_2_28",
            "manylinux_2_17",
            "manylinux2014",
        ]
        if self.machine == "x86_64":
            tags += ["manylinux_2_12", "manylinux2010", "manylinux_2_5", "manylinux1"]
        return [f"{tag}_{self.machine}" for tag in tags]

    @property
    def systemd(self) -> int:
        """The oldest systemd on a distribution whose own Python is this one."""
        # 3.11: Debian 12, RHEL 9. Since 3.12: Ubuntu 24.04, Debian 13, RHEL 10.
        return 252 if self.python == "3.11" else 255

    @property
    def debian_machine(self) -> str:
        return {"x86_64": "amd64", "aarch64": "arm64"}[self.machine]

    @property
    def environment(self) -> dict[str, str]:
        """What markers in the locks are held against."""
        windows = self.system == "win32"
        machine = {"x86_64": "AMD64", "aarch64": "ARM64"}[self.machine] if windows else self.machine
        return {
            "implementation_name": "cpython",
            "os_name": "nt" if windows else "posix",
            "platform_machine": machine,
            "platform_python_implementation": "CPython",
            "platform_system": "Windows" if windows else "Linux",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": self.system,
        }

    def __str__(self) -> str:
        return f"{self.system}-{self.machine}-{self.python}"


def read() -> Project:
    """Raises BuildError: no time to build with."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return Project(
        version=table["version"],
        summary=table["description"],
        epoch=_epoch(),
        packager=os.environ.get("PACKAGER", PACKAGER),
    )


def _epoch() -> int:
    named = os.environ.get("SOURCE_DATE_EPOCH", "")
    if named.isdecimal():
        return int(named)
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(
            f"{ROOT}: git can't tell the time of the last commit ({error}); "
            "set SOURCE_DATE_EPOCH to the Unix time that the packages shall have"
        ) from error
    return int(done.stdout)

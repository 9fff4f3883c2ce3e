"""The units as systemd reads them: no word unknown, no more rights than is said.

The rest of what they promise is established in a booted guest.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from agent.config import Watch
from agent.guardian.health import Prober

UNITS = Path(__file__).parents[2] / "service" / "systemd"
NAMES = sorted(path.name for path in UNITS.glob("*.service"))

# Overall exposure, 0 to 10, as `systemd-analyze security` of 252 adds it up. What
# needn't be root stays far below 3; the guardian's is what is left of root's.
EXPOSURE_MAX = {
    "holdfast-agent.service": 3.4,
    "holdfast-bootguard.service": 3.0,
    "holdfast-fetcher.service": 1.1,
    "holdfast-serverd.service": 1.1,
}

# What systemd builds a file system of its own for (systemd.exec(5); PrivateNetwork= since 254).
OWN_FILES = (
    r"Private\w+|Protect(System|Home|Control\w+|Kernel\w+|Proc)|ProcSubset|Root\w+|Mount\w+"
    r"|Bind\w+|TemporaryFileSystem|(ReadWrite|ReadOnly|Inaccessible|Exec|NoExec)Paths"
    r"|DynamicUser|Extension\w+|\w+Credential\w*"
)


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "SYSTEMD_COLORS": "0", "SYSTEMD_LOG_LEVEL": "notice"},
        check=False,
    )


@pytest.mark.system("systemd-analyze")
def test_every_unit_has_a_limit_here() -> None:
    assert set(NAMES) == set(EXPOSURE_MAX)


@pytest.mark.system("systemd-analyze")
@pytest.mark.parametrize("name", NAMES)
def test_exposure_is_at_most_what_the_threat_model_says(name: str) -> None:
    threshold = f"--threshold={EXPOSURE_MAX[name] * 10:.0f}"
    done = analyze("security", "--offline=true", threshold, str(UNITS / name))
    assert done.returncode == 0, done.stdout[-3000:]
    said = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert said
    assert float(said[1]) <= EXPOSURE_MAX[name]


def test_the_boot_guard_needs_no_file_system_of_its_own() -> None:
    """It starts while the machine mounts and clears up: that can't always be made."""
    text = (UNITS / "holdfast-bootguard.service").read_text()
    assert re.findall(rf"^(?:{OWN_FILES})=.*", text, re.MULTILINE) == []


@pytest.mark.system("systemd-analyze")
@pytest.mark.parametrize("name", NAMES)
def test_systemd_understands_every_line(name: str, tmp_path: Path) -> None:
    """Where the programs will be there is something else, so that only lines are judged."""
    for path in UNITS.glob("*.service"):
        text = re.sub(r"/opt/holdfast(-server)?/bin/\S+", "/bin/true", path.read_text())
        (tmp_path / path.name).write_text(text)
    done = analyze("verify", "--man=no", "--recursive-errors=no", str(tmp_path / name))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.system("systemctl", "systemd-run")
def test_a_unit_of_this_machine_is_watched_as_a_whole() -> None:
    if not Path("/run/systemd/system").is_dir():
        pytest.skip("this machine wasn't booted with systemd")
    unit = f"holdfast-test-{os.getpid()}.service"
    spin = "while :; do sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done'; done"
    subprocess.run(["systemd-run", "--quiet", f"--unit={unit}", "sh", "-c", spin], check=True)
    prober = Prober([Watch(name="engine", unit=unit)])
    try:
        end = time.monotonic() + 20
        while (seen := prober.sample(time.monotonic()).processes[0]).root is None:
            assert time.monotonic() < end, seen.problem
            time.sleep(0.1)
        time.sleep(2)
        seen = prober.sample(time.monotonic()).processes[0]
        assert seen.cpu_share > 0.2
        assert seen.restarts == 0
    finally:
        prober.close()
        subprocess.run(["systemctl", "stop", unit], check=False)

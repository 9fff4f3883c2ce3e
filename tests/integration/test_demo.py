"""The demo when it doesn't get to its end: what it says, and that nothing is left of it.

Its whole run is `make demo`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from agent import config

pytest.importorskip("yara_x", reason="yara-x has no wheel for this platform")

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "yara" / "demo.py"
PATIENCE_S = 60.0


@pytest.fixture
def place() -> Iterator[Path]:
    """The demo's temporary folder; short, for the sockets in it."""
    with tempfile.TemporaryDirectory(prefix="hf-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def demo(place: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    # Whoever runs the tests under nohup(1) has it ignored, and so would the demo.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    process = subprocess.Popen(
        [sys.executable, str(DEMO), *options],
        env={**os.environ, "TMPDIR": str(place), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=PATIENCE_S)


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What the demo prints up to a line with `text` in it."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"{text!r} never came:\n{seen}")


def processes_of(place: Path) -> list[psutil.Process]:
    """Whatever runs with the demo's folder in its command line, environment or as its own."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ().values()
            if str(place) in " ".join([process.cwd(), *process.cmdline(), *environment]):
                found.append(process)
    return found


def agent_of(place: Path) -> psutil.Process:
    """agentd: the first that is called so; a child that is just being started is, too."""
    found = []
    for process in processes_of(place):
        with contextlib.suppress(psutil.Error):
            if "agent.guardian" in process.cmdline():
                found.append(process)
    return min(found, key=lambda process: process.pid)


@pytest.mark.parametrize(
    ("number", "status", "moment"),
    [
        (signal.SIGINT, 130, "trial"),
        (signal.SIGTERM, 143, "$ publisher release"),
        (signal.SIGHUP, 129, "$ publisher init"),
    ],
)
def test_a_demo_that_is_stopped_leaves_no_process_and_no_folder(
    place: Path, number: signal.Signals, status: int, moment: str
) -> None:
    with demo(place) as process:
        read_until(process, moment)
        assert len(processes_of(place)) >= (4 if moment == "trial" else 1)
        process.send_signal(number)
        said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == status
    assert f"demo: stopped by {number.name} in step" in said
    assert processes_of(place) == []
    assert list(place.iterdir()) == []


def test_a_step_that_does_not_happen_is_named_and_ends_the_demo_with_1(place: Path) -> None:
    spoilt = place / "spoilt.toml"
    spoilt.write_text((DEMO.parent / "demo.toml").read_text().replace('"HUP"', '"USR9"'))
    with demo(place, "--config", str(spoilt)) as process:
        said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "demo: step 4" in said
    assert "`agentctl config validate` ended with status 3" in said
    assert processes_of(place) == []
    assert list(place.iterdir()) == [spoilt]


def test_an_agent_that_dies_is_named_with_its_last_words(place: Path) -> None:
    with demo(place) as process:
        read_until(process, "$ agentd &")
        read_until(process, "trial")
        agent_of(place).kill()
        said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "agentd ended with status -9" in said
    assert "slot_flipped" in said
    assert processes_of(place) == []
    assert list(place.iterdir()) == []


def test_the_demo_protects_the_engine_as_the_ready_configuration_does() -> None:
    ready, shown = (config.load(DEMO.parent / name) for name in ("config.toml", "demo.toml"))
    assert (shown.watch, shown.activation) == (ready.watch, ready.activation)

"""How the one-shot workers begin and end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import atexit, sys
from agent import worker

def main():
    atexit.register(print, "tidied up")
    sys.stdout.write("last word")
    return 3

worker.end(main)
"""


def run(*arguments: str, order: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, input=order, capture_output=True, check=False
    )


def test_a_worker_ends_with_its_last_word_said_and_nothing_tidied_up() -> None:
    done = run("-c", PROGRAM)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"last word", b"")


def test_a_worker_that_fails_says_so() -> None:
    done = run("-c", "from agent import worker; worker.end(lambda: 1 // 0)")
    assert done.returncode == 1
    assert b"ZeroDivisionError" in done.stderr


def test_a_worker_without_a_configuration_or_an_order_ends_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('sources = [{ url = "file:///x" }]\n')
    for module in ("agent.fetcher.cycle", "agent.stager"):
        for path, said in ((tmp_path / "none", b"none"), (tmp_path / "config.toml", b"channel")):
            done = run("-m", module, "--config", str(path))
            assert done.returncode == 1, done
            assert said in done.stderr


def test_a_check_loads_no_command_line_of_its_libraries() -> None:
    done = run("-c", "import agent.fetcher.cycle, sys; print({'click', 'rich'} & set(sys.modules))")
    assert (done.stdout, done.stderr) == (b"set()\n", b"")

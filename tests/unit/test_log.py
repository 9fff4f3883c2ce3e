"""The log is for people; nothing depends on whether it can be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from feed import log

ROOT = Path(__file__).parents[2]
SAY = """
from agent import log
import structlog
log.configure("info", program="guardian")
structlog.get_logger().info("slot_flipped", active="b")
print("went on", flush=True)
"""


def said(stderr: int) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", SAY]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=stderr, check=False, timeout=60
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_a_log_on_a_full_disk_stops_nobody() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    done = said(full)
    os.close(full)
    assert done.stdout == b"went on\n"


def test_a_log_nobody_reads_any_more_stops_nobody() -> None:
    read, write = os.pipe()
    os.close(read)
    done = said(write)
    os.close(write)
    assert done.stdout == b"went on\n"


def test_an_event_is_one_line_of_json() -> None:
    line = json.loads(said(subprocess.PIPE).stderr)
    assert (line["event"], line["active"], line["program"]) == ("slot_flipped", "b", "guardian")


def test_on_a_terminal_an_event_reads_as_a_line() -> None:
    event: dict[str, Any] = {"timestamp": "t", "program": "p", "level": "info", "event": "e"}
    assert log._one_line(None, "info", {**event, "slot": "a"}) == "t p info e slot=a"

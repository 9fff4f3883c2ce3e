"""A release that takes the machine's breath away is reverted all the same.

Agent and engine share a box (tests.support.boxes) of limited processes, memory
and CPU. On trial the engine takes all there is of one of them, in real: it
pins every core, bombs with forks, fills the process table, or eats memory
until the kernel kills. How long the way back took is printed at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import boxes
from tests.support.boxes import TALLY, Box
from tests.support.endpoint import Endpoint
from tests.support.vendor import Vendor

PATTERN = "virus-pattern"
LIMIT_S = 60.0
HEALTH = {
    "warmup_s": 1.0,
    "window_s": 2.0,
    "baseline_s": 2.0,
    "probation_s": 30.0,
    "memory_floor_bytes": 64 << 20,
}
PIDS = 120
MEMORY_BYTES = 400 << 20
# All of the machine but a little, by which the test gets through to look at it.
CORES = 0.97 * (os.cpu_count() or 1)

# It does what its content says, and is started again when it dies, as services are.
ENGINE = """
import os, sys, time
from pathlib import Path

content, pid_file = Path(sys.argv[1]), Path(sys.argv[2])

def word():
    try:
        return content.read_bytes()[:4]
    except OSError:
        return b"calm"

def spin(said):
    while word() == said:
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            pass
    os._exit(0)

def bear(act, said):
    try:
        if os.fork() == 0:
            act(said)
    except OSError:
        return False
    return True

def bomb(said):
    while word() == said:
        if not bear(bomb, said):
            spin(said)
    os._exit(0)

def wait(said):
    while word() == said:
        time.sleep(0.2)
    os._exit(0)

def work():
    pid_file.with_suffix(".new").write_text(str(os.getpid()))
    pid_file.with_suffix(".new").rename(pid_file)
    held = []
    while True:
        said = word()
        if said == b"spin":
            for _ in range(2 * os.cpu_count()):
                bear(spin, said)
            spin(said)
        elif said == b"bomb":
            bomb(said)
        elif said == b"full":
            while bear(wait, said):
                pass
            spin(said)
        elif said == b"hogs":
            held.append(bytearray(os.urandom(1 << 20) * 16))
        time.sleep(0.02)

while True:
    try:
        child = os.fork()
    except OSError:
        time.sleep(0.1)
        continue
    if child == 0:
        work()
    os.waitpid(child, 0)
    time.sleep(0.05)
"""

pytestmark = [pytest.mark.system, pytest.mark.alone, pytest.mark.timeout(240)]


@pytest.fixture
def box() -> Iterator[Box]:
    if why := boxes.missing():
        pytest.skip(why)
    with Box(pids=PIDS, memory_bytes=MEMORY_BYTES, cores=CORES) as made:
        yield made


@pytest.fixture
def pressed(tmp_path: Path, box: Box) -> Iterator[tuple[Vendor, Endpoint]]:
    """A machine on r171 with a calm engine, and who may ship it something else."""
    vendor = Vendor(tmp_path / "vendor")
    vendor.ship("r171", {PATTERN: ("171", b"calm" * 1000)})
    pid_file = tmp_path / "engine.pid"
    extra = (
        f'[[watch]]\nname = "engine"\npid_file = "{pid_file}"\n'
        f'[[activation]]\nname = "reload"\ncommand = ["/bin/true"]\n'
    )
    settings = {"root": vendor.root, "extra": extra, "at_start": False}
    endpoint = Endpoint(tmp_path / "endpoint", url=vendor.url, **settings)
    content = endpoint.layout.current / PATTERN / f"{PATTERN}.dat"
    engine = subprocess.Popen([*box.prefix, sys.executable, "-c", ENGINE, content, pid_file])
    try:
        with endpoint.running(*box.prefix):
            endpoint.wait_for(lambda status: status["fetcher"]["running"])
            endpoint.ctl("update", check=True)
            endpoint.wait_for_release("r171")
        endpoint.configure(vendor.url, extra=extra, health=HEALTH, at_start=False)
        with endpoint.running(*box.prefix):
            endpoint.wait_for(lambda status: status["fetcher"]["running"])
            yield vendor, endpoint
    finally:
        engine.kill()
        engine.wait()


@pytest.mark.parametrize(
    ("word", "what"),
    [
        ("spin", "every core pinned"),
        ("bomb", "a fork bomb"),
        ("full", "a full process table"),
        ("hogs", "memory until the kernel kills"),
    ],
)
def test_a_release_that_presses_the_machine_is_reverted(
    word: str,
    what: str,
    pressed: tuple[Vendor, Endpoint],
    box: Box,
    record_property: Callable[[str, object], None],
) -> None:
    vendor, endpoint = pressed
    assert endpoint.process is not None
    guardian = endpoint.process.pid
    vendor.ship("r175", {PATTERN: ("175", word.encode() + b"175" * 1000)})
    endpoint.ctl("update", "--no-wait", check=True)
    endpoint.wait_for(
        lambda _: any(item["release"] == "r175" for item in endpoint.history()), seconds=150
    )
    (last,) = (item for item in endpoint.history() if item["release"] == "r175")
    assert last["outcome"] == "reverted", last
    assert endpoint.slot_problems() == []
    assert endpoint.status()["release"] == "r171"
    assert guardian in box.processes, "the guardian was another one at the end"
    refused = box.refused()
    if word in {"bomb", "full"}:
        assert refused["forks refused"], "the process table was never full"
    if word == "hogs":
        assert refused["killed for memory"], "the kernel never killed for memory"
    seconds = last["ended"] - last["flipped"]
    record_property(TALLY, (what, seconds, last["reason"]))
    assert seconds <= LIMIT_S, last

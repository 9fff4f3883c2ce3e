"""One writer at a time, and never in the active slot: stagers that outlive their guardian."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
from pathlib import Path

from agent import host
from agent.channel import Host, StageJob, StageRefused
from agent.layout import Layout
from agent.slots import record as records
from agent.slots.record import Attempt, BootRecord, Phase, SlotContent, SlotName
from agent.stager import main as stager
from feed import durable
from tests.support.crashing import wait_until

ROOT = Path(__file__).parents[2]
CONTENT = SlotContent(release="r171", digest="d" * 64, seal="5" * 64)
ATTEMPT = Attempt(
    id="1", release="r171", from_release=None, changed={}, trigger="start", flipped_at=0.0
)
HOST = Host(
    host_id="h",
    region="global",
    platform="linux",
    agent_version="0.1.0",
    active_release=None,
    installed={},
    quarantine=(),
)


def machine(folder: Path, record: BootRecord) -> Layout:
    places = Layout(folder, folder / "run", folder / "root.json")
    (places.slot("a") / "pattern").mkdir(parents=True)
    (places.slot("a") / "pattern" / "file").write_bytes(b"in use")
    places.incoming.mkdir()
    records.store(places.boot_record, record)
    return places


def stage(places: Layout, slot: SlotName) -> StageRefused:
    job = StageJob(attempt="1", host=HOST, active=None, slot=slot, reuse=False)
    result = stager.serve(job, places)
    assert isinstance(result, StageRefused)
    return result


def test_a_late_stager_leaves_the_slot_that_has_become_active_alone(tmp_path: Path) -> None:
    places = machine(tmp_path, BootRecord(active="a", slots={"a": CONTENT}))
    assert "slot a isn't spare any more" in stage(places, "a").sentence
    assert (places.slot("a") / "pattern" / "file").read_bytes() == b"in use"


def test_nothing_is_staged_during_a_trial(tmp_path: Path) -> None:
    slots: dict[SlotName, SlotContent] = {"a": CONTENT, "b": CONTENT}
    record = BootRecord(active="b", slots=slots, phase=Phase.TRIAL, attempt=ATTEMPT)
    places = machine(tmp_path, record)
    assert "trial" in stage(places, "a").sentence
    assert (places.slot("a") / "pattern" / "file").read_bytes() == b"in use"


def test_a_torn_record_stages_nothing(tmp_path: Path) -> None:
    places = machine(tmp_path, BootRecord())
    places.boot_record.write_bytes(b"{")
    assert "not a boot record" in stage(places, "a").sentence
    assert (places.slot("a") / "pattern" / "file").read_bytes() == b"in use"


STAGER = """
import pathlib, sys
from agent.channel import VerifyJob
from agent.layout import Layout
from agent.stager import main
folder = pathlib.Path(sys.argv[1])
main.serve(VerifyJob(slots={}), Layout(folder, folder, folder))
print("done", flush=True)
"""


def test_a_stager_waits_until_the_one_before_it_has_ended(tmp_path: Path) -> None:
    places = machine(tmp_path, BootRecord())
    turn = host.hold(places.slots_lock)
    command = [sys.executable, "-c", STAGER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as later:
        assert later.stdout is not None
        assert wait_until(lambda: waits_for_a_lock(later.pid), seconds=20)
        assert select.select([later.stdout], [], [], 0)[0] == []
        turn.release()
        assert later.stdout.read() == b"done\n"


def test_what_every_user_can_take_a_stager_doesnt_wait_for(tmp_path: Path) -> None:
    """The slots can be read by everybody, so everybody can lock them."""
    places = machine(tmp_path, BootRecord())
    taken = [os.open(path, os.O_RDONLY) for path in (places.state, places.slots)]
    for descriptor in taken:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    command = [sys.executable, "-c", STAGER, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=30, check=True)
    assert done.stdout == b"done\n"
    for descriptor in taken:
        os.close(descriptor)


def waits_for_a_lock(pid: int) -> bool:
    lines = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return any(words[1] == "->" and words[5] == str(pid) for words in lines)


def test_a_child_that_ends_with_its_parent_is_gone_with_it(tmp_path: Path) -> None:
    child = "from agent import host; import time; host.end_with_parent(None); "
    child += "print('up', flush=True); time.sleep(60)"
    parent = (
        "import subprocess, sys, os; "
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE); "
        "child.stdout.readline(); print(child.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    reading, writing = os.pipe()  # closed for the reader once nobody holds it any more
    with subprocess.Popen(
        [sys.executable, "-c", parent.replace("stdout=", f"pass_fds=({writing},), stdout=")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        pass_fds=(writing,),
    ) as process:
        os.close(writing)
        assert process.stdout is not None
        assert process.stdout.readline().strip().isdigit()
        assert os.read(reading, 1) == b""
    os.close(reading)


def test_a_child_whose_parent_has_gone_already_ends_at_once() -> None:
    child = "from agent import host; host.end_with_parent(1234567); print('still here')"
    done = subprocess.run([sys.executable, "-c", child], cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"")


def test_only_the_temporaries_of_one_file_are_swept_from_a_folder_of_others(tmp_path: Path) -> None:
    for name in (".tmp-engine.conf.12", ".tmp-other.conf.12", "engine.conf"):
        (tmp_path / name).touch()
    assert durable.sweep_temporaries(tmp_path, of="engine.conf") == [
        tmp_path / ".tmp-engine.conf.12"
    ]
    assert (tmp_path / ".tmp-other.conf.12").exists()

"""Where things live and what the system does for us: layout, host, logs, and the ledger."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import config, host, layout, log
from agent.config import Config
from agent.errors import AgentError, LifecycleError, UnknownNameError
from agent.guardian.ledger import Ledger
from agent.guardian.lifecycle import State
from agent.host import posix
from agent.layout import Layout
from agent.loop import Loop
from agent.slots import seal as seals
from agent.slots.record import BootRecord, SlotName
from feed import durable
from tests.support.standings import ENTRY, seal
from tests.support.turns import Clock

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
SOURCES = 'sources = [{ url = "https://feed.example" }]\n'


def parse(text: str = "") -> Config:
    return config.parse((text + SOURCES).encode(), where="test")


# Layout.


def test_every_path_lies_below_the_state_or_the_runtime_folder(tmp_path: Path) -> None:
    made = Layout(tmp_path / "state", tmp_path / "run", tmp_path / "root.json")
    names = [name for name, item in vars(Layout).items() if isinstance(item, property)]
    found = {name: getattr(made, name) for name in names} | {"slot": made.slot("a")}
    assert len(set(found.values())) == len(found) > 15
    del found["lock"]  # either will do
    for name, path in found.items():
        assert path.is_relative_to(made.runtime if "socket" in name else made.state), name


def test_relative_folders_are_relative_to_the_configuration(tmp_path: Path) -> None:
    settings = parse('state_dir = "state"\nruntime_dir = "/run/x"\ntrust_root = "keys/root.json"\n')
    made = layout.resolve(settings, tmp_path / "config.toml")
    assert made.state == tmp_path / "state"
    assert made.runtime == Path("/run/x")
    assert made.trust_root == tmp_path / "keys" / "root.json"
    only_state = layout.resolve(parse('state_dir = "state"\n'), tmp_path / "config.toml")
    assert only_state.runtime == tmp_path / "state" / "run"


@pytest.mark.parametrize("uid", [0, 1000])
def test_without_settings_the_platform_says_where_things_live(
    monkeypatch: pytest.MonkeyPatch, uid: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.delenv("HOLDFAST_CONFIG", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    path = layout.default_path()
    made = layout.resolve(parse(), path)
    assert made.trust_root == path.with_name("root.json")
    if uid == 0:
        assert path == Path("/etc/holdfast/config.toml")
        assert (made.state, made.runtime) == (Path("/var/lib/holdfast"), Path("/run/holdfast"))
    else:
        assert all("holdfast" in str(item) for item in (path, made.state, made.runtime))
        assert not str(made.state).startswith("/var")
        assert made.runtime == Path("/run/user/1000/holdfast")
        monkeypatch.delenv("XDG_RUNTIME_DIR")
        assert layout.resolve(parse(), path).runtime == made.state / "run"  # nobody else's /tmp


def test_the_environment_may_name_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_CONFIG", "/somewhere/agent.toml")
    assert layout.default_path() == Path("/somewhere/agent.toml")


# Host.


def test_a_boot_has_one_id_and_a_machine_without_the_kernels_has_one_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert host.boot_id() == host.boot_id() != ""

    def gone(*_args: object, **_kwargs: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", gone)
    assert host.boot_id().startswith("boot-")
    assert host.boot_id() == host.boot_id()


def test_the_link_is_switched_without_a_gap_and_taken_away(tmp_path: Path) -> None:
    link, a, b = tmp_path / "current", tmp_path / "slots" / "a", tmp_path / "slots" / "b"
    a.mkdir(parents=True)
    b.mkdir()
    assert host.link_target(link) is None
    (tmp_path / f"{durable.TEMP_PREFIX}current").symlink_to("left-by-a-crash")
    gone: list[str] = []
    durable.set_fault_hook(lambda point, _where: gone.append(point) if not link.exists() else None)
    try:
        host.switch_link(link, a)
        gone.clear()
        host.switch_link(link, b)
    finally:
        durable.set_fault_hook(None)
    assert gone == []
    assert host.link_target(link) == "b"
    assert str(link.readlink()) == "slots/b"  # the state folder may be moved as a whole
    host.switch_link(link, None)
    host.switch_link(link, None)
    assert not os.path.lexists(link)


def test_a_link_to_a_namesake_elsewhere_isnt_taken_for_the_slot(tmp_path: Path) -> None:
    link, slot = tmp_path / "current", tmp_path / "slots" / "a"
    slot.mkdir(parents=True)
    link.symlink_to("/tmp/evil/a")
    assert host.link_target(link) == "a"
    assert not host.points_at(link, slot)
    host.switch_link(link, slot)
    assert host.points_at(link, slot)
    link.unlink()
    link.mkdir()
    assert not host.points_at(link, slot)


def test_one_process_holds_the_lock_and_the_other_is_told_which(tmp_path: Path) -> None:
    held = host.lock_file(tmp_path / "guardian.lock")
    with pytest.raises(AgentError, match=rf"pid {os.getpid()}\) already runs with {tmp_path}"):
        host.lock_file(tmp_path / "guardian.lock")
    held.release()
    host.lock_file(tmp_path / "guardian.lock").release()
    (tmp_path / "linked").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic link"):
        host.lock_file(tmp_path / "linked")


@AS_ROOT
@pytest.mark.parametrize("take", [host.lock_file, host.hold])
@pytest.mark.parametrize("left", [None, 0o644], ids=["new", "copied here"])
def test_no_other_user_can_open_a_lock_and_so_take_it(
    tmp_path: Path, take: Callable[[Path], posix.HeldLock], left: int | None
) -> None:
    """For flock(2) a descriptor that may only read is enough."""
    tmp_path.chmod(0o755)
    path = tmp_path / "guardian.lock"
    if left is not None:
        path.touch()
        path.chmod(left)
    held = take(path)
    code = (
        f"os.chdir({str(tmp_path)!r})\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); os.listdir()\n"
        "try: os.open('guardian.lock', os.O_RDONLY); print('opened')\n"
        "except PermissionError: print('refused')"
    )
    assert in_a_process(code) == ["refused"]
    held.release()


def test_a_failing_lock_is_no_running_guardian(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(posix.fcntl, "flock", fail)
    with pytest.raises(OSError, match="No locks available"):
        host.lock_file(tmp_path / "guardian.lock")


@pytest.mark.parametrize("problem", [None, errno.ENOSYS, errno.EMFILE])
def test_a_process_is_ended_by_its_handle_or_where_there_is_none_by_its_number(
    monkeypatch: pytest.MonkeyPatch, problem: int | None
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(problem, "refused")

    monkeypatch.setattr(os, "pidfd_open" if problem else "kill", refuse)
    with subprocess.Popen(["sleep", "60"]) as process, host.ProcessHandle(process.pid) as handle:
        handle.stop()
        handle.kill()
        assert process.wait(10) == -signal.SIGKILL
        with pytest.raises(ProcessLookupError):
            handle.kill()
    with pytest.raises(ProcessLookupError):
        host.ProcessHandle(process.pid).kill()


def test_only_root_gives_the_fetcher_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert host.user_of("nobody") is None
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert host.user_of("") is None
    found = host.user_of("nobody")
    assert found is not None
    assert found.uid > 0
    with pytest.raises(UnknownNameError, match="fetcher_user: there is no user 'no-such-user'"):
        host.user_of("no-such-user")


def in_a_process(code: str) -> list[str]:
    """What a fresh process prints: these things can't be taken back in this one."""
    done = subprocess.run(
        [sys.executable, "-c", f"import os, subprocess, sys\nfrom agent import host\n{code}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@AS_ROOT
def test_a_raised_priority_isnt_inherited_and_goes_back() -> None:
    nice = "print(os.getpriority(os.PRIO_PROCESS, 0), flush=True)"
    found = in_a_process(
        f"assert host.raise_priority(); {nice}\nsubprocess.run(['nice'])\n"
        f"assert host.reset_priority(); {nice}"
    )
    assert found == [str(posix.TRIAL_NICE), "0", "0"]


def test_a_priority_that_isnt_granted_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse)
    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    assert not host.raise_priority()
    assert not host.reset_priority()


@AS_ROOT
def test_a_process_that_left_the_network_reaches_nothing() -> None:
    code = (
        "import socket\nserver = socket.create_server(('127.0.0.1', 0))\n"
        "if not host.drop_network(): print('kept'); sys.exit()\n"
        "try: socket.create_connection(server.getsockname(), 2)\n"
        "except OSError: print('unreachable')"
    )
    assert in_a_process(code) in (["unreachable"], ["kept"])


def test_an_ordinary_user_keeps_its_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert not host.drop_network()


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}" if abstract else name)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else name)
        host.notify_service("READY=1")
        assert manager.recv(100) == b"READY=1"
    host.notify_service("STOPPING=1")  # nobody listens any more
    monkeypatch.delenv("NOTIFY_SOCKET")
    host.notify_service("STOPPING=1")


# Logs.


def logged(code: str, *, level: str = "info") -> list[str]:
    program = f"from agent import log\nlog.configure({level!r}, program='test')\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr.splitlines()


def test_logs_are_one_json_object_a_line_from_their_level_up() -> None:
    code = (
        "import structlog\nlog = structlog.get_logger()\nlog.debug('hidden')\n"
        "log.info('slot_flipped', active='b')\nlog.error('broken', text='two\\nlines')"
    )
    found = [json.loads(line) for line in logged(code)]
    assert [item["event"] for item in found] == ["slot_flipped", "broken"]
    assert found[0] | {"timestamp": ""} == {
        "event": "slot_flipped",
        "active": "b",
        "level": "info",
        "program": "test",
        "timestamp": "",
    }


def test_what_is_put_off_is_imported_when_it_is_asked_for() -> None:
    deferred = log._Deferred("colorsys")
    assert deferred.rgb_to_hsv(0, 0, 0) == (0.0, 0.0, 0)
    with pytest.raises(AttributeError):
        deferred.__wrapped__  # noqa: B018 - looking is what imports


# The ledger.


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    loop = Loop()
    places = Layout(tmp_path / "state", tmp_path / "run", tmp_path / "root.json")
    made = Ledger(parse('fetcher_user = ""\n'), places, loop, wall=Clock())
    made.prepare()
    yield made
    loop.close()


def sealed(ledger: Ledger, slot: SlotName, release: str) -> Any:
    ledger.layout.slot(slot).mkdir()
    return seals.write(ledger.layout.slot(slot), seal(release))


def test_a_prepared_state_folder_keeps_the_fetchers_work_private(ledger: Ledger) -> None:
    places = ledger.layout
    for path in (places.incoming, places.cache, places.fetcher_trust, places.stager_trust):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    ledger.prepare()


def test_a_host_gets_its_id_once(ledger: Ledger) -> None:
    first = ledger.host_id
    ledger.prepare()
    assert ledger.host_id == first
    assert len(first) == 16


@pytest.mark.parametrize("damage", [b"\xff", b"\n", b"", b"\0" * 17, b"0123\x1b[2J"])
def test_a_damaged_host_id_is_kept_aside_and_another_is_made(ledger: Ledger, damage: bytes) -> None:
    first, path = ledger.host_id, ledger.layout.host_id
    path.write_bytes(damage)
    ledger.prepare()
    assert len(ledger.host_id) == 16
    assert ledger.host_id != first
    assert path.read_text() == f"{ledger.host_id}\n"
    assert path.with_name("host-id.unreadable").read_bytes() == damage


def test_a_record_that_cant_be_written_changes_nothing(ledger: Ledger) -> None:
    content = sealed(ledger, "a", "r1")
    ledger.commit(BootRecord(active="a", slots={"a": content}))

    def full(point: str, _where: str) -> None:
        if point == "fsync":
            raise OSError(28, "No space left on device")

    durable.set_fault_hook(full)
    try:
        with pytest.raises(OSError, match="No space"):
            ledger.commit(BootRecord())
    finally:
        durable.set_fault_hook(None)
    assert ledger.record.active == "a"


def test_the_link_follows_the_record(ledger: Ledger) -> None:
    content = sealed(ledger, "a", "r1")
    ledger.adopt(BootRecord(active="a", slots={"a": content}))
    ledger.layout.current.symlink_to("/tmp/evil/a")
    ledger.switch_link()
    assert ledger.layout.current.resolve() == ledger.layout.slot("a").resolve()
    ledger.adopt(BootRecord())
    ledger.switch_link()
    assert not os.path.lexists(ledger.layout.current)


def test_a_host_is_described_by_what_runs_intact(ledger: Ledger) -> None:
    assert ledger.describe_host().active_release is None
    content = sealed(ledger, "a", "r1")
    ledger.adopt(BootRecord(active="a", slots={"a": content}))
    ledger.add_to_quarantine(msgspec.structs.replace(ENTRY, until=4e9))
    described = ledger.describe_host()
    assert described.active_release == "r1"
    assert set(described.installed) == {"virus-pattern"}
    assert [item.release for item in described.quarantine] == ["r175"]
    assert ledger.clear_quarantine("nothing") == 0
    assert ledger.clear_quarantine(None) == 1
    (ledger.layout.slot("a") / seals.SEAL_NAME).unlink()
    ledger.adopt(ledger.record)
    assert ledger.describe_host().installed == {}


def test_an_unlisted_state_is_refused(ledger: Ledger) -> None:
    ledger.to(State.CHECKING, reason="r", sentence="s", release="r1")
    with pytest.raises(LifecycleError, match="checking doesn't lead to trial"):
        ledger.to(State.TRIAL, reason="r", sentence="s")
    ledger.to(State.DOWNLOADING, reason="r", sentence="s")
    ledger.show_progress(3, 9)
    assert (ledger.status.release, ledger.status.done, ledger.status.total) == ("r1", 3, 9)


def test_evidence_is_kept_up_to_a_number_and_a_full_disk_costs_only_it(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.guardian.ledger.EVIDENCE_KEPT", 3)
    for number in range(5):
        name = f"{number}.json"
        assert ledger.keep_evidence(name, b"{}") == name
        os.utime(ledger.layout.evidence / name, (number, number))
    assert len(list(ledger.layout.evidence.iterdir())) == 3
    assert ledger.keep_evidence("no/such/folder.json", b"{}") is None


def test_leftovers_are_dropped(ledger: Ledger) -> None:
    (ledger.layout.incoming / "1" / "targets").mkdir(parents=True)
    ledger.layout.settings_undo.write_text("{}")
    ledger.layout.trial_notes.write_text("{}")
    ledger.drop_leftovers()
    assert list(ledger.layout.incoming.iterdir()) == []
    assert not ledger.layout.settings_undo.exists()
    assert not ledger.layout.trial_notes.exists()

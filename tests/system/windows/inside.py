"""Facts about the Windows side, established by the Windows Python itself.

    python -m tests.system.windows.inside

Each function below `FACTS` is one; a line of JSON tells how it went. One run for
all of them: starting takes seconds under Wine.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pywintypes
import win32api
import win32con
import win32pipe
import win32security

from agent import host
from agent.children import Child, small_environment
from agent.ctl import client
from agent.errors import AgentError
from agent.guardian.commands import Commands
from agent.guardian.control import ControlServer, StatusServer
from agent.host import naming, registry, rights, windows_io, windows_pipes, windows_users
from agent.host.registry import Raw
from agent.loop import Loop
from feed import durable
from service.windows.journal import Journal

SLEEPER = "import time; time.sleep(60)"


def a_boot_id_stays_the_same_within_a_boot(_: Path) -> None:
    first = host.boot_id()
    assert first.startswith("boot-")
    time.sleep(0.2)
    assert host.boot_id() == first


def the_priority_is_raised_and_taken_back(_: Path) -> None:
    assert host.raise_priority()
    assert psutil.Process().nice() == psutil.HIGH_PRIORITY_CLASS
    assert host.reset_priority()
    assert psutil.Process().nice() == psutil.NORMAL_PRIORITY_CLASS


def a_lock_is_one_processs_and_names_it(folder: Path) -> None:
    held = host.lock_file(folder / "lock")
    code = f"import pathlib, agent.host as h; h.lock_file(pathlib.Path({str(folder / 'lock')!r}))"
    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert f"(pid {os.getpid()}) already runs".encode() in refused.stderr, refused.stderr
    held.release()
    host.lock_file(folder / "lock").release()


def a_durable_write_replaces_a_read_only_file(folder: Path) -> None:
    for data in (b"1", b"22", b"333"):
        durable.replace(folder / "file", data, mode=0o444)
    durable.sync_tree(folder)
    assert (folder / "file").read_bytes() == b"333"
    assert sorted(path.name for path in folder.iterdir()) == ["file"]


def a_read_only_file_is_removed(folder: Path) -> None:
    durable.replace(folder / "seal", b"1", mode=0o444)
    durable.remove(folder / "seal")
    durable.remove(folder / "seal")
    assert list(folder.iterdir()) == []


def a_file_that_is_open_isnt_replaced_and_keeps_its_content(folder: Path) -> None:
    durable.replace(folder / "file", b"old")
    with (folder / "file").open("rb"):
        try:
            durable.replace(folder / "file", b"new")
        except PermissionError:
            pass
        else:
            raise AssertionError("it was replaced")
    assert (folder / "file").read_bytes() == b"old"
    assert sorted(path.name for path in folder.iterdir()) == ["file"]
    durable.replace(folder / "file", b"new")


def a_log_that_somebody_reads_loses_no_line(folder: Path) -> None:
    log = folder / "agent.log"
    told = Journal(log, lambda _kind, _line: None, file_bytes_max=100)
    told.write("before\n")
    with log.open("rb"):  # as most programs open a file, its deletion isn't shared
        for number in range(30):
            told.write(f"line {number:04}\n")
    told.write("after\n")
    told.close()
    older = sorted(folder.glob("agent.log.*"), reverse=True)
    assert len(older) == 3, older
    lines = [line for path in (*older, log) for line in path.read_text().splitlines()]
    wanted = ["before", *(f"line {number:04}" for number in range(30)), "after"]
    assert lines == wanted, lines


def a_slot_with_read_only_files_is_removed(folder: Path) -> None:
    slot = folder / "state" / "slots" / "a"
    (slot / "engine").mkdir(parents=True)
    (slot / "engine" / "x.dll").write_bytes(b"x")
    (slot / "engine" / "x.dll").chmod(0o444)
    host.remove_tree(slot)
    assert not slot.exists()


def what_is_below_a_folder_is_opened_and_nothing_else(folder: Path) -> None:
    attempt = folder / "incoming" / "a1"
    (attempt / "targets").mkdir(parents=True)
    (attempt / "targets" / "x").write_bytes(b"content")
    with host.open_below(attempt, "targets/x") as file:
        assert file.read() == b"content"
    for path in ("targets/none", "targets"):
        try:
            host.open_below(attempt, path).close()
        except OSError:
            continue
        raise AssertionError(f"{path} was opened")


def a_folder_is_emptied(folder: Path) -> None:
    for number in range(40):
        (folder / "deep" / f"{number}" / "x").mkdir(parents=True)
        (folder / "deep" / f"{number}" / "x" / "f").write_bytes(b"")
    assert host.empty(folder / "deep")
    assert list((folder / "deep").iterdir()) == []


def registry_values_come_back_byte_for_byte(_: Path) -> None:
    machine = host.machine_registry()
    assert machine is not None
    key = registry.parse_key(rf"HKLM\SOFTWARE\HoldfastTest{os.getpid()}\Below")
    assert machine.read(key, "value") is None
    for raw in (Raw(1, b"o\0d"), Raw(3, bytes(range(256))), Raw(4, b"\1\0\0\0"), Raw(7, b"\0\0")):
        machine.write(key, "value", raw)
        assert machine.read(key, "value") == raw
    machine.delete(key, "value")
    machine.delete(key, "value")
    for item in (key, *key.parents()[:1]):
        machine.delete_empty(item)
        assert not machine.exists(item)


def a_restricted_token_starts_a_program_without_privileges(folder: Path) -> None:
    own = win32security.OpenProcessToken(win32api.GetCurrentProcess(), win32con.TOKEN_ALL_ACCESS)
    user = windows_users.User(windows_users.restricted(own))
    lines, ends = _run(folder, "print('up')", user=user)
    assert (lines, ends) == ([b"up\r"], [0])


def rights_are_taken_by_the_system_as_they_are_written(folder: Path) -> None:
    for number, sddl in enumerate(
        (rights.private_folder(), rights.shared_folder(), rights.fetcher_folder())
    ):
        place = folder / str(number)
        place.mkdir()
        windows_users.protect(place, sddl)
        (place / "still-ours").write_bytes(b"")
    for everybody in (True, False):
        win32security.ConvertStringSecurityDescriptorToSecurityDescriptor(
            rights.pipe(owner=windows_users.user_sid(), everybody=everybody, group="BA"), 1
        )


def _until(loop: Loop, done: Callable[[], object], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it took too long"
        loop.turn(0.05)


def _run(
    folder: Path,
    code: str,
    *,
    then: Callable[[Child, list[bytes]], None] | None = None,
    **options: object,
) -> tuple[list[bytes], list[int]]:
    del folder
    loop, lines, ends = Loop(), list[bytes](), list[int]()
    child = Child(
        loop,
        [sys.executable, "-c", code],
        name="child",
        on_line=lines.append,
        on_end=ends.append,
        environment=small_environment(os.environ),
        **options,  # type: ignore[arg-type]
    )
    if then:
        _until(loop, lambda: lines)
        then(child, lines)
    _until(loop, lambda: ends)
    loop.close()
    return lines, ends


def a_child_reads_answers_and_ends_with_its_status(folder: Path) -> None:
    code = "import sys; print('got', sys.stdin.readline().strip()); sys.exit(3)"
    assert _run(folder, code, first_input=b"hello\n") == ([b"got hello\r"], [3])


def a_child_that_outlives_its_time_is_killed(folder: Path) -> None:
    _, ends = _run(folder, SLEEPER, timeout_s=3.0)
    assert ends == [windows_io.KILLED]


def a_child_is_asked_to_end_by_the_end_of_its_input(folder: Path) -> None:
    code = "import sys; print('up', flush=True); sys.stdin.read(); sys.exit(9)"
    assert _run(folder, code, then=lambda child, _: child.terminate())[1] == [9]


def a_child_is_killed_with_what_it_started(folder: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}])\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    lines, _ = _run(folder, code, then=lambda child, _: child.kill())
    _gone(int(lines[0]))


def a_command_is_killed_with_what_it_started(folder: Path) -> None:
    told = folder / "pid"
    code = (
        "import pathlib, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}])\n"
        f"pathlib.Path({str(folder / 'new')!r}).write_text(str(child.pid))\n"
        f"pathlib.Path({str(folder / 'new')!r}).rename({str(told)!r}); time.sleep(60)"
    )
    commands = Commands(small_environment(os.environ))
    command = commands.start([sys.executable, "-c", code])
    end = time.monotonic() + 20
    while not told.exists():
        assert time.monotonic() < end, "it doesn't run"
        time.sleep(0.05)
    commands.kill(command)
    _gone(int(told.read_text()))
    commands.close()
    assert commands.sweep() == 0


def a_command_ends_with_its_status(_: Path) -> None:
    command = Commands(small_environment(os.environ)).start([sys.executable, "-c", "exit(7)"])
    command.wait(20)
    assert command.poll() == 7


def a_child_ends_with_a_parent_that_is_killed(folder: Path) -> None:
    """The job goes with its last handle."""
    code = (
        "import os, sys, time\n"
        "from agent.children import Child, small_environment\n"
        "from agent.loop import Loop\n"
        f"child = Child(Loop(), [sys.executable, '-c', {SLEEPER!r}], name='c', on_line=print,\n"
        "    on_end=print, environment=small_environment(os.environ))\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert psutil.pid_exists(child)
    parent.kill()
    parent.wait()
    _gone(child)
    del folder


def _gone(pid: int) -> None:
    end = time.monotonic() + 10
    while psutil.pid_exists(pid):
        assert time.monotonic() < end, f"process {pid} still runs"
        time.sleep(0.05)


def a_command_that_isnt_there_is_an_error(_: Path) -> None:
    try:
        Child(Loop(), ["no-such-command"], name="c", on_line=print, on_end=print, environment={})
    except FileNotFoundError:
        return
    raise AssertionError("it was started")


def the_local_api_answers_on_named_pipes(folder: Path) -> None:
    loop = Loop()
    control, status = folder / "control.sock", folder / "status.sock"
    acting = ControlServer(loop, control, {"status": lambda r: r.count}, mode=0o600)
    reading = StatusServer(loop, status, {"status": lambda _: "x" * 1_000_000}, mode=0o666)
    heard: list[object] = []

    def ask() -> None:
        heard.extend(client.ask(path, {"do": "status", "count": 5}) for path in (control, status))
        try:
            client.ask(control, {"do": "no-such-thing"})
        except client.AskError as error:
            heard.append(error.reachable)
        try:
            client.ask(folder / "none.sock", {"do": "status"})
        except client.AskError as error:
            heard.append(error.reachable)

    threading.Thread(target=ask).start()
    _until(loop, lambda: len(heard) == 4)
    assert heard == [5, "x" * 1_000_000, True, False]
    acting.close()
    reading.close()
    loop.close()


@contextlib.contextmanager
def _replaced(module: object, name: str, value: object) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _answers(folder: Path, asked: int, first: Callable[[], object] = bool) -> list[int]:
    """What a new server answers to as many requests; -1: that one failed."""
    loop = Loop()
    server = ControlServer(loop, folder / "c.sock", {"status": lambda r: r.count}, mode=0o600)
    heard: list[int] = []

    def ask() -> None:
        first()
        for number in range(asked):
            try:
                heard.append(client.ask(folder / "c.sock", {"do": "status", "count": number}))
            except client.AskError:
                heard.append(-1)

    threading.Thread(target=ask).start()
    _until(loop, lambda: len(heard) == asked)
    server.close()
    loop.close()
    return heard


def a_client_that_comes_and_goes_holds_up_nobody(folder: Path) -> None:
    connect, calls, all_gone = win32pipe.ConnectNamedPipe, list[int](), threading.Event()

    def late(instance: object, waiting: object) -> object:
        calls.append(1)
        if len(calls) <= 3:
            windows_pipes._open(naming.pipe_name(str(folder / "c.sock"))).Close()
        else:
            all_gone.set()
        return connect(instance, waiting)

    with _replaced(win32pipe, "ConnectNamedPipe", late):
        heard = _answers(folder, 2, lambda: all_gone.wait(10))
    assert heard == [0, 1], heard


def what_a_pipe_is_short_of_costs_one_client(folder: Path) -> None:
    """Of instances, sockets and threads."""
    served = threading.Event()

    def shorten() -> None:
        client.ask(folder / "c.sock", {"do": "status"})
        served.set()

    for place, name, error in (
        (win32pipe, "CreateNamedPipe", pywintypes.error(8, "CreateNamedPipe", "no memory")),
        (windows_pipes, "pair", OSError("no socket")),
        (windows_pipes.threading, "Thread", RuntimeError("can't start new thread")),
    ):
        whole = getattr(place, name)

        def fail(*arguments: object, _whole=whole, _error=error, **options: object) -> object:
            if served.is_set():
                served.clear()
                raise _error
            return _whole(*arguments, **options)

        with _replaced(place, name, fail):
            heard = _answers(folder, 4, shorten)
        assert heard.count(-1) <= 1, (name, heard)
        assert heard[-2:] == [2, 3], (name, heard)
        assert not served.is_set(), f"{name} never failed"


def a_name_that_somebody_has_is_served_once_it_is_free(folder: Path) -> None:
    """Wine lets two have it, so that Windows' refusal is a stand-in."""
    really, tries, served = win32pipe.CreateNamedPipe, list[int](), threading.Event()

    def make(*arguments: Any) -> object:
        tries.append(1)
        if len(tries) <= 3:
            raise pywintypes.error(5, "CreateNamedPipe", "Access is denied.")
        made = really(*arguments)
        served.set()
        return made

    with (
        _replaced(win32pipe, "CreateNamedPipe", make),
        _replaced(windows_pipes, "AGAIN_MS", 100),
    ):
        heard = _answers(folder, 1, served.wait)
    assert heard == [0], heard


def a_services_stop_reaches_the_loop_as_sigterm(_: Path) -> None:
    loop, stopped = Loop(), list[int]()
    routed = threading.Thread(
        target=lambda: loop.on_signal(signal.SIGTERM, lambda: stopped.append(1))
    )
    routed.start()  # as in a service: not the main thread
    routed.join()
    windows_io.stop_service()
    _until(loop, lambda: stopped)
    loop.close()


def a_pair_of_sockets_is_its_owners_alone(_: Path) -> None:
    from agent.host.windows_sockets import pair

    one, other = pair()
    assert isinstance(one, socket.socket)
    one.send(b"x")
    assert other.recv(1) == b"x"


def another_guardian_is_refused(folder: Path) -> None:
    held = host.lock_file(folder / "guardian.lock")
    try:
        host.lock_file(folder / "guardian.lock")
    except AgentError:
        held.release()
    else:
        raise AssertionError("there are two")


FACTS: tuple[Callable[[Path], None], ...] = tuple(
    value
    for name, value in list(globals().items())
    if callable(value) and getattr(value, "__module__", "") == __name__ and not name.startswith("_")
)


def main() -> int:
    for fact in FACTS:
        problem = ""
        try:
            fact(Path(tempfile.mkdtemp()))
        except Exception:  # noqa: BLE001 - told to whoever runs this
            problem = traceback.format_exc()
        print(json.dumps({"fact": fact.__name__, "problem": problem}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

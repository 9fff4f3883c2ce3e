"""Hooks: in order, bounded, and the first that fails ends the activation."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from agent import host
from agent.config import Hook
from agent.errors import ActivationError
from agent.guardian import activation, finders
from agent.guardian.activation import ActivationRun, chosen
from agent.loop import Loop
from feed.manifest import Activation
from tests.support.turns import until

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


class Run:
    """One activation and its end; `error` is its text, empty when it went well."""

    def __init__(self, loop: Loop, *hooks: Hook, current: Path = Path("/state/current")) -> None:
        self.loop = loop
        self.ends: list[ActivationError | None] = []
        self.run = ActivationRun(
            loop, hooks, current=current, release="r173", reason="flip", done=self.ends.append
        )

    def wait(self) -> str:
        until(self.loop, lambda: self.ends)
        self.loop.turn(0.05)
        (end,) = self.ends
        return str(end or "")


def shell(code: str, *, name: str = "reload", timeout_s: float = 30.0, output: int = 1000) -> Hook:
    return Hook(name=name, command=("sh", "-c", code), timeout_s=timeout_s, output_bytes_max=output)


def kill_hook(pid_file: Path, name: str = "HUP") -> Hook:
    return Hook(name=name.lower(), signal=name, pid_file=str(pid_file))


def test_a_release_chooses_among_the_configured_hooks_and_brings_none() -> None:
    hooks = (shell("a", name="first"), shell("b", name="second"))
    assert chosen(hooks, Activation()) == hooks
    assert chosen(hooks, Activation(hooks=())) == ()
    assert chosen(hooks, Activation(hooks=("second", "rm-rf"))) == hooks[1:]


def test_no_hooks_are_done_at_once(loop: Loop) -> None:
    assert Run(loop).wait() == ""


def test_hooks_run_in_order_and_know_what_they_activate(loop: Loop, tmp_path: Path) -> None:
    told = tmp_path / "told"
    code = f'echo "%s $HOLDFAST_CURRENT $HOLDFAST_RELEASE $HOLDFAST_REASON" >> {told}'
    hooks = [shell(code % name, name=name) for name in ("first", "second", "third")]
    assert Run(loop, *hooks, current=tmp_path / "current").wait() == ""
    rest = f"{tmp_path}/current r173 flip"
    assert told.read_text().splitlines() == [f"{n} {rest}" for n in ("first", "second", "third")]


def test_a_failing_hook_ends_the_activation_with_what_it_said(loop: Loop, tmp_path: Path) -> None:
    later = tmp_path / "later"
    error = Run(
        loop,
        shell("echo loading; echo rule 7 is broken >&2; printf 'no newline'; exit 3"),
        shell(f"touch {later}", name="later"),
    ).wait()
    assert error == (
        "activation hook 'reload' ended with status 3: loading\nrule 7 is broken\nno newline"
    )
    assert not later.exists()


def test_a_silent_failure_names_its_status(loop: Loop) -> None:
    assert Run(loop, shell("exit 9")).wait() == "activation hook 'reload' ended with status 9"


def test_a_hanging_hook_is_killed_with_its_grandchildren(loop: Loop, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    run = Run(loop, shell(f"sh -c 'echo $$ > {pid}; exec sleep 60' & wait", timeout_s=0.7))
    assert run.wait() == "activation hook 'reload' didn't end within 0.7 s and was killed"
    end = time.monotonic() + 10
    grandchild = int(pid.read_text())
    while psutil.pid_exists(grandchild) and not is_zombie(grandchild):
        assert time.monotonic() < end
        time.sleep(0.02)


def is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_an_engine_that_a_hook_leaves_running_neither_holds_it_up_nor_ends(loop: Loop) -> None:
    """As `service engine restart` does: the engine inherits the hook's output."""
    run = Run(loop, shell("sleep 60 & echo $! >&2; exit 1", timeout_s=50))
    engine = int(run.wait().rpartition(" ")[2])
    assert not is_zombie(engine)
    os.kill(engine, signal.SIGKILL)


def test_a_flooding_hook_is_neither_killed_nor_kept(loop: Loop) -> None:
    flood = "head -c 5000000 /dev/zero | tr '\\0' x; exit 2"
    error = Run(loop, shell(flood, output=50)).wait()
    assert error == f"activation hook 'reload' ended with status 2: {'x' * 50}"


def test_output_that_is_no_text_is_still_told(loop: Loop) -> None:
    error = Run(loop, shell("printf '\\377oops'; exit 1")).wait()
    assert error == "activation hook 'reload' ended with status 1: \ufffdoops"


def test_a_missing_command_is_named(loop: Loop) -> None:
    error = Run(loop, Hook(name="reload", command=("/no/such/command",))).wait()
    assert error.startswith("activation hook 'reload' can't be started: ")
    assert "/no/such/command" in error


def test_a_cancelled_activation_is_never_done(loop: Loop, tmp_path: Path) -> None:
    early = Run(loop, shell("exit 0"))
    early.run.cancel()
    started = tmp_path / "started"
    late = Run(loop, shell(f"touch {started}; exec sleep 60"), shell("exit 0", name="second"))
    until(loop, started.exists)
    late.run.cancel()
    assert late.run._child is not None
    child = late.run._child.pid
    until(loop, lambda: is_zombie(child))
    loop.turn(0.1)
    assert early.ends == late.ends == []


def test_a_signal_goes_to_the_process_of_the_pid_file(loop: Loop, tmp_path: Path) -> None:
    code = "import signal; print('up', flush=True); print(signal.sigwait({signal.SIGHUP}))"
    blocked = f"import signal; signal.pthread_sigmask(0, {{1}}); {code.partition('; ')[2]}"
    with subprocess.Popen([sys.executable, "-c", blocked], stdout=subprocess.PIPE) as engine:
        assert engine.stdout is not None
        assert engine.stdout.readline() == b"up\n"
        pid_file = tmp_path / "engine.pid"
        pid_file.write_text(f"{engine.pid}\n")
        assert Run(loop, kill_hook(pid_file)).wait() == ""
        assert engine.wait(10) == 0


def test_an_engine_that_isnt_running_needs_no_signal(loop: Loop, tmp_path: Path) -> None:
    pid_file = tmp_path / "engine.pid"
    assert Run(loop, kill_hook(pid_file)).wait() == ""
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    pid_file.write_text(str(gone.pid))
    assert Run(loop, kill_hook(pid_file)).wait() == ""


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"-1", b"0", b"1", b"12 13", b"\xff\xfe", b"9" * 30, b"4194305", b"7" * 100],
)
def test_a_pid_file_that_names_no_process_is_a_failure(
    loop: Loop, tmp_path: Path, content: bytes
) -> None:
    pid_file = tmp_path / "engine.pid"
    pid_file.write_bytes(content)
    error = Run(loop, kill_hook(pid_file)).wait()
    assert error.startswith(f"activation hook 'hup' can't signal its process: {pid_file}: ")


def test_a_pid_file_that_would_block_is_a_failure(loop: Loop, tmp_path: Path) -> None:
    pid_file = tmp_path / "engine.pid"
    os.mkfifo(pid_file)
    assert "not a regular file" in Run(loop, kill_hook(pid_file)).wait()


def test_a_process_that_may_not_be_signalled_is_a_failure(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_process: object, _number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    pid_file = tmp_path / "engine.pid"
    pid_file.write_text(str(os.getpid()))
    monkeypatch.setattr(host.ProcessHandle, "send", refuse)
    error = Run(loop, kill_hook(pid_file)).wait()
    assert error.endswith(f"process {os.getpid()}, named by {pid_file}: Operation not permitted")


# A pid file of a user who isn't root, as root.

SOMEBODY = 65534
# Signalled with SIGUSR1, which ends a process also where the tests run under nohup(1).


@pytest.fixture
def roots() -> Iterator[subprocess.Popen[bytes]]:
    """A process of root's that a signal ends."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """The place of a pid file in a folder that is an engine's user's."""
    folder = tmp_path / "run"
    folder.mkdir()
    os.chown(folder, SOMEBODY, SOMEBODY)
    return folder / "engine.pid"


@AS_ROOT
def test_a_users_link_to_a_file_of_roots_aims_no_signal(
    loop: Loop, tmp_path: Path, theirs: Path, roots: subprocess.Popen[bytes]
) -> None:
    (tmp_path / "sshd.pid").write_text(f"{roots.pid}\n")
    theirs.symlink_to(tmp_path / "sshd.pid")
    os.lchown(theirs, SOMEBODY, SOMEBODY)
    assert Run(loop, kill_hook(theirs, "USR1")).wait() == (
        f"activation hook 'usr1' can't signal its process: {theirs}: is a symbolic link; "
        "name the file it leads to"
    )
    assert roots.poll() is None


@AS_ROOT
def test_a_file_that_is_swapped_after_it_was_read_aims_no_signal(
    loop: Loop,
    tmp_path: Path,
    theirs: Path,
    roots: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who it belongs to is known of the very file that was read."""
    (tmp_path / "sshd.pid").write_text(f"{roots.pid}\n")
    theirs.write_text(f"{roots.pid}\n")
    os.chown(theirs, SOMEBODY, SOMEBODY)
    read = finders.read_pid

    def read_and_swapped(path: Path, **options: bool) -> object:
        found = read(path, **options)
        (tmp_path / "sshd.pid").replace(path)
        return found

    monkeypatch.setattr(activation, "read_pid", read_and_swapped)
    error = Run(loop, kill_hook(theirs, "USR1")).wait()
    assert error.endswith(f"belongs to another user than process {roots.pid}, which it names")
    assert roots.poll() is None


@AS_ROOT
def test_a_user_may_have_a_process_of_their_own_signalled(loop: Loop, theirs: Path) -> None:
    with subprocess.Popen(["sleep", "60"], user=SOMEBODY) as engine:
        theirs.write_text(f"{engine.pid}\n")
        os.chown(theirs, SOMEBODY, SOMEBODY)
        assert Run(loop, kill_hook(theirs, "USR1")).wait() == ""
        assert engine.wait(10) == -signal.SIGUSR1

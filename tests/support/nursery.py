"""Agent processes without the start-up of their interpreters.

    python -m tests.support.nursery

imports the agent once and forks a guardian for each order it reads; what the
guardian would execute (fetcher, worker, stager) is forked from it as well.
Everything else is real: processes with their own ids, pipes, sessions and
ends. A crash walk starts a thousand of them; executing them would take five
times as long. The other integration tests execute them.

One order a line on standard input, one process id a line on standard output;
the end of standard input ends whatever is left. Two constants are changed, so
that a trial of 0.2 s takes 0.2 s beside other tests: samples come often, and
other programs' load on the machine doesn't count. A third makes what a disk
refused be tried again at once.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, BinaryIO, NoReturn

import msgspec
import psutil

import agent.fetcher.cycle
import agent.fetcher.main
import agent.guardian.conditions
import agent.guardian.main
import agent.guardian.settlement
import agent.guardian.trial
import agent.host
import agent.stager.main
from agent.host import posix_io
from feed import durable
from tests.support import badcalls
from tests.support.badcalls import Illness
from tests.support.crashing import Walk, fault_hook

FIRST_UNUSED_DESCRIPTOR = 3
DESCRIPTORS_MAX = 256

_PROGRAMS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "agent.fetcher": ("fetcher", agent.fetcher.main.main),
    "agent.fetcher.cycle": ("worker", agent.fetcher.cycle.main),
    "agent.stager": ("stager", agent.stager.main.main),
}


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Start a guardian. Its log is appended to `log`.

    boot is the boot id that it sees, illness what its disk does, if given.
    """

    config: str
    log: str
    environment: dict[str, str]
    walk: Walk
    boot: str = ""
    illness: Illness | None = None


class Forked:
    """What agent.host uses of subprocess.Popen, for a child that was forked."""

    def __init__(self, pid: int, stdin: BinaryIO, stdout: BinaryIO) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        import select

        if self.returncode is not None:
            return self.returncode
        poller = select.poll()
        poller.register(descriptor := os.pidfd_open(self.pid), select.POLLIN)
        try:
            if not poller.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(["forked"], timeout or 0)
        finally:
            os.close(descriptor)
        status = self._reap(0)
        assert status is not None
        return status

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nursery:
    """Forks processes; what `order` says is inherited by all that come from it."""

    def __init__(self) -> None:
        self.order: Order | None = None
        self.guardian = 0
        self.alive: set[int] = set()

    def popen(self, command: Sequence[str], **options: Any) -> Any:
        """subprocess.Popen for agent.host; hooks of the machine are executed as ever."""
        if list(command[1:3]) != ["-P", "-m"] or command[3] not in _PROGRAMS:
            return subprocess.Popen(command, **options)
        name, main = _PROGRAMS[command[3]]
        their_input, our_output = os.pipe2(os.O_CLOEXEC)
        our_input, their_output = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if not pid:
            streams = (their_input, their_output, 2)
            session = bool(options["start_new_session"])
            self.become(name, main, command[4:], streams, options["env"], session=session)
        os.close(their_input)
        os.close(their_output)
        return Forked(pid, os.fdopen(our_output, "wb", 0), os.fdopen(our_input, "rb", 0))

    def become(
        self,
        name: str,
        main: Callable[[list[str]], int],
        arguments: Sequence[str],
        streams: tuple[int, int, int],
        environment: Mapping[str, str],
        *,
        session: bool,
    ) -> NoReturn:
        """Be another program from here on; nothing of the parent is finalised."""
        code = 70
        try:
            gc.freeze()
            _forget_signals()
            if session:
                os.setsid()
            os.chdir("/")
            for number, descriptor in enumerate(streams):
                os.dup2(descriptor, number)
            os.closerange(FIRST_UNUSED_DESCRIPTOR, DESCRIPTORS_MAX)
            os.environ.clear()
            os.environ.update(environment)
            assert self.order is not None
            if name != "guardian":
                self.order.walk.note_process(name, os.getpid())
            durable.set_fault_hook(fault_hook(self.order.walk, name, guardian=self.guardian))
            if self.order.illness:
                badcalls.install(self.order.illness, Path(self.order.walk.folder), name)
            code = main(list(arguments))
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:  # noqa: BLE001 - as the interpreter's outermost frame does
            traceback.print_exc()
            code = 1
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            if self.order and name == "guardian":
                self.order.walk.note_exit(os.getpid(), code)
            os._exit(code)

    def start(self, order: Order) -> int:
        """Fork a guardian."""
        pid = os.fork()
        if not pid:
            self._be_guardian(order)
        self.alive.add(pid)
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended already
            # Here, not in the child: whoever cuts the power next has to find it.
            order.walk.note_process("guardian", pid)
        return pid

    def _be_guardian(self, order: Order) -> NoReturn:
        self.order, self.guardian = order, os.getpid()
        if order.boot:
            agent.host.boot_id = lambda: order.boot
        log = os.open(order.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        streams = (os.open(os.devnull, os.O_RDONLY), log, log)
        arguments = ["--config", order.config]
        main = agent.guardian.main.main
        self.become("guardian", main, arguments, streams, order.environment, session=True)

    def reap(self, *_: object) -> None:
        """SIGCHLD: nobody else waits for the guardians."""
        for pid in tuple(self.alive):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    self.alive.discard(pid)

    def serve(self) -> None:
        """Until standard input ends."""
        posix_io.subprocess = SimpleNamespace(  # type: ignore[attr-defined]
            Popen=self.popen,
            PIPE=subprocess.PIPE,
            STDOUT=subprocess.STDOUT,
            TimeoutExpired=subprocess.TimeoutExpired,
        )
        _change(agent.guardian.trial, "SAMPLE_INTERVAL_S", 0.1)
        _change(agent.guardian.settlement, "RETRY_INTERVAL_S", 0.1)
        _change(agent.guardian.conditions, "FOREIGN_SHARE", 2.0)
        signal.signal(signal.SIGCHLD, self.reap)
        for line in sys.stdin.buffer:
            print(self.start(msgspec.json.decode(line, type=Order)), flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for pid in self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _change(module: ModuleType, name: str, value: float) -> None:
    assert isinstance(getattr(module, name), float)
    setattr(module, name, value)


def _forget_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Client:
    """The test's end of a nursery."""

    def __init__(self) -> None:
        import threading

        kept = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_PROCESS")}
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.nursery"],
            cwd=Path(__file__).parents[2],
            env=kept,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def start(self, order: Order) -> int:
        """The new guardian's process id."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(msgspec.json.encode(order) + b"\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


if __name__ == "__main__":
    Nursery().serve()

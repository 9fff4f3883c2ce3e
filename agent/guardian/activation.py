"""Make the engines take what the current link points at: hooks, in order.

Which hooks run is the release's say, what they run is the administrator's. A
hook that fails, hangs past its time or can't start ends the activation; during
a trial that reverts it. On the way back nothing ends it: whoever took the release
hears of its end. Output is kept up to a limit and thrown away past it.
A process that a hook leaves running (an engine it started) is left alone.

A unit of systemd is asked for its state first: what isn't running takes the
release when it starts, and what the release has killed is started by a revert.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from agent import host
from agent.children import Child, small_environment
from agent.config import Hook
from agent.errors import ActivationError, StarvedError
from agent.guardian import units
from agent.guardian.finders import read_pid
from agent.loop import Loop
from feed.manifest import Activation

STARVED = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
UNIT_OUTPUT_BYTES_MAX = 4096  # of systemctl show; its six lines are far shorter

_log = structlog.get_logger()

Done = Callable[[ActivationError | None], None]


def chosen(hooks: tuple[Hook, ...], activation: Activation) -> tuple[Hook, ...]:
    """The configured hooks that a release asks for; it can't bring its own."""
    if activation.hooks is None:
        return hooks
    return tuple(hook for hook in hooks if hook.name in activation.hooks)


class ActivationRun:
    """Runs hooks one after the other on the loop; `done` gets the first error or None.

    to_the_end: a hook that fails doesn't keep the others from running. One that is
    starved always stops the run, and `done` is told; `resume` begins with it again,
    `skip` goes on with the next.
    """

    def __init__(
        self,
        loop: Loop,
        hooks: tuple[Hook, ...],
        *,
        current: Path,
        release: str,
        reason: str,
        done: Done,
        to_the_end: bool = False,
    ) -> None:
        self._loop = loop
        self._waiting = list(hooks)
        self._environment = small_environment(
            os.environ,
            HOLDFAST_CURRENT=str(current),
            HOLDFAST_RELEASE=release,
            HOLDFAST_REASON=reason,
        )
        self._reason = reason
        self._deadline = 0.0
        self._done = done
        self._to_the_end = to_the_end
        self._first_error: ActivationError | None = None
        self._child: Child | None = None
        self._cancelled = False
        loop.call_in(0, self._next)

    def cancel(self) -> None:
        """Stop where it is; `done` isn't called any more."""
        self._cancelled = True
        if self._child:
            self._child.kill()

    def resume(self) -> None:
        """Begin again with the hook that was starved; those before it have run."""
        self._loop.call_in(0, self._next)

    def skip(self) -> None:
        """Give up the hook that was starved; the next one may need no process."""
        self._waiting.pop(0)
        self.resume()

    def _next(self) -> None:
        if self._cancelled:
            return
        if not self._waiting:
            self._done(self._first_error)
            return
        hook = self._waiting.pop(0)
        self._deadline = self._loop.clock() + hook.timeout_s
        try:
            if hook.command:
                self._run(hook, hook.command, then=lambda _output: self._succeeded(hook))
            elif name := hook.reload_unit or hook.restart_unit:
                self._ask_unit(hook, name)
            else:
                _signal(hook)
                self._loop.call_in(0, self._next)
        except OSError as error:
            self._not_started(hook, error)
        except ActivationError as error:
            self._fail(hook, f"can't signal its process: {error}")

    def _run(self, hook: Hook, command: tuple[str, ...], *, then: Callable[[str], None]) -> None:
        """Run `command` in what is left of the hook's time; `then` gets what it printed.

        Raises OSError: it can't be started.
        """
        kept = bytearray()

        def on_output(data: bytes) -> None:
            room = hook.output_bytes_max - len(kept)
            kept.extend(data[: max(room, 0)])

        def on_end(status: int) -> None:
            self._ended(hook, status, kept.decode("utf-8", "replace").strip(), then)

        self._child = Child(
            self._loop,
            command,
            name=f"hook {hook.name}",
            on_line=on_output,
            on_end=on_end,
            environment=self._environment,
            timeout_s=max(0.0, self._deadline - self._loop.clock()),
            close_input=True,
            merge_errors=True,
            whole_lines=False,
            leaves_daemons=True,
        )

    def _ended(self, hook: Hook, status: int, said: str, then: Callable[[str], None]) -> None:
        child, self._child = self._child, None
        if self._cancelled:
            return
        if child and child.timed_out:
            self._fail(hook, f"didn't end within {hook.timeout_s:g} s and was killed")
        elif status:
            self._fail(hook, f"ended with status {status}" + (f": {said[-300:]}" if said else ""))
        else:
            then(said)

    def _succeeded(self, hook: Hook) -> None:
        _log.info("hook_done", hook=hook.name)
        self._next()

    # Units of systemd.

    def _ask_unit(self, hook: Hook, name: str) -> None:
        """What must be done with the unit depends on how it is. Raises OSError."""
        systemctl = units.systemctl_path()
        if systemctl is None:
            self._fail(hook, f"needs systemd, which isn't here, for {name}")
            return
        asking = msgspec.structs.replace(hook, output_bytes_max=UNIT_OUTPUT_BYTES_MAX)
        self._run(
            asking,
            (systemctl, *units.show(name)),
            then=lambda said: self._steer(hook, systemctl, name, units.parse(said)),
        )

    def _steer(self, hook: Hook, systemctl: str, name: str, unit: units.Unit) -> None:
        if unit.load == "not-found":
            self._fail(hook, f"names {name}, and {unit.problem}")
            return
        verb = "reload" if hook.reload_unit else "restart"
        steps = units.steps(unit, name, verb=verb, reason=self._reason)
        if not steps:
            _log.info("hook_skipped", hook=hook.name, reason=f"{name} is {unit.active}")
            self._loop.call_in(0, self._next)
            return
        self._walk(hook, [(systemctl, *step) for step in steps])

    def _walk(self, hook: Hook, calls: list[tuple[str, ...]]) -> None:
        """systemctl waits for the job and its status says whether it worked."""
        if not calls:
            self._succeeded(hook)
            return
        try:
            self._run(hook, calls[0], then=lambda _said: self._walk(hook, calls[1:]))
        except OSError as error:
            self._not_started(hook, error)

    def _not_started(self, hook: Hook, error: OSError) -> None:
        kind = StarvedError if error.errno in STARVED else ActivationError
        self._fail(hook, f"can't be started: {error}", kind)

    def _fail(
        self, hook: Hook, problem: str, kind: type[ActivationError] = ActivationError
    ) -> None:
        _log.warning("hook_failed", hook=hook.name, problem=problem)
        error = kind(f"activation hook {hook.name!r} {problem}")
        if isinstance(error, StarvedError):
            self._waiting.insert(0, hook)
            self._done(error)
        elif not self._to_the_end:
            self._done(error)
        else:
            self._first_error = self._first_error or error
            self._loop.call_in(0, self._next)


def _signal(hook: Hook) -> None:
    """Send the hook's signal to the process its pid file names.

    A missing pid file or process is fine: an engine that isn't running takes
    the release when it starts. Where root sends it, a link isn't followed: whose
    it is says nothing of who made the file that it leads to.
    """
    if sys.platform == "win32":
        raise ActivationError("Windows has no signals; give the hook a command")
    path = Path(hook.pid_file or "")
    pid, problem, owner = read_pid(path, links=not host.is_root())
    if problem and path.exists():
        raise ActivationError(problem)
    try:
        if pid is not None:
            with host.ProcessHandle(pid) as process:
                if not _may_name(owner, pid):
                    raise ActivationError(
                        f"{path} belongs to another user than process {pid}, which it names"
                    )
                process.send(signal.Signals[f"SIG{hook.signal}"])
            _log.info("hook_done", hook=hook.name, pid=pid)
            return
    except ProcessLookupError:
        pass
    except PermissionError as error:
        raise ActivationError(f"process {pid}, named by {path}: {error.strerror}") from error
    _log.info("hook_skipped", hook=hook.name, reason="the process isn't running")


def _may_name(owner: int | None, pid: int) -> bool:
    """Whether a pid file's owner may aim a signal of root's at this process."""
    if owner == 0 or not host.is_root():
        return True
    try:
        return Path(f"/proc/{pid}").stat().st_uid == owner
    except FileNotFoundError:  # gone, or a system without /proc: the kernel decides
        return True

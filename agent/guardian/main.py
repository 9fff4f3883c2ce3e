"""agentd: the guardian's process, what the operating system's service runs.

What a callback doesn't handle ends the process: after half a callback nothing
in memory can be relied on, while the boot record always can. The service
manager starts the next guardian, which recovers from the record alone
(docs/adr/0009). It is counted, so a release that brings the guardian down each
time is reverted.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import structlog

from agent import __version__, config, host, layout, log
from agent.errors import AgentError, ConfigError, UnknownNameError
from agent.guardian import recovery
from agent.guardian.control import ControlServer, StatusServer
from agent.guardian.guardian import Guardian
from agent.guardian.ledger import Ledger
from agent.guardian.starter import Children, Starter
from agent.layout import Layout
from agent.loop import Loop

EXIT_NAME = 67  # EX_NOUSER: a user or group isn't known, or not yet
EXIT_FAULT = 70  # EX_SOFTWARE: start it again, it recovers
EXIT_CONFIG = 78  # EX_CONFIG, sysexits.h: a service manager shouldn't restart at once
EXIT_STATE = 73  # EX_CANTCREAT: the state folder can't be used
EXIT_RUNNING = 75  # EX_TEMPFAIL: another guardian has the state folder

_log = structlog.get_logger()


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT. Exit codes: 0, 67, 70, 73, 75, 78 (docs/operations.md)."""
    if host.watchdog_s() is not None:
        faulthandler.enable()  # a guardian that hangs says where when systemd aborts it
    parser = argparse.ArgumentParser(
        prog="agentd",
        description="The Holdfast guardian: updates this machine and goes back when it hurts.",
    )
    parser.add_argument("--config", type=Path, default=None, metavar="PATH")
    parser.add_argument(
        "--fetcher-connects",
        action="store_true",
        help="the fetcher is a service of its own: wait for it at <runtime_dir>/fetcher.sock",
    )
    parser.add_argument("--version", action="version", version=__version__)
    given = parser.parse_args(arguments)
    path = (given.config or layout.default_path()).absolute()
    try:
        settings = config.load(path)
        log.configure(settings.log_level, program="guardian")
        places = layout.resolve(settings, path)
    except ConfigError as error:
        return _refused(error, EXIT_CONFIG)
    return _run(settings, path, places, fetcher_connects=given.fetcher_connects)


def _run(settings: config.Config, path: Path, places: Layout, *, fetcher_connects: bool) -> int:
    os.umask(0o022)  # engines of other users read the slots
    try:
        places.state.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = host.lock_file(places.lock)
    except AgentError as error:
        return _refused(error, EXIT_RUNNING)
    except OSError as error:
        return _unusable(places, error)
    loop = Loop()
    ledger = Ledger(settings, places, loop)
    try:
        rebooted = recovery.count_boot(ledger)  # before what has other reasons to fail
        ledger.prepare()
        places.runtime.mkdir(mode=0o755, parents=True, exist_ok=True)
        starter = _starter(loop, ledger, fetcher_connects=fetcher_connects)
        guardian = Guardian(ledger, path, starter=starter)
        guardian.recover(rebooted=rebooted)
        servers = _serve(loop, places, settings, guardian)
    except UnknownNameError as error:
        return _refused(error, EXIT_NAME)
    except ConfigError as error:
        return _refused(error, EXIT_CONFIG)
    except OSError as error:
        return _unusable(places, error)
    except Exception:  # noqa: BLE001 - as below: nothing is half done, but nobody watches
        return _failed(lambda: recovery.count_fault(ledger))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.on_signal(number, loop.stop)
    _log.info("guardian_started", state_dir=str(places.state), host=ledger.host_id)
    status = _serve_until_stopped(loop, guardian)
    for server in servers:
        server.close()
    loop.close()
    lock.release()
    return status


def _serve_until_stopped(loop: Loop, guardian: Guardian) -> int:
    try:
        guardian.start()
        host.notify_service("READY=1")
        _beat(loop)
        loop.run()
    except Exception:  # noqa: BLE001 - the outermost loop; what is half done is left to the next
        return _failed(guardian.fail)
    host.notify_service("STOPPING=1")
    guardian.stop()
    return 0


def _failed(count: Callable[[], None]) -> int:
    """Say what is being handled, and count it as a fault of the guardian."""
    _log.error("guardian_fault", traceback=traceback.format_exc())
    try:
        count()
    except OSError as error:
        _log.error("fault_not_counted", problem=str(error))
    return EXIT_FAULT


def _beat(loop: Loop) -> None:
    """Tell the watchdog, where there is one, that the loop turns: from a turn of it."""
    interval_s = host.watchdog_s()
    if interval_s is None:
        return

    def beat() -> None:
        host.notify_service("WATCHDOG=1")
        loop.call_in(interval_s / 2, beat)

    loop.call_in(0, beat)


def _starter(loop: Loop, ledger: Ledger, *, fetcher_connects: bool) -> Starter:
    user = host.user_of(ledger.config.fetcher_user)
    if not fetcher_connects:
        return Children(loop, user)
    from agent.guardian.visitor import Door  # noqa: PLC0415 - where the fetcher is a service

    door = Door(loop, ledger.layout.fetcher_socket, user=user)
    door.open()
    return door


def _serve(
    loop: Loop, places: Layout, settings: config.Config, guardian: Guardian
) -> list[ControlServer]:
    handlers, group = guardian.acting_handlers(), settings.admin_group
    acting = ControlServer(loop, places.control_socket, handlers, mode=0o600, group=group)
    reading = StatusServer(loop, places.status_socket, guardian.reading_handlers(), mode=0o666)
    return [acting, reading]


def _refused(error: AgentError, status: int) -> int:
    print(f"agentd: {error}", file=sys.stderr)
    return status


def _unusable(places: Layout, error: OSError) -> int:
    where = error.filename or places.state
    print(
        f"agentd: {where}: {error.strerror}; the state folder {places.state} must be writable "
        "by the agent. The active release keeps running as it is.",
        file=sys.stderr,
    )
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    return EXIT_STATE

"""holdfast-bootguard: what must have happened before a protected engine starts.

A one-shot program that the service manager runs at boot, before the network and
without it: it counts the trial's start, goes back when none is left, mends a
damaged record, and makes link and settings agree with it. The guardian, which
starts later in the same boot, finds the boot counted and finishes the rest.

With --count-hang it is what runs after a guardian that the service manager has ended,
because it was silent or wasn't ready in time: a hang in a trial is a fault of the
guardian, and counts as one (docs/adr/0009).

Its word is the exit code: 0 done, 70 a fault of its own, 73 the state folder
can't be used, 75 a guardian runs and has seen to it, 78 the configuration can't
be used (what could be done without it was done).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import structlog

from agent import __version__, config, host, layout, log
from agent.config import Config
from agent.errors import AgentError, ConfigError
from agent.guardian import recovery
from agent.guardian.ledger import Ledger
from agent.layout import Layout
from agent.loop import Loop
from agent.slots.record import Phase

EXIT_FAULT = 70  # EX_SOFTWARE, sysexits.h
EXIT_STATE = 73  # EX_CANTCREAT
EXIT_RUNNING = 75  # EX_TEMPFAIL
EXIT_CONFIG = 78  # EX_CONFIG

_log = structlog.get_logger()


def main(arguments: list[str] | None = None) -> int:
    """Guard this boot. Exit codes: see the module."""
    parser = argparse.ArgumentParser(
        prog="holdfast-bootguard",
        description="Counts a trial's start of the machine, and goes back when none is left.",
    )
    parser.add_argument("--config", type=Path, default=None, metavar="PATH")
    parser.add_argument(
        "--count-hang",
        action="store_true",
        help="count a guardian that hung in a trial, as the unit does when systemd ends it",
    )
    parser.add_argument("--version", action="version", version=__version__)
    given = parser.parse_args(arguments)
    path = (given.config or layout.default_path()).absolute()
    os.umask(0o022)  # engines of other users read the link's slots
    settings, problem = _settings(path)
    log.configure(settings.log_level, program="bootguard")
    try:
        places = layout.resolve(settings, path)
        status = count_hang(settings, places) if given.count_hang else guard(settings, places)
    except Exception:  # noqa: BLE001 - the outermost; the boot goes on whatever this was
        _log.error("bootguard_fault", traceback=traceback.format_exc())
        return EXIT_FAULT
    if problem and status == 0:
        print(f"holdfast-bootguard: {problem}", file=sys.stderr)
        return EXIT_CONFIG
    return status


def _settings(path: Path) -> tuple[Config, str]:
    """The configuration, or one that says where the state is, and what is wrong."""
    try:
        return config.load(path), ""
    except ConfigError as error:
        return config.salvaged(path), str(error)


def guard(settings: Config, places: Layout) -> int:
    """Count the boot and make link and settings agree with the record."""

    def work(ledger: Ledger) -> None:
        began = time.monotonic()
        first = recovery.count_boot(ledger)
        _put_settings_in_place(ledger)
        _log.info(
            "boot_guarded",
            phase=ledger.record.phase,
            active=ledger.record.active,
            tries_left=ledger.record.tries_left,
            first=first,
            took_ms=round((time.monotonic() - began) * 1000, 1),
        )

    return _alone(settings, places, work)


def count_hang(settings: Config, places: Layout) -> int:
    """A guardian has hung: what is on trial is left once that has been so too often.

    One that had noted its orderly stop had done its work: the trial is paused, and
    stays so.
    """

    def work(ledger: Ledger) -> None:
        if recovery.has_stopped(ledger):
            _log.info("hang_not_counted", detail="the orderly stop had been noted")
            return
        recovery.count_boot(ledger)
        before = ledger.record
        recovery.count_fault(ledger)
        if ledger.record != before:
            _log.warning("hang_counted", phase=ledger.record.phase, faults=ledger.record.faults)

    return _alone(settings, places, work)


def _alone(settings: Config, places: Layout, work: Callable[[Ledger], None]) -> int:
    """Do `work` on the books while no guardian has them; returns the exit code."""
    if not places.slots.exists() and not places.boot_record.exists():
        _log.info("nothing_to_guard", state_dir=str(places.state))
        return 0
    loop = Loop()  # the books want one; nothing is ever called on it
    try:
        lock = host.lock_file(places.lock)
        try:
            work(Ledger(settings, places, loop))
        finally:
            lock.release()
    except AgentError as error:
        print(f"holdfast-bootguard: {error}", file=sys.stderr)
        return EXIT_RUNNING
    except OSError as error:
        where = error.filename or places.state
        print(f"holdfast-bootguard: {where}: {error.strerror}", file=sys.stderr)
        return EXIT_STATE
    finally:
        loop.close()
    return 0


def _put_settings_in_place(ledger: Ledger) -> None:
    """What can't be done now is the guardian's to do again, or to judge."""
    record = ledger.record
    try:
        if record.phase is Phase.REVERTING:
            recovery.revert_settings(ledger)
        elif record.phase is not Phase.COMMITTED:
            recovery.apply_settings(ledger)
    except (OSError, AgentError, ValueError) as error:
        _log.error("settings_not_in_place", phase=record.phase, problem=str(error))


if __name__ == "__main__":
    raise SystemExit(main())

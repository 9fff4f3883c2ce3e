"""What both services do with pywin32: say how they stand, log, and end with a code."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pywintypes
import servicemanager
import win32service
import win32serviceutil
import winerror

from agent import layout
from service.windows import journal
from service.windows.plan import PRESHUTDOWN_MS, Severity

if sys.platform != "win32":
    raise ImportError("services of this kind are Windows'")

START_HINT_MS = 60_000
PRESHUTDOWN = 0xF  # SERVICE_CONTROL_PRESHUTDOWN
ACCEPT_PRESHUTDOWN = 0x100

_options: dict[str, Path] = {}


def config_path() -> Path:
    """The configuration that this process was started with."""
    return _options["config"]


class Hosted(win32serviceutil.ServiceFramework):
    """A service that does `work` on a thread the service manager gave it.

    It says that it starts until `running` is called, and that it stops as soon
    as it is asked to. An end with another code than 0 is a failure, which the
    service manager answers as it was told (plan.RESTART_AFTER_MS).
    """

    also_stops: ClassVar[frozenset[int]] = frozenset()  # controls of a service's own

    def GetAcceptedControls(self) -> int:  # noqa: N802 - pywin32's name
        """Pre-shutdown comes before shutdown, with time; it needs asking for."""
        return win32service.SERVICE_ACCEPT_STOP | ACCEPT_PRESHUTDOWN

    def SvcStop(self) -> None:  # noqa: N802
        """Asked to stop; from the manager's thread."""
        self.ReportServiceStatus(win32service.SERVICE_STOP_PENDING, waitHint=PRESHUTDOWN_MS)
        self.stop()

    def SvcOtherEx(self, control: int, event_type: int, data: Any) -> None:  # noqa: N802
        """The machine shuts down, in time for an orderly end; or what a service has besides."""
        del event_type, data
        if control == PRESHUTDOWN or control in self.also_stops:
            self.SvcStop()

    def SvcRun(self) -> None:  # noqa: N802
        """What the service manager's thread does."""
        self.ReportServiceStatus(win32service.SERVICE_START_PENDING, waitHint=START_HINT_MS)
        status = self.work()
        if status:
            self.ReportServiceStatus(
                win32service.SERVICE_STOPPED,
                win32ExitCode=winerror.ERROR_SERVICE_SPECIFIC_ERROR,
                svcExitCode=status,
            )
            # After this method pywin32 says stopped once more, with 0: as if nothing were wrong.
            os._exit(status)

    def running(self) -> None:
        """Those who depend on this service may start."""
        self.ReportServiceStatus(win32service.SERVICE_RUNNING)

    def work(self) -> int:
        """Until it is stopped; returns the exit code."""
        raise NotImplementedError

    def stop(self) -> None:
        """Have `work` come to its end; from another thread."""
        raise NotImplementedError


def tell(kind: Severity, text: str) -> None:
    """One entry in the event log, under the service's name."""
    say: dict[Severity, Callable[[str], None]] = {
        "info": servicemanager.LogInfoMsg,
        "warning": servicemanager.LogWarningMsg,
        "error": servicemanager.LogErrorMsg,
    }
    try:
        say[kind](text)
    except pywintypes.error as error:
        raise OSError(error.strerror) from error


def run(service: type[Hosted], *, name: str, log_name: str) -> None:
    """Be the service: the process's main function."""
    parser = argparse.ArgumentParser(prog=f"python -m {service.__module__}")
    parser.add_argument("--config", type=Path, default=layout.default_path(), metavar="PATH")
    config = parser.parse_args().config.absolute()
    _options["config"] = config
    journal.take_over(config.parent / "log" / log_name, tell)
    threading.stack_size(256 << 10)  # threads only move bytes
    servicemanager.Initialize(name, None)
    servicemanager.PrepareToHostSingle(service)
    dispatch: Any = servicemanager.StartServiceCtrlDispatcher
    dispatch()

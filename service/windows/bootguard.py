"""The boot guard's service: what must have happened before a protected engine starts.

It starts with Windows, before the engines that depend on it, and is running
once it has done its work. It stays: an engine that is started again finds its
dependency met. Whatever goes wrong, it says that it runs: a guard that kept an
engine from starting would be worse than none.

Who replaces or removes the program has it end all the same (plan.LET_GO): the
engines run on, and their next start starts the guard that is there then.
"""

from __future__ import annotations

import sys
import threading
import traceback

from agent.host.naming import BOOT_GUARD
from service.windows import hosting
from service.windows.plan import LET_GO

if sys.platform != "win32":
    raise ImportError("services of this kind are Windows'")

PATIENCE_S = 20.0  # the service manager gives up on its dependents after 30


class BootGuardService(hosting.Hosted):
    """Guards once, then waits to be stopped."""

    _svc_name_ = BOOT_GUARD
    also_stops = frozenset({LET_GO})

    def work(self) -> int:
        self._stopped = threading.Event()
        guarding = threading.Thread(target=_guard, daemon=True)
        guarding.start()
        guarding.join(PATIENCE_S)
        self.running()
        self._stopped.wait()
        return 0

    def stop(self) -> None:
        self._stopped.set()


def _guard() -> None:
    try:
        from agent.guardian import bootguard  # noqa: PLC0415 - what fails here is told as well

        bootguard.main(["--config", str(hosting.config_path())])
    except (Exception, SystemExit):  # noqa: BLE001 - see the module; it is told, and the boot goes on
        print(traceback.format_exc(), file=sys.stderr)


if __name__ == "__main__":
    hosting.run(BootGuardService, name=BOOT_GUARD, log_name="bootguard.log")

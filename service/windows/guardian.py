"""The agent's service: agentd, started and stopped by the service manager."""

from __future__ import annotations

import sys

from agent.guardian import main
from agent.host import windows, windows_io
from agent.host.naming import GUARDIAN
from service.windows import hosting

if sys.platform != "win32":
    raise ImportError("services of this kind are Windows'")


class GuardianService(hosting.Hosted):
    """Runs the guardian's own main function; a stop is what SIGTERM is elsewhere."""

    _svc_name_ = GUARDIAN

    def work(self) -> int:
        """Running is what the guardian says once it has recovered and serves."""
        windows.on_notice(self._heard)
        return main.main(["--config", str(hosting.config_path())])

    def _heard(self, state: str) -> None:
        if state == "READY=1":
            self.running()

    def stop(self) -> None:
        windows_io.stop_service()


if __name__ == "__main__":
    hosting.run(GuardianService, name=GUARDIAN, log_name="agent.log")

"""What the fetcher hands to the stager, made by the real one and then tampered with.

handover = Handover(endpoint)             # incoming/<attempt>, as fetched
(handover.folder / "handover.json").write_text("garbage")
result = handover.stage()                 # the real stager's answer
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from agent import channel, config, layout
from agent.channel import Begin, Host, StageJob
from agent.fetcher import cycle
from agent.guardian.ledger import Ledger
from agent.loop import Loop
from agent.slots import record as records
from agent.stager.main import serve
from tests.support.endpoint import ROOT, Endpoint

ATTEMPT = "0123456789abcdef"


class Handover:
    """One attempt's folder below incoming/, and the job that the guardian would give.

    fetch False leaves the folder to the test.
    """

    def __init__(self, endpoint: Endpoint, *, fetch: bool = True) -> None:
        self.endpoint = endpoint
        settings = config.load(endpoint.config)
        self.places = layout.resolve(settings, endpoint.config)
        self.folder = self.places.incoming / ATTEMPT
        self.record = records.load(self.places.boot_record)
        self.host = host_of(endpoint)
        order = Begin(attempt=ATTEMPT, trigger="test", download=True, host=self.host)
        self.word = cycle.check(order, settings, self.places) if fetch else None

    @property
    def job(self) -> StageJob:
        """Build the spare slot from this handover."""
        return StageJob(
            attempt=ATTEMPT,
            host=self.host,
            active=self.record.active,
            slot=self.record.spare,
            reuse=False,
        )

    def target(self, path: str) -> Path:
        """Where the handover has a target."""
        return self.folder / "targets" / path

    def stage(self) -> Any:
        """The stager's answer, given in this process."""
        return serve(self.job, self.places)

    def stage_apart(self) -> Any:
        """The answer of `python -m agent.stager`."""
        done = subprocess.run(
            [sys.executable, "-m", "agent.stager", "--config", str(self.endpoint.config)],
            input=channel.encode(self.job),
            cwd=ROOT,
            capture_output=True,
            timeout=30,
            check=True,
        )
        return channel.decode(done.stdout, channel.Result)


def host_of(endpoint: Endpoint) -> Host:
    """What the guardian would say about this machine."""
    settings = config.load(endpoint.config)
    places = layout.resolve(settings, endpoint.config)
    loop = Loop()
    ledger = Ledger(settings, places, loop)
    ledger.prepare()
    ledger.adopt(records.load(places.boot_record))
    loop.close()
    return ledger.describe_host()

"""Which copy of the agent's program runs: the active slot's, or the package's own.

Fetcher and stager are a component like any other where `[program]` names it: a
tree with the Python packages `agent` and `feed`, run by the package's
interpreter with that tree first on its path (docs/adr/0015).

 * The guardian is always the package's: it outlives what it judges.
 * A tree is used only if its marker says this guardian's protocol.
 * What holds both slots against their seals is the package's own program.
 * At rest, what can't be used is replaced by the package's own, and told.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from agent import __version__
from agent.channel import PROTOCOL
from agent.children import small_environment
from agent.guardian.ledger import Ledger
from agent.slots.record import Phase, SlotName

MARKER = "agent/program.json"
MARKER_BYTES_MAX = 4096

_log = structlog.get_logger()


class Marker(msgspec.Struct, frozen=True):
    """The file that tells which guardians a tree can serve."""

    protocol: int


class Program(NamedTuple):
    """A copy of the program: a slot's tree, or the package's own when `folder` is None."""

    slot: SlotName | None
    folder: Path | None
    version: str

    def command(self, module: str, config_path: Path, *more: str) -> list[str]:
        """What starts one of its modules. -P: the working folder isn't on the path."""
        return [sys.executable, "-P", "-m", module, "--config", str(config_path), *more]

    def environment(self, outer: Mapping[str, str]) -> dict[str, str]:
        """What it gets of the guardian's environment; the path is this tree's alone.

        Nothing is written beside the modules of a sealed slot.
        """
        return small_environment(outer, **self.variables)

    @property
    def variables(self) -> dict[str, str]:
        """What its environment holds besides."""
        if self.folder is None:
            return {"PYTHONNOUSERSITE": "1"}
        return {
            "PYTHONNOUSERSITE": "1",
            "PYTHONPATH": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",
        }


OWN = Program(slot=None, folder=None, version=__version__)


class Programs:
    """Knows the copies; `problem` says why the active slot's isn't used, "" when it is."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._distrusted: tuple[SlotName | None, str, str] = (None, "", "")  # slot, seal, why
        self.problem = ""

    @property
    def component(self) -> str | None:
        """The component that is the agent's program here."""
        return self._ledger.config.program.component

    def current(self) -> Program:
        """What is to run now."""
        slot = self._ledger.record.active
        self.problem = self._unusable(slot) if slot else ""
        return OWN if slot is None or self.problem else self.of(slot)

    def of(self, slot: SlotName) -> Program:
        """The program of a slot; the package's own when its release brings none."""
        seal, name = self._ledger.seal_of(slot), self.component
        for item in seal.components if seal else ():
            if item.name == name:
                folder = self._ledger.layout.slot(slot).absolute() / item.name
                return Program(slot=slot, folder=folder, version=item.version)
        return OWN

    def _unusable(self, slot: SlotName) -> str:
        program = self.of(slot)
        held = self._ledger.record.slots.get(slot)
        if program.folder is None or held is None:
            return ""
        record, told = self._ledger.record, f"the program {program.version} in slot {slot}"
        report = self._ledger.reports.get(slot)
        if record.held is not None:
            return f"{told} isn't used while both slots are bad"
        if report and program.folder.name in report.damaged:
            return f"{told} is damaged"
        if problem := unfit(program):
            return problem
        if self._distrusted[:2] == (slot, held.seal):
            return f"{told} isn't used: {self._distrusted[2]}"
        return ""

    def distrust(self, sentence: str) -> None:
        """The active slot's program has failed at rest: it isn't used as long as it lies there."""
        record = self._ledger.record
        if record.content is not None:
            self._distrusted = (record.active, record.content.seal, sentence)
            _log.error("program_fallback", slot=record.active, problem=sentence)

    def on_trial(self) -> tuple[Program, Program] | None:
        """The program that the running trial has changed, and the one before it."""
        record = self._ledger.record
        if record.phase is not Phase.TRIAL or record.attempt is None or record.active is None:
            return None
        new = self.of(record.active)
        if new.folder is None or new.folder.name not in record.attempt.changed:
            return None
        return new, OWN if self._unusable(record.spare) else self.of(record.spare)


def unfit(program: Program) -> str:
    """Why this guardian can't work with a program; "" when it can."""
    if program.folder is None:
        return ""
    told = f"the program {program.version} in slot {program.slot}"
    path = program.folder / MARKER
    try:
        with path.open("rb") as file:
            marker = msgspec.json.decode(file.read(MARKER_BYTES_MAX), type=Marker)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return f"{told} has no usable {MARKER}: {error}"
    if marker.protocol != PROTOCOL:
        return f"{told} speaks protocol {marker.protocol}, this guardian {PROTOCOL}"
    return ""

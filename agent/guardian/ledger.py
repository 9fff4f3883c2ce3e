"""The guardian's books on this machine: boot record, status, quarantine, seals.

The boot record is the truth; every change to it passes `commit`, which makes
it durable before anybody acts on it. The rest is derived from it or only shown.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from agent import __version__, host
from agent.channel import Host, Installed, SlotReport
from agent.config import Config
from agent.errors import SlotError
from agent.guardian import history, lifecycle, quarantine, settings
from agent.guardian.history import Outcome
from agent.guardian.lifecycle import State
from agent.layout import SLOT_NAMES, Layout
from agent.loop import Loop
from agent.slots import record as records
from agent.slots import seal as seals
from agent.slots.record import BootRecord, SlotContent, SlotName
from agent.slots.seal import Seal
from feed import durable

HOST_ID_BYTES_MAX = 256
EVIDENCE_KEPT = 50

_log = structlog.get_logger()


class Ledger:
    """See the module. `wall` gives Unix seconds, for people and for expiry only."""

    def __init__(
        self, config: Config, layout: Layout, loop: Loop, *, wall: Callable[[], float] = time.time
    ) -> None:
        self.config = config
        self.layout = layout
        self.loop = loop
        self.wall = wall
        self.boot_id = host.boot_id()
        self.record = BootRecord()
        self.status = lifecycle.resumed(self.record, now=wall())
        self.quarantine: tuple[quarantine.Entry, ...] = ()
        self.host_id = ""
        self.reports: dict[SlotName, SlotReport] = {}
        self._seals: dict[SlotName, Seal] = {}
        self.last_attempt = ""  # the newest line of the history that was written here
        self.on_change: Callable[[], None] = lambda: None  # state or reason are others now

    def prepare(self) -> None:
        """Make the folders and read what doesn't change.

        Raises OSError: the state folder can't be written. UnknownNameError: no such user.
        """
        user = host.user_of(self.config.fetcher_user)
        self.layout.state.mkdir(mode=0o755, parents=True, exist_ok=True)
        for folder in (self.layout.slots, self.layout.evidence, self.layout.stager_trust.parent):
            folder.mkdir(mode=0o755, exist_ok=True)
        if not os.access(self.layout.state, os.W_OK):
            raise OSError(errno.EROFS, "can't be written to", str(self.layout.state))
        self.layout.stager_trust.mkdir(mode=0o700, exist_ok=True)
        places = self.layout
        for folder in (places.incoming, places.cache, places.fetcher_trust, places.server):
            folder.mkdir(mode=0o700, exist_ok=True)
            if user:
                host.give_to(folder, user)
        for folder in (self.layout.state, self.layout.evidence):
            durable.sweep_temporaries(folder)
        self.host_id = self.config.host_id or self._own_host_id()
        self.quarantine = quarantine.without_incompatible(quarantine.load(self.layout.quarantine))

    def _own_host_id(self) -> str:
        """The one that is kept, or a new one: a machine isn't left unwatched for its name."""
        path = self.layout.host_id
        fresh = secrets.token_hex(8)
        try:
            kept = path.read_bytes()[:HOST_ID_BYTES_MAX].decode("ascii", "replace").strip()
        except FileNotFoundError:
            kept = ""
        else:
            if kept and kept.isascii() and kept.isprintable():
                return kept
            aside = path.with_name(f"{path.name}.unreadable")
            durable.rename(path, aside)
            _log.error("host_id_unreadable", path=str(path), kept=str(aside), fresh=fresh)
        durable.replace(path, f"{fresh}\n".encode(), mode=0o644)
        return fresh

    # The boot record.

    def commit(self, record: BootRecord) -> None:
        """Make `record` the truth.

        Raises OSError: it couldn't be written; the previous one still holds.
        """
        records.store(self.layout.boot_record, record)
        self.adopt(record)

    def adopt(self, record: BootRecord) -> None:
        """Go by `record` from now on, without writing it."""
        self.record = record
        self._seals.clear()
        known = {name: held.seal for name, held in record.slots.items()}
        self.reports = {
            name: report for name, report in self.reports.items() if known.get(name) == report.known
        }

    def switch_link(self) -> None:
        """Make the current link what the record says. Raises OSError."""
        active = self.record.active
        if active is None:
            host.switch_link(self.layout.current, None)
        elif not host.points_at(self.layout.current, self.layout.slot(active)):
            host.switch_link(self.layout.current, self.layout.slot(active))

    def sealed_slots(self) -> dict[SlotName, SlotContent]:
        """What the seals on the disk say, for a record that is rebuilt."""
        found: dict[SlotName, SlotContent] = {}
        for name in SLOT_NAMES:
            with contextlib.suppress(SlotError):
                found[name] = seals.read(self.layout.slot(name))[1]
        return found

    def is_sealed(self, slot: SlotName) -> bool:
        """Whether a slot has its seal on the disk now."""
        try:
            seals.read(self.layout.slot(slot))
        except SlotError as error:
            _log.warning("seal_unreadable", slot=slot, problem=str(error))
            return False
        return True

    def drop_leftovers(self) -> None:
        """Nothing is in progress: delete what an interrupted attempt left. Raises OSError."""
        host.empty(self.layout.incoming)
        if self.layout.trial_notes.exists():
            durable.remove(self.layout.trial_notes)
        content = self.record.content
        settings.keep_only(self.layout, owner=content.seal if content else None)

    def make_room(self) -> None:
        """Give up what can be downloaded again, for the few bytes that a way back needs."""
        for folder in (self.layout.incoming, self.layout.cache):
            host.empty(folder)

    # The published status.

    def to(self, state: State, *, reason: str, sentence: str, release: str | None = None) -> None:
        """Pass to `state` and publish it; the log gets it when state or reason change.

        Raises LifecycleError: the table doesn't list the transition.
        """
        before = self.status
        self.status = lifecycle.advance(
            before,
            state,
            reason=reason,
            sentence=sentence,
            now=self.wall(),
            release=release if release is not None else before.release,
        )
        if (before.state, before.reason) != (state, reason):
            _log.info(
                "state", state=state, reason=reason, detail=sentence, release=self.status.release
            )
            self.on_change()

    def show_progress(self, done: float, total: float) -> None:
        """Publish how far the state is: bytes, or healthy seconds in a trial."""
        self.status = lifecycle.with_progress(self.status, done=done, total=total)

    # What is installed.

    def seal_of(self, slot: SlotName) -> Seal | None:
        """The seal of a slot that the record knows; None if it can't be read."""
        if slot not in self.record.slots:
            return None
        if slot not in self._seals:
            try:
                self._seals[slot], _ = seals.read(self.layout.slot(slot))
            except SlotError as error:
                _log.warning("seal_unreadable", slot=slot, problem=str(error))
                return None
        return self._seals[slot]

    @property
    def active_seal(self) -> Seal | None:
        """The seal of the active slot."""
        return self.seal_of(self.record.active) if self.record.active else None

    @property
    def damaged(self) -> frozenset[str]:
        """Components of the active slot that were found altered, and are to be fetched anew.

        None while both slots are bad: what was fetched for that has failed.
        """
        if self.record.held is not None:
            return frozenset()
        report = self.reports.get(self.record.active) if self.record.active else None
        return frozenset(report.damaged) if report else frozenset()

    def describe_host(self) -> Host:
        """What the fetcher and the stager go by."""
        seal = self.active_seal
        installed = {
            item.name: Installed(
                version=item.version,
                digest=item.digest,
                length=item.length,
                filename=item.filename,
            )
            for item in (seal.components if seal else ())
            if item.name not in self.damaged
        }
        return Host(
            host_id=self.host_id,
            region=self.config.region,
            platform=sys.platform,
            agent_version=__version__,
            active_release=self.record.content.release if self.record.content else None,
            installed=installed,
            quarantine=quarantine.in_force(self.quarantine, now=self.wall()),
            traits=self.config.traits,
        )

    # What ended.

    def add_to_quarantine(self, entry: quarantine.Entry) -> None:
        """Durably; the same set is renewed rather than listed twice."""
        self._store_quarantine(quarantine.with_entry(self.quarantine, entry))

    def clear_quarantine(self, which: str | None) -> int:
        """Durably remove one entry, or all; returns how many went."""
        kept = quarantine.without(self.quarantine, which)
        gone = len(self.quarantine) - len(kept)
        if gone:
            self._store_quarantine(kept)
        return gone

    def _store_quarantine(self, entries: tuple[quarantine.Entry, ...]) -> None:
        quarantine.store(self.layout.quarantine, entries)
        self.quarantine = entries

    def remember(self, outcome: Outcome) -> bool:
        """Add an attempt's end to the history; False where the disk refuses the line."""
        try:
            history.append(self.layout.history, outcome)
        except OSError as error:
            _log.error("history_not_written", attempt=outcome.attempt, problem=str(error))
            return False
        self.last_attempt = outcome.attempt
        return True

    def keep_evidence(self, name: str, data: bytes) -> str | None:
        """Write a verdict's evidence; returns its name, None if there was no room for it."""
        path = self.layout.evidence / name
        try:
            durable.replace(path, data, mode=0o644)
        except OSError as error:
            _log.error("evidence_not_written", path=str(path), problem=str(error))
            return None
        self._drop_old_evidence()
        return name

    def _drop_old_evidence(self) -> None:
        files = sorted(self.layout.evidence.glob("*.json"), key=_modified)
        for path in files[:-EVIDENCE_KEPT]:
            with contextlib.suppress(OSError):
                path.unlink()


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0

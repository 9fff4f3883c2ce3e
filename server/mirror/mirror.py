"""The mirror of one state folder: sync, scrub, and what there is to be seen of it.

Everything it needs comes in as arguments and everything it knows is in the
state folder; there is no database here. server.mirror.run has the rules.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator

import msgspec
import structlog

from server.errors import BusyError
from server.layout import Layout
from server.mirror import record, retention
from server.mirror.outcome import SourceSpec, Synced
from server.mirror.record import Record
from server.mirror.retention import Choice
from server.mirror.run import Run
from server.mirror.scrub import Scrubbed, Scrubber
from server.mirror.served import Served
from server.mirror.supply import Progress, Tell
from server.mirror.wishes import Needs
from server.settings import Policy

ROOM_RESERVE_BYTES = 64 << 20  # as agents leave free
INCREMENTS_WAIT_S = 2 * 3600.0

_log = structlog.get_logger()


class Mirror:
    """The mirror of one state folder, whose lock the caller holds; what is there is made whole.

    One run or scrub at a time; the rest may be asked anytime. clock is the wall
    clock, Unix seconds. room_reserve_bytes stay free on the disk.
    increments_wait_s: how long a release waits for increments.
    """

    def __init__(
        self,
        places: Layout,
        *,
        clock: Callable[[], float] = time.time,
        room_reserve_bytes: int = ROOM_RESERVE_BYTES,
        increments_wait_s: float = INCREMENTS_WAIT_S,
    ) -> None:
        self._places = places
        self._clock = clock
        self._reserve = room_reserve_bytes
        self._wait_s = increments_wait_s
        self._busy = threading.Lock()
        Served(places.feed).recover()

    def sync(
        self,
        source: SourceSpec,
        trust_root: bytes,
        *,
        policy: Policy | None = None,
        needs: Needs | None = None,
        trigger: str = "",
        pinned: Collection[str] = (),
        progress: Tell | None = None,
    ) -> Synced:
        """Bring the served folder up to date with `source`; a failure is told in the result.

        trust_root is the vendor's first root. needs: what agents run. pinned:
        releases to have besides those that plans name. progress is called from
        this thread; it may raise StoppedError, which ends the run.

        Raises BusyError: another run is at it.
        """
        with self._alone("a sync or scrub runs already"):
            run = Run(
                self._places,
                source,
                policy or Policy(),
                needs or {},
                pinned,
                clock=self._clock,
                reserve=self._reserve,
                wait_s=self._wait_s,
                tell=progress or _silence,
            )
            done = run.to_the_end(trust_root)
        log = _log.warning if done.outcome == "failed" else _log.info
        log("mirror_synced", trigger=trigger, **msgspec.structs.asdict(done))
        return done

    def known(self) -> Record:
        """What is served, as of the last run; an empty record before the first."""
        return record.load(self._places.mirror) or Record()

    def scrub(self, *, progress: Tell | None = None) -> Scrubbed:
        """Read every served file; what isn't as signed is taken away.

        A sync brings back what was there.

        Raises BusyError: a run is at it. OSError: the folder can't be used.
        """
        with self._alone("a sync or scrub runs already"):
            found = Scrubber(
                Served(self._places.feed),
                self.known(),
                trust=self._places.trust,
                aside=self._places.work / "damaged",
                tell=progress or _silence,
            ).run()
        log = _log.warning if found.damaged else _log.info
        log("mirror_scrubbed", sentence=found.sentence, files=found.files)
        return found

    def retention(self, needs: Needs, *, policy: Policy | None = None) -> tuple[Choice, ...]:
        """What each choice of versions_kept costs, in bytes and in agents sent to fulls."""
        known = self.known()
        return retention.table(
            known.catalogue,
            known.plans,
            known.releases,
            needs=needs,
            increments=(policy or Policy()).increments,
            here=Served(self._places.feed).files(),
        )

    @contextlib.contextmanager
    def _alone(self, sentence: str) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise BusyError(sentence)
        try:
            yield
        finally:
            self._busy.release()


def _silence(_progress: Progress) -> None:
    return

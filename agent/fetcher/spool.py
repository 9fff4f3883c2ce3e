"""Reports that wait for the server, in files: bounded, and none sent twice by us.

The guardian's history is the queue: a cursor says up to which line it has been
taken over. A report is written before the cursor moves, and removed when the
server has named it, so whatever ends this process in between costs a repetition
that the server knows by the attempt's id. When there is no room the least
important go (importance), and are counted.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import msgspec
import structlog

from agent.fetcher import importance, telling
from agent.fetcher.importance import Waiting
from agent.guardian import history
from agent.guardian.history import Outcome
from agent.layout import Layout
from feed import durable
from feed.messages import BODY_BYTES_MAX, REPORTS_MAX, Report

REPORTS_KEPT = 200
BYTES_KEPT = 4 << 20
BATCH_BYTES_MAX = BODY_BYTES_MAX - (16 << 10)  # the rest of the request is small
EVIDENCE_READ_MAX = 8 << 20
_SUFFIX = ".json"

_log = structlog.get_logger()


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """The last attempt that was taken over, "" before the first; and what was dropped."""

    attempt: str = ""
    dropped: dict[str, int] = {}


class Spool:
    """See the module. One process at a time."""

    def __init__(
        self, places: Layout, *, count_max: int = REPORTS_KEPT, bytes_max: int = BYTES_KEPT
    ) -> None:
        """Raises OSError: the folder can't be used."""
        self._places = places
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._seen: tuple[int, int] | None = None  # of the history file
        places.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._cursor = _cursor(places)
        self._waiting = {item.attempt: item for item in map(_waiting, self._files()) if item}

    def _files(self) -> list[Path]:
        return sorted(self._places.spool.glob(f"[!.]*{_SUFFIX}"))

    @property
    def waiting(self) -> int:
        """How many reports wait."""
        return len(self._waiting)

    @property
    def dropped(self) -> dict[str, int]:
        """How many were given up and not told of yet, by outcome."""
        return self._cursor.dropped

    def gather(self) -> bool:
        """Take over what the history has besides; True: there was something.

        Raises OSError: the rest is taken over the next time.
        """
        stamp = _stamp(self._places.history)
        if stamp is None or stamp == self._seen:
            return False
        fresh = _after(history.tail(self._places.history, history.LINES_KEPT), self._cursor.attempt)
        for outcome in fresh:
            self._take(outcome)
        self._seen = stamp
        return bool(fresh)

    def _take(self, outcome: Outcome) -> None:
        told = telling.report(outcome, self._evidence(outcome))
        dropped = dict(self._cursor.dropped)
        if told is not None:
            data = msgspec.json.encode(told)
            durable.replace(self._path(told.attempt), data)
            self._waiting[told.attempt] = _entry(told, len(data))
            self._count(dropped, self._make_room())
        self._store(Cursor(attempt=outcome.attempt, dropped=dropped))

    def _evidence(self, outcome: Outcome) -> bytes | None:
        if not outcome.evidence:
            return None
        try:
            with (self._places.evidence / Path(outcome.evidence).name).open("rb") as file:
                return file.read(EVIDENCE_READ_MAX)
        except OSError:
            return None  # the newest 50 are kept; the verdict itself is in the report

    def _make_room(self) -> tuple[Waiting, ...]:
        gone = importance.to_evict(
            self._waiting.values(), count_max=self._count_max, bytes_max=self._bytes_max
        )
        for item in gone:
            self._remove(item.attempt)
        if gone:
            _log.warning("reports_dropped", count=len(gone))
        return gone

    @staticmethod
    def _count(dropped: dict[str, int], gone: tuple[Waiting, ...]) -> None:
        for item in gone:
            dropped[item.outcome] = dropped.get(item.outcome, 0) + 1

    def batch(self, *, count_max: int = REPORTS_MAX) -> tuple[Report, ...]:
        """What is sent next, the most important first; files that can't be read go."""
        chosen = importance.batch(
            self._waiting.values(), count_max=count_max, bytes_max=BATCH_BYTES_MAX
        )
        found = {item.attempt: _read(self._path(item.attempt)) for item in chosen}
        for attempt, told in found.items():
            if told is None:
                self._remove(attempt)
        return tuple(told for told in found.values() if told is not None)

    def taken(self, attempts: tuple[str, ...], *, dropped: dict[str, int]) -> None:
        """The server has these, and knows of `dropped`. Raises OSError."""
        if dropped:
            left = {name: count - dropped.get(name, 0) for name, count in self.dropped.items()}
            left = {name: count for name, count in left.items() if count > 0}
            self._store(msgspec.structs.replace(self._cursor, dropped=left))
        for attempt in attempts:
            if attempt in self._waiting:
                self._remove(attempt)

    def give_up(self, attempt: str) -> None:
        """The server will never take this one: count it. Raises OSError."""
        dropped = dict(self.dropped)
        self._count(dropped, tuple(filter(None, [self._waiting.get(attempt)])))
        self._store(msgspec.structs.replace(self._cursor, dropped=dropped))
        self._remove(attempt)

    def _remove(self, attempt: str) -> None:
        durable.remove(self._path(attempt))
        self._waiting.pop(attempt, None)

    def _store(self, cursor: Cursor) -> None:
        if cursor != self._cursor:
            durable.replace(_cursor_path(self._places), msgspec.json.encode(cursor))
            self._cursor = cursor

    def _path(self, attempt: str) -> Path:
        # By digest: what names an attempt was told by another process.
        name = hashlib.sha256(attempt.encode()).hexdigest()[:32]
        return self._places.spool / f"{name}{_SUFFIX}"


def begin_anew(places: Layout) -> None:
    """Drop what waits, and begin after what the history has now. Raises OSError."""
    places.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    last = history.tail(places.history, 1)
    cursor = Cursor(attempt=last[-1].attempt if last else "")
    durable.replace(_cursor_path(places), msgspec.json.encode(cursor))
    discard(places)


def discard(places: Layout) -> None:
    """Drop what waits. Raises OSError."""
    for path in places.spool.glob(f"*{_SUFFIX}"):
        durable.remove(path)


def _cursor_path(places: Layout) -> Path:
    return places.server / "reported.json"


def _cursor(places: Layout) -> Cursor:
    try:
        return msgspec.json.decode(_cursor_path(places).read_bytes(), type=Cursor)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Cursor()  # everything the history has is told again, and known


def _after(outcomes: list[Outcome], attempt: str) -> list[Outcome]:
    """Those behind the cursor; all of them when its line is gone."""
    places = [number for number, item in enumerate(outcomes) if item.attempt == attempt]
    return outcomes[places[-1] + 1 :] if places else outcomes


def _stamp(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_mtime_ns, found.st_size
    return None


def _entry(told: Report, size: int) -> Waiting:
    return Waiting(attempt=told.attempt, outcome=told.outcome, ended=told.ended, size=size)


def _waiting(path: Path) -> Waiting | None:
    """A file of an earlier process; one that can't be used is removed."""
    told = _read(path)
    if told is None:
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    return _entry(told, path.stat().st_size)


def _read(path: Path) -> Report | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None

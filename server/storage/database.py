"""The one way to the database: reads side by side, writes one after the other.

    rows = await database.read(lambda session: fleet.page(session, …))
    await database.write(lambda session: groups.create(session, name, now=now))

Rules:
 * A work is a plain function of a Session; it neither commits nor waits.
 * Works that wait together share one transaction, and so one flush of the
   disk. Each has a savepoint: one that raises undoes only itself.
 * Nobody hears of a result before COMMIT has returned. A COMMIT that fails
   fails every work in it.
 * What waits is bounded; more is refused (503) rather than remembered.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from server.errors import RefusedError, ServerError, StorageError
from server.storage import engines, migrating

READERS = 4
READS_WAITING_MAX = 2_000
WRITES_WAITING_MAX = 2_000
WORKS_IN_A_TRANSACTION = 128
RETRY_AFTER_S = 5.0

_ANNOUNCED = "announced"

T = TypeVar("T")
Work = Callable[[Session], T]
Listener = Callable[[str], None]


class _Order(NamedTuple):
    work: Work[Any]
    future: Future[Any]


class _LostError(Exception):
    """The transaction is gone, and with it every work so far."""

    def __init__(self, reason: ServerError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Database:
    """The server's database. url: sqlite:///PATH or postgresql://….

    Raises StorageError wherever it can't be used; never half of a work stays.
    """

    def __init__(self, url: str) -> None:
        self.url = engines.parsed(url)
        self._reading = engines.engine(self.url, "read", connections=READERS)
        self._writing = engines.engine(self.url, "write")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="database-read")
        self._reads_waiting = threading.BoundedSemaphore(READS_WAITING_MAX)
        self._listeners: dict[str, list[Listener]] = {}
        self._orders: deque[_Order] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._writer: threading.Thread | None = None

    def migrate(self) -> None:
        """Bring the schema to what this program knows; all of it or nothing.

        Raises StorageError: unusable, or newer than this program.
        """
        migrating.migrate(self.url)

    async def read(self, work: Work[T]) -> T:
        """What `work` returns, from a thread and a session of its own that can't write."""
        return await asyncio.wrap_future(self._ask(work))

    async def write(self, work: Work[T]) -> T:
        """What `work` returns, once it is durable."""
        return await asyncio.wrap_future(self._order(work))

    def read_blocking(self, work: Work[T]) -> T:
        """As `read`, for threads and command lines."""
        return self._ask(work).result()

    def write_blocking(self, work: Work[T]) -> T:
        """As `write`, for threads and command lines."""
        return self._order(work).result()

    def subscribe(self, topic: str, listener: Listener) -> None:
        """Call `listener` with what works `announce`: after COMMIT, before they are answered.

        It is called on the writer's thread and must return at once.
        """
        self._listeners.setdefault(topic, []).append(listener)

    def close(self) -> None:
        """Finish what was taken on, take on nothing more."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._writer:
            self._writer.join()
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._reading.dispose()
        self._writing.dispose()

    def _ask(self, work: Work[T]) -> Future[T]:
        if self._closing:
            raise StorageError(f"{engines.named(self.url)} is closed")
        if not self._reads_waiting.acquire(blocking=False):
            raise _overloaded()
        try:
            future = self._readers.submit(self._read, work)
        except BaseException:
            self._reads_waiting.release()
            raise
        future.add_done_callback(lambda _: self._reads_waiting.release())
        return future

    def _read(self, work: Work[T]) -> T:
        try:
            with Session(self._reading, expire_on_commit=False) as session:
                return work(session)
        except SQLAlchemyError as error:
            raise engines.explained(error, self.url) from error

    def _order(self, work: Work[T]) -> Future[T]:
        future: Future[T] = Future()
        with self._changed:
            if self._closing:
                raise StorageError(f"{engines.named(self.url)} is closed")
            if len(self._orders) >= WRITES_WAITING_MAX:
                raise _overloaded()
            if self._writer is None:
                self._writer = threading.Thread(target=self._serve, name="database-write")
                self._writer.start()
            self._orders.append(_Order(work, future))
            self._changed.notify()
        return future

    def _serve(self) -> None:
        while orders := self._next():
            running = [order for order in orders if order.future.set_running_or_notify_cancel()]
            try:
                outcomes = self._together([order.work for order in running])
            except BaseException as error:  # noqa: BLE001 - handed to whoever waits
                outcomes = [_Outcome(error=error)] * len(running)
            for order, outcome in zip(running, outcomes, strict=True):
                outcome.tell(order.future)

    def _next(self) -> list[_Order]:
        """What waits, the oldest first; empty when the database closes."""
        with self._changed:
            while not (self._orders or self._closing):
                self._changed.wait()
            count = min(len(self._orders), WORKS_IN_A_TRANSACTION)
            return [self._orders.popleft() for _ in range(count)]

    def _together(self, works: list[Work[Any]]) -> list[_Outcome]:
        """Run works in one transaction. Raises StorageError when none of it is kept."""
        try:
            with self._writing.connect() as connection, connection.begin():
                outcomes = [self._attempt(connection, work) for work in works]
        except _LostError as error:
            raise error.reason from error
        except SQLAlchemyError as error:
            raise engines.explained(error, self.url) from error
        for outcome in outcomes:
            self._announce(outcome.announced)
        return outcomes

    def _attempt(self, connection: Connection, work: Work[Any]) -> _Outcome:
        session = Session(
            connection, expire_on_commit=False, join_transaction_mode="create_savepoint"
        )
        with session:
            try:
                result = work(session)
                session.commit()
            except Exception as error:  # noqa: BLE001 - handed to whoever waits
                return _Outcome(error=self._undone(connection, session, error))
            return _Outcome(result, announced=tuple(session.info.get(_ANNOUNCED, ())))

    def _undone(self, connection: Connection, session: Session, error: Exception) -> BaseException:
        """Roll a work back to its savepoint; what it raised, explained.

        Raises _LostError: the connection, or on a full disk SQLite itself,
        has ended the whole transaction.
        """
        lost: Exception = error
        try:
            session.rollback()
            if _goes_on(connection):
                return self._told(error)
        except SQLAlchemyError as also:
            lost = also
        reason = self._told(_origin(lost))
        raise _LostError(
            reason if isinstance(reason, ServerError) else StorageError(str(reason))
        ) from error

    def _told(self, error: Exception) -> Exception:
        if not isinstance(error, SQLAlchemyError):
            return error
        told = engines.explained(error, self.url)
        told.__cause__ = error
        return told

    def _announce(self, announced: tuple[tuple[str, str], ...]) -> None:
        for topic, what in announced:
            for listener in self._listeners.get(topic, ()):
                listener(what)


class _Outcome(NamedTuple):
    result: Any = None
    error: BaseException | None = None
    announced: tuple[tuple[str, str], ...] = ()

    def tell(self, future: Future[Any]) -> None:
        if self.error is None:
            future.set_result(self.result)
        else:
            future.set_exception(self.error)


def announce(session: Session, topic: str, what: str) -> None:
    """Tell the topic's listeners once this work is durable, and only then."""
    session.info.setdefault(_ANNOUNCED, []).append((topic, what))


def _goes_on(connection: Connection) -> bool:
    """Whether the transaction is still the one that was begun.

    SQLite ends it by itself when the disk is full; what came next would be
    committed alone, and what came before would be gone.
    """
    if connection.invalidated:
        return False
    driver = connection.connection.dbapi_connection
    return not isinstance(driver, sqlite3.Connection) or driver.in_transaction


def _origin(error: Exception) -> Exception:
    """What failed first: once a transaction is gone, not even its savepoint is found."""
    first: BaseException | None = error
    while first is not None:
        if isinstance(first, SQLAlchemyError):
            error = first
        first = first.__context__
    return error


def _overloaded() -> RefusedError:
    return RefusedError(
        "the server has more to do than it can; try again later",
        status=503,
        code="overloaded",
        retry_after_s=RETRY_AFTER_S,
    )

"""The open connections of agents, and the one loop that tells them to look.

A raw ASGI application of server-sent events: a task a connection that only
waits for its end, and one loop that sends. What is sent says that there is a
round, never what to install.

 * Nobody is waited for: a connection whose buffer is full is dropped.
 * One connection an agent; a newer one replaces the older.
 * An agent that is told and doesn't answer is told again (server.notify.spread).
 * Who was told is written down in batches (`told`); what a crash loses of that
   is told twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

from feed.messages import LOOK
from server.errors import RefusedError, ServerError
from server.log import get_logger
from server.notify import spread
from server.notify.spread import Standing
from server.settings import Policy
from server.web import problems
from server.web.asgi import Message, Receive, Scope, Send, header

HEARTBEAT_S = 30.0
ACCOUNT_S = 1.0  # at most so much of who was told is lost by a crash
GATHER_S = 0.02  # those who connect together are looked up together
TICK_S = 0.01  # notifications that are due within it go out together
SENT_AT_ONCE = 200  # before others of the process have their turn
LOOKED_UP_AT_ONCE = 500

HEADERS = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx passes on at once
)
START: Message = {"type": "http.response.start", "status": 200, "headers": list(HEADERS)}
BEAT: Message = {"type": "http.response.body", "body": b":\n\n", "more_body": True}
END: Message = {"type": "http.response.body", "body": b"", "more_body": False}

log = get_logger()


class Known(Protocol):
    """An agent whose credential was found good."""

    @property
    def id(self) -> str: ...


class Told(NamedTuple):
    """An agent was told of a round at `at`."""

    agent_id: str
    number: int
    at: float


@dataclass(frozen=True)
class Announced:
    """The newest round."""

    number: int = 0
    created_at: float = 0.0
    window_s: float = 0.0


class _Listener:
    """One connection. due is when it is told next, in the loop's time."""

    __slots__ = ("agent_id", "answered", "due", "heard", "send", "told_times", "wire")

    def __init__(self, agent_id: str, send: Send, wire: Any, heard: int) -> None:
        self.agent_id = agent_id
        self.send = send
        self.wire = wire
        self.heard = heard  # what its Last-Event-ID said
        self.answered = 0
        self.told_times = 0
        self.due: float | None = None

    def push(self, message: Message) -> bool:
        """Whether it went into the connection's buffer, without waiting for room."""
        sending = cast("Coroutine[Any, Any, None]", self.send(message))
        try:
            sending.send(None)
        except StopIteration:
            return True
        except (RuntimeError, OSError):
            return False
        sending.close()
        return False

    def drop(self) -> None:
        """End it without a word."""
        if self.wire is not None:
            self.wire.abort()


class Hub:
    """Every agent that listens.

    authenticate raises RefusedError. It, told and standings may raise StorageError
    while the database is away: those who are connected are told all the same.
    """

    def __init__(
        self,
        *,
        authenticate: Callable[[Scope], Awaitable[Known]],
        standings: Callable[[Sequence[str]], Awaitable[Mapping[str, Standing]]],
        told: Callable[[Sequence[Told]], Awaitable[None]],
        policy: Callable[[], Policy],
        clock: Callable[[], float],
        most: int = 16_000,
        newest: Announced | None = None,
    ) -> None:
        self._authenticate = authenticate
        self._standings = standings
        self._told = told
        self._policy = policy
        self._clock = clock
        self._most = most
        self._newest = newest or Announced()
        self._look = _look(self._newest.number)
        self._listeners: dict[str, _Listener] = {}
        self._due: list[tuple[float, str]] = []
        self._queue = spread.Queue()
        self._untold: dict[str, Told] = {}
        self._arrived: list[str] = []
        self._changed = asyncio.Event()
        self._someone = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failures = problems.Failures("listener_not_admitted")
        self.told_total = 0
        self.dropped_total = 0

    @property
    def connected(self) -> int:
        """How many agents listen."""
        return len(self._listeners)

    @property
    def newest(self) -> int:
        """The number of the newest round; 0 before the first."""
        return self._newest.number

    @property
    def is_alive(self) -> bool:
        """Whether nothing has gone wrong that ends the sending."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    def is_connected(self, agent_id: str) -> bool:
        return agent_id in self._listeners

    def window_s(self) -> float:
        """How long a round takes that is announced now."""
        return spread.window_s(len(self._listeners), self._policy())

    # What happens

    def start(self) -> None:
        """Begin to send. Needs a running loop."""
        self._loop = asyncio.get_running_loop()
        for work in (self._tell, self._beat, self._look_up, self._account):
            task = asyncio.create_task(work())
            task.add_done_callback(_ended)
            self._tasks.append(task)

    async def close(self) -> None:
        """End every connection at once and write down who was told."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        for listener in list(self._listeners.values()):
            self._end(listener)
        await self._write_down()

    def announce(self, round_: Announced) -> None:
        """Tell everybody of this round, each at its own moment; older ones are over."""
        if round_.number <= self._newest.number:
            return
        self._newest, self._look = round_, _look(round_.number)
        for listener in self._listeners.values():
            listener.told_times = 0
            listener.due = self._own_moment(listener.agent_id)
        self._due = [(item.due or 0.0, item.agent_id) for item in self._listeners.values()]
        heapq.heapify(self._due)
        self._changed.set()

    def answered(self, agent_id: str, number: int) -> None:
        """It has heard of round `number`; if that is the newest, it isn't told again."""
        listener = self._listeners.get(agent_id)
        if listener is not None and number >= self._newest.number:
            listener.due = None
            listener.answered = number

    def expel(self, agent_id: str) -> None:
        """Its credential is good no longer."""
        if listener := self._listeners.get(agent_id):
            self._end(listener)

    def expel_from_thread(self, agent_id: str) -> None:
        """As `expel`, soon, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and every stream with it
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self.expel, agent_id)

    # A connection

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            agent_id = await self._admit(scope)
        except ServerError as error:
            await problems.answer(scope, send, self._failures.of(error))
            return
        await send(START)
        await send(self._greeting(agent_id))
        listener = self._join(scope, send, agent_id)
        scope["headers"].clear()  # the credential among them, for as long as the stream lasts
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                if message.get("body"):  # nothing to say here, and no room for it
                    listener.drop()
        finally:
            self._forget(listener)

    async def _admit(self, scope: Scope) -> str:
        if scope["method"] != "GET":
            raise RefusedError("only GET is known here", status=405, code="method_not_allowed")
        if self._closed or len(self._listeners) >= self._most:
            raise RefusedError(
                "no room for another listener now",
                status=503,
                code="busy",
                retry_after_s=spread.RECONNECT_MOST_S,
            )
        return (await self._authenticate(scope)).id

    def _join(self, scope: Scope, send: Send, agent_id: str) -> _Listener:
        if older := self._listeners.get(agent_id):
            self._end(older)
        heard = header(scope, b"last-event-id") or ""
        number = int(heard) if heard.isascii() and heard.isdecimal() and len(heard) < 16 else 0
        listener = _Listener(agent_id, send, scope.get("state", {}).get("wire"), number)
        self._listeners[agent_id] = listener
        if self._closed:
            self._end(listener)
        if self._newest.number:
            self._arrived.append(agent_id)
            self._someone.set()
        return listener

    def _greeting(self, agent_id: str) -> Message:
        seconds = spread.reconnect_s(agent_id, agents=len(self._listeners), policy=self._policy())
        return {
            "type": "http.response.body",
            "body": b"retry: %d\n\n" % (seconds * 1000),
            "more_body": True,
        }

    def _end(self, listener: _Listener) -> None:
        """Close the stream in order, or the connection when it doesn't take even that."""
        self._forget(listener)
        if not listener.push(END):
            listener.drop()

    def _forget(self, listener: _Listener) -> None:
        if self._listeners.get(listener.agent_id) is listener:
            del self._listeners[listener.agent_id]

    # The loop that sends

    def _own_moment(self, agent_id: str) -> float:
        """In the loop's time."""
        newest = self._newest
        at = spread.moment(
            agent_id,
            number=newest.number,
            created_at=newest.created_at,
            window_s=newest.window_s,
        )
        return at - self._clock() + asyncio.get_running_loop().time()

    def _schedule(self, listener: _Listener, due: float) -> None:
        listener.due = due
        heapq.heappush(self._due, (due, listener.agent_id))
        if self._due[0][0] == due:
            self._changed.set()

    async def _tell(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            wait_s = self._due[0][0] - loop.time() if self._due else None
            if wait_s is None or wait_s > 0:
                await _first(self._changed, wait_s)
            else:
                self._tell_some(loop.time())
                await asyncio.sleep(0)

    def _tell_some(self, now: float) -> None:
        """Those who are due, a handful of them."""
        for _ in range(SENT_AT_ONCE):
            if not self._due or self._due[0][0] > now:
                return
            due, agent_id = heapq.heappop(self._due)
            listener = self._listeners.get(agent_id)
            if listener is not None and listener.due == due:
                self._tell_one(listener, now)

    def _tell_one(self, listener: _Listener, now: float) -> None:
        listener.due = None
        if not listener.push(self._look):
            self._lose(listener)
            return
        listener.told_times += 1
        self.told_total += 1
        at = self._clock()
        self._untold[listener.agent_id] = Told(listener.agent_id, self._newest.number, at)
        policy = self._policy()
        next_at = spread.again(told_times=listener.told_times, told_at=now, policy=policy)
        if next_at is not None:
            self._schedule(listener, next_at)

    async def _beat(self) -> None:
        """A sign of life to a part of them each second, all within HEARTBEAT_S."""
        parts = round(HEARTBEAT_S)
        while True:
            everyone = list(self._listeners.values())
            for part in range(parts):
                await asyncio.sleep(1.0)
                for listener in everyone[part::parts]:
                    if self._listeners.get(listener.agent_id) is not listener:
                        continue
                    if not listener.push(BEAT):
                        self._lose(listener)

    def _lose(self, listener: _Listener) -> None:
        """Somebody who doesn't take what is sent."""
        self.dropped_total += 1
        log.info("listener_dropped", agent=listener.agent_id)
        self._forget(listener)
        listener.drop()

    # Those who come, and what is written down

    async def _look_up(self) -> None:
        """Find out what newcomers have answered, and tell those who haven't."""
        while True:
            await self._someone.wait()
            await asyncio.sleep(GATHER_S)
            self._someone.clear()
            arrived, self._arrived = self._arrived, []
            for start in range(0, len(arrived), LOOKED_UP_AT_ONCE):
                some = arrived[start : start + LOOKED_UP_AT_ONCE]
                try:
                    known = await self._standings(some)
                except ServerError as error:
                    log.warning("standings_unknown", agents=len(some), reason=str(error))
                    known = {}
                for agent_id in some:
                    self._welcome(agent_id, known.get(agent_id, Standing()))

    def _welcome(self, agent_id: str, standing: Standing) -> None:
        listener = self._listeners.get(agent_id)
        number = self._newest.number
        if listener is None or listener.due is not None or listener.answered >= number:
            return
        now, policy = self._clock(), self._policy()
        loop_offset = asyncio.get_running_loop().time() - now
        due = spread.on_return(
            standing,
            number=number,
            heard=listener.heard,
            own_moment=self._own_moment(agent_id) - loop_offset,
            now=now,
            policy=policy,
        )
        if due is None:
            return
        if due == now:
            self._queue, due = self._queue.take(now=now, policy=policy)
        listener.told_times = standing.told_times if standing.told_round == number else 0
        self._schedule(listener, due + loop_offset)

    async def _account(self) -> None:
        while True:
            await asyncio.sleep(ACCOUNT_S)
            await self._write_down()

    async def _write_down(self) -> None:
        batch, self._untold = self._untold, {}
        if not batch:
            return
        writing = asyncio.ensure_future(self._told(list(batch.values())))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])  # what was begun is ended
            raise
        except ServerError:
            pass
        finally:
            if isinstance(error := writing.exception(), ServerError):
                log.warning("told_not_kept", agents=len(batch), reason=str(error))
                self._untold = batch | self._untold


def _look(number: int) -> Message:
    body = f'id: {number}\nevent: {LOOK}\ndata: {{"round": {number}}}\n\n'.encode()
    return {"type": "http.response.body", "body": body, "more_body": True}


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("hub_stopped", exc_info=error)


async def _first(event: asyncio.Event, seconds: float | None) -> None:
    """Until the event or the time, which is no less than a tick."""
    try:
        async with asyncio.timeout(None if seconds is None else max(seconds, TICK_S)):
            await event.wait()
    except TimeoutError:
        return

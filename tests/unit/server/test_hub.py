"""The loop that tells agents, against connections that behave as bad as they can."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog

from server.errors import RefusedError, StorageError
from server.notify import hub as hubs
from server.notify.hub import Announced, Hub, Told
from server.notify.spread import Standing
from server.settings import Policy
from server.web.asgi import Message, Scope

QUICK = Policy(notify_per_s=1e6, notify_again_s=0.05, notify_times=3)


@dataclass
class Agent:
    """One connection, seen from the client. stalled: it takes nothing any more."""

    id: str
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    stalled: bool = False
    got: list[bytes] = field(default_factory=list)
    status: int = 0
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    ended: bool = False
    aborted: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def looks(self) -> int:
        return sum(b"event: look" in piece for piece in self.got)

    async def send(self, message: Message) -> None:
        if self.stalled:
            await asyncio.Event().wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.fields = list(message["headers"])
            return
        self.got.append(message.get("body", b""))
        if not message.get("more_body"):
            self.ended = True
            self.gone.set()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    def abort(self) -> None:
        self.aborted = True
        self.gone.set()

    def scope(self) -> Scope:
        return {
            "type": "http",
            "method": "GET",
            "path": "/",
            "headers": [(b"x-agent", self.id.encode()), *self.headers],
            "state": {"wire": self},
        }


@dataclass
class Books:
    """The accounts; broken: the database is away."""

    standings: dict[str, Standing] = field(default_factory=dict)
    told: list[Told] = field(default_factory=list)
    broken: bool = False
    takes_s: float = 0.0
    begun: int = 0  # times

    async def look_up(self, ids: Sequence[str]) -> Mapping[str, Standing]:
        if self.broken:
            raise StorageError("away")
        return {name: self.standings[name] for name in ids if name in self.standings}

    async def write_down(self, batch: Sequence[Told]) -> None:
        self.begun += 1
        await asyncio.sleep(self.takes_s)
        if self.broken:
            raise StorageError("away")
        self.told += batch


async def authenticate(scope: Scope) -> Any:
    name = dict(scope["headers"])[b"x-agent"].decode()
    if name == "unlucky":
        raise StorageError("away")
    if name == "stranger":
        raise RefusedError("no", status=401, code="token_refused")
    return Agent(name)


class Room:
    """A hub that runs, and its connections."""

    def __init__(self, *, policy: Policy = QUICK, most: int = 100, number: int = 0) -> None:
        self.books = Books()
        self.hub = Hub(
            authenticate=authenticate,
            standings=self.books.look_up,
            told=self.books.write_down,
            policy=lambda: policy,
            clock=time.time,
            most=most,
            newest=Announced(number, time.time(), 0.0),
        )
        self.tasks: list[asyncio.Task[None]] = []

    async def enter(self, name: str, **more: Any) -> Agent:
        agent = Agent(name, **more)
        call = self.hub(agent.scope(), agent.receive, agent.send)
        self.tasks.append(asyncio.ensure_future(call))
        await until(lambda: agent.status != 0)
        return agent

    def announce(self, number: int, window_s: float = 0.0) -> None:
        self.hub.announce(Announced(number, time.time(), window_s))


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not happened():
            await asyncio.sleep(0.002)


def inside(story: Callable[[Room], Awaitable[None]], **more: Any) -> None:
    """Play a story in a room whose hub runs."""

    async def play() -> None:
        room = Room(**more)
        room.hub.start()
        await story(room)
        await room.hub.close()
        await asyncio.gather(*room.tasks)

    asyncio.run(play())


def test_everybody_connected_is_told_and_it_is_written_down() -> None:
    async def story(room: Room) -> None:
        agents = [await room.enter(f"a{number}") for number in range(20)]
        room.announce(1)
        await until(lambda: all(agent.looks for agent in agents))
        await room.hub.close()
        assert {item.agent_id for item in room.books.told} == {agent.id for agent in agents}
        assert all(agent.ended for agent in agents)
        assert b'id: 1\nevent: look\ndata: {"round": 1}\n\n' in agents[0].got

    inside(story)


@pytest.mark.parametrize("broken", [False, True])
def test_an_end_in_the_middle_of_writing_down_loses_nobody(
    monkeypatch: pytest.MonkeyPatch, *, broken: bool
) -> None:
    monkeypatch.setattr(hubs, "ACCOUNT_S", 0.02)

    async def story(room: Room) -> None:
        room.books.takes_s, room.books.broken = 0.2, broken
        await room.enter("a")
        room.announce(1)
        await until(lambda: room.books.begun == 1)
        closing = asyncio.create_task(room.hub.close())
        if broken:  # the one under way fails, the last succeeds
            await until(lambda: room.books.begun == 2)
            room.books.broken = False
        await closing
        assert [item.agent_id for item in room.books.told] == ["a"]

    inside(story)


def test_who_does_not_answer_is_told_so_often_and_no_more() -> None:
    async def story(room: Room) -> None:
        agent = await room.enter("a")
        room.announce(1)
        await until(lambda: agent.looks == QUICK.notify_times)
        await asyncio.sleep(4 * QUICK.notify_again_s)
        assert agent.looks == QUICK.notify_times

    inside(story)


def test_who_answers_is_not_told_again() -> None:
    async def story(room: Room) -> None:
        agent = await room.enter("a")
        room.announce(1)
        await until(lambda: agent.looks == 1)
        room.hub.answered("a", 1)
        await asyncio.sleep(4 * QUICK.notify_again_s)
        assert agent.looks == 1

    inside(story)


def test_an_answer_to_an_older_round_is_none_to_the_newest() -> None:
    async def story(room: Room) -> None:
        agent = await room.enter("a")
        room.announce(2)
        room.hub.answered("a", 1)
        await until(lambda: agent.looks >= 1)

    inside(story)


def test_a_stalled_connection_is_dropped_and_holds_nobody_up() -> None:
    async def story(room: Room) -> None:
        slow = await room.enter("slow")
        others = [await room.enter(f"a{number}") for number in range(50)]
        slow.stalled = True
        room.announce(1)
        await until(lambda: all(agent.looks for agent in others))
        await until(lambda: slow.aborted)
        assert not room.hub.is_connected("slow")
        assert room.hub.dropped_total == 1

    inside(story)


def test_a_newer_connection_of_an_agent_replaces_the_older() -> None:
    async def story(room: Room) -> None:
        older = await room.enter("a")
        newer = await room.enter("a")
        await until(lambda: older.ended)
        room.announce(1)
        await until(lambda: newer.looks == 1)
        assert older.looks == 0
        assert room.hub.connected == 1

    inside(story)


def test_who_comes_late_is_told_and_who_has_answered_is_not() -> None:
    async def story(room: Room) -> None:
        room.books.standings["done"] = Standing(answered_round=4)
        done, late = await room.enter("done"), await room.enter("late")
        await until(lambda: late.looks >= 1)
        assert done.looks == 0

    inside(story, number=4)


def test_a_last_event_id_of_the_newest_round_is_not_told_at_once() -> None:
    async def story(room: Room) -> None:
        told = Standing(told_round=4, told_times=1, told_at=time.time())
        room.books.standings |= {"heard": told, "missed": told}
        heard = await room.enter("heard", headers=[(b"last-event-id", b"4")])
        missed = await room.enter("missed", headers=[(b"last-event-id", b"3")])
        await until(lambda: missed.looks >= 1)
        assert heard.looks == 0

    inside(story, number=4, policy=Policy(notify_per_s=1e6))


@pytest.mark.parametrize("given", [b"", b"-1", b"nine", b"9" * 40, "²".encode("latin-1")])
def test_an_odd_last_event_id_is_none(given: bytes) -> None:
    async def story(room: Room) -> None:
        agent = await room.enter("a", headers=[(b"last-event-id", given)])
        await until(lambda: agent.looks >= 1)

    inside(story, number=4)


def test_agents_are_told_while_the_database_is_away_and_written_down_later() -> None:
    async def story(room: Room) -> None:
        room.books.broken = True
        agent = await room.enter("a")
        await until(lambda: agent.looks >= 1)
        await asyncio.sleep(1.2 * hubs.ACCOUNT_S)
        assert room.books.told == []
        assert room.hub.is_alive
        room.books.broken = False
        await until(lambda: bool(room.books.told))

    inside(story, number=4)


def test_a_stranger_is_refused_and_a_full_hub_says_when_to_return() -> None:
    async def story(room: Room) -> None:
        assert (await room.enter("stranger")).status == 401
        assert (await room.enter("a")).status == 200
        assert (await room.enter("b")).status == 503
        assert room.hub.connected == 1

    inside(story, most=1)


def test_while_the_database_is_away_who_comes_is_told_to_come_again() -> None:
    async def story(room: Room) -> None:
        with structlog.testing.capture_logs() as logged:
            for _ in range(3):
                unlucky = await room.enter("unlucky")
                assert unlucky.status == 503
                assert (b"retry-after", b"5") in unlucky.fields
        (line,) = logged
        assert (line["event"], line["reason"]) == ("listener_not_admitted", "away")

    inside(story)


def test_an_expelled_agent_hears_nothing_more() -> None:
    async def story(room: Room) -> None:
        agent = await room.enter("a")
        room.hub.expel("a")
        await until(lambda: agent.ended)
        room.announce(1)
        await asyncio.sleep(0.05)
        assert agent.looks == 0

    inside(story)


def test_a_round_is_spread_over_its_window() -> None:
    async def story(room: Room) -> None:
        agents = [await room.enter(f"a{number}") for number in range(40)]
        room.announce(1, window_s=0.6)
        await asyncio.sleep(0.3)
        assert 5 < sum(agent.looks > 0 for agent in agents) < 35
        await until(lambda: all(agent.looks for agent in agents))

    inside(story, policy=Policy(notify_per_s=1e6))

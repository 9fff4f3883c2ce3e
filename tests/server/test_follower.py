"""The task that keeps the mirror up to date: what it survives, what it tells, what it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from server import syncs
from server.accounts import audit
from server.accounts import policy as policies
from server.errors import BusyError, RefusedError, StorageError
from server.fleet.needs import VERSIONS
from server.follower import Follower
from server.layout import Layout
from server.mirror.mirror import Mirror
from server.notify import rounds
from server.origin import Origin
from server.settings import Config, Policy, Source
from server.storage.database import Database, announce
from server.web import lookups
from server.web.inforce import InForce
from tests.support.mirrors import PATTERN, content
from tests.support.vendor import Vendor

WAIT_S = 30.0


class Stand:
    """A follower of a vendor, on a database, without a web server. tells: what it told agents."""

    def __init__(self, folder: Path, database: Database, vendor: Vendor, **config: Any) -> None:
        self.places = Layout(folder / "state")
        self.places.state.mkdir(parents=True)
        self.vendor = vendor
        (folder / "root.json").write_bytes(vendor.root)
        self.root = folder / "root.json"
        given = {"sources": (Source(url=vendor.url, proxy=""),), "trust_root": str(self.root)}
        self.config = Config(**(given | config))
        self.database = database
        self.tells: list[tuple[int, str, str]] = []
        self.tell_fails = False
        self.refused = 0
        self.mirror = Mirror(self.places, room_reserve_bytes=0)
        self.follower = self.made()

    def made(self) -> Follower:
        self.policy = InForce(self.database, self.database.read_blocking(policies.load))
        return Follower(
            self.database,
            self.mirror,
            self.config,
            self.places,
            policy=self.policy,
            tell=self.tell,
            clock=time.time,
        )

    async def tell(self, *, cause: str, by: str, news: str | None = None) -> int:
        if self.tell_fails:
            self.refused += 1
            raise StorageError("the database is away")
        made = await self.database.write(
            lambda session: rounds.create(
                session, cause=cause, by=by, window_s=1.0, now=time.time(), news=news
            )
        )
        self.tells.append((made.number, cause, by))
        return made.number

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """It runs; a test that goes on finds that it did to the end."""
        task = asyncio.create_task(self.follower.run())
        try:
            yield task
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def last(self) -> Any:
        return self.database.read_blocking(lookups.syncs).last


async def until(wanted: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await asyncio.to_thread(wanted):
            await asyncio.sleep(0.01)


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    made = Vendor(tmp_path / "vendor")
    made.ship("r171", {PATTERN: ("171", content(171))})
    return made


@pytest.fixture
def stand(tmp_path: Path, database: Database, vendor: Vendor) -> Stand:
    return Stand(tmp_path / "stand", database, vendor)


class Held:
    """A call that waits in the middle until it is let go."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call
        self.began = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.began.set()
        assert self.go_on.wait(WAIT_S)
        return self._call(*given, **named)


def test_a_sync_asked_for_during_a_scrub_comes_after_it(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with stand.running():
            await until(stand.last)
            await until(lambda: stand.follower.next_at() is not None)  # the first is over
            first = stand.last()
            held = Held(stand.mirror.scrub)
            monkeypatch.setattr(stand.mirror, "scrub", held)
            scrub = asyncio.create_task(stand.follower.scrub_now())
            await until(held.began.is_set)
            with pytest.raises(BusyError):
                await stand.follower.scrub_now()
            stand.follower.sync_now()
            held.go_on.set()
            assert not (await scrub).damaged
            await until(lambda: stand.last().started_at > first.started_at)
            assert stand.last().outcome == "unchanged"

    asyncio.run(play())


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_database_that_fails_costs_a_sync_and_not_the_server(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    calls = 0

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        async def attempt(work: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth:
                raise StorageError("the database is away")
            return await call(work)

        return attempt

    monkeypatch.setattr(stand.database, "write", failing(stand.database.write))
    monkeypatch.setattr(stand.database, "read", failing(stand.database.read))

    async def play() -> None:
        async with stand.running():
            await until(lambda: stand.follower.next_at() is not None)
            stand.follower.sync_now()
            await until(lambda: (last := stand.last()) and last.outcome != "failed")

    asyncio.run(play())


def test_a_sync_under_way_stops_when_the_server_ends(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []
    held = Held(stand.mirror.sync)

    def sync(*given: Any, **named: Any) -> Any:
        done.append(held(*given, **named))
        return done[0]

    monkeypatch.setattr(stand.mirror, "sync", sync)

    async def play() -> None:
        async with stand.running():
            await until(held.began.is_set)
        held.go_on.set()

    asyncio.run(play())  # waits for the thread
    assert (done[0].outcome, done[0].code) == ("failed", "stopped")


def test_a_scrub_under_way_stops_when_the_server_ends(stand: Stand) -> None:
    async def play() -> None:
        async with stand.running():
            await until(stand.last)
        with pytest.raises(RefusedError) as refused:
            await stand.follower.scrub_now()
        assert refused.value.code == "stopped"

    asyncio.run(play())
    assert Mirror(stand.places).known().plans  # nothing is lost


def test_sums_over_syncs_never_grow_smaller(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.mirror.outcome import Synced

    monkeypatch.setattr(syncs, "ROWS_KEPT", 3)
    done = Synced(
        outcome="switched", source="file:///f", sentence="", fetched_bytes=2, saved_bytes=7
    )
    for number in range(1, 9):
        row = database.write_blocking(lambda session: syncs.begin(session, "start", 1.0))
        database.write_blocking(lambda session, row=row: syncs.end(session, row, done, 2.0))  # type: ignore[misc]
        found = database.read_blocking(lookups.syncs)
        assert (found.fetched_bytes, found.saved_bytes) == (2 * number, 7 * number)
        assert found.outcomes == {"switched": number}


def test_a_source_that_no_database_holds_is_refused() -> None:
    from server.web.inforce import checked

    with pytest.raises(RefusedError, match="source"):
        checked({"source": "http://\0"})
    assert checked({"source": "http://feed.example/feed"}) == Policy(
        source="http://feed.example/feed"
    )


def test_a_release_that_a_kill_left_untold_is_told_at_the_next_start(stand: Stand) -> None:
    stand.tell_fails = True

    async def until_it_ended() -> None:
        async with stand.running():
            await until(lambda: stand.mirror.known().plans and stand.follower.next_at())

    asyncio.run(until_it_ended())
    assert stand.tells == []
    stand.tell_fails = False
    (stand.vendor.feed / "metadata").rename(stand.vendor.feed / "gone")  # the source is away

    async def again() -> None:
        stand.follower = stand.made()
        async with stand.running():
            await until(lambda: stand.follower.next_at() is not None)
            assert stand.last().outcome == "failed"

    asyncio.run(again())
    assert [(cause, by) for _, cause, by in stand.tells] == [("release", "mirror")]
    asyncio.run(again())
    assert len(stand.tells) == 1  # once for each news


def test_what_isnt_to_be_distributed_is_not_told(stand: Stand) -> None:
    async def play() -> None:
        await stand.policy.change({"distribute_automatically": False}, by="ada", now=1.0)
        async with stand.running():
            await until(lambda: stand.follower.next_at() is not None)
            assert stand.tells == []
            await stand.policy.change({"distribute_automatically": True}, by="ada", now=1.0)
            stand.follower.sync_now()
            await until(lambda: stand.tells)

    asyncio.run(play())


def test_an_origin_tells_of_what_changed_while_no_server_ran(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.origin.LOOK_S", 0.01)

    async def serve(tells: int) -> None:
        origin = Origin(stand.vendor.feed, stand.places.trust, stand.database, tell=stand.tell)
        task = asyncio.create_task(origin.run())
        await until(lambda: len(stand.tells) == tells)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(serve(1))
    asyncio.run(serve(1))
    stand.vendor.ship("r173", {PATTERN: ("173", content(173))})
    asyncio.run(serve(2))


def test_an_origin_tells_later_when_the_database_was_away(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.origin.LOOK_S", 0.01)
    stand.tell_fails = True

    async def play() -> None:
        origin = Origin(stand.vendor.feed, stand.places.trust, stand.database, tell=stand.tell)
        task = asyncio.create_task(origin.run())
        await until(lambda: stand.refused > 2)
        stand.tell_fails = False
        await until(lambda: len(stand.tells) == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(play())


def test_an_origin_is_verified_once_for_each_timestamp(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = Origin(stand.vendor.feed, stand.places.trust, stand.database, tell=stand.tell)
    looked: list[int] = []
    plans = origin._plans
    monkeypatch.setattr(origin, "_plans", lambda: looked.append(1) or plans())

    async def ask() -> None:
        found = await asyncio.gather(*(origin.releases() for _ in range(8)))
        assert set(found) == {("r171",)}

    asyncio.run(ask())
    assert len(looked) == 1
    stand.vendor.ship("r173", {PATTERN: ("173", content(173))})
    assert asyncio.run(origin.releases()) == ("r173",)


@pytest.mark.parametrize("lacking", ["sources", "trust_root"])
def test_a_sync_without_anything_to_sync_from_is_refused(
    tmp_path: Path, database: Database, vendor: Vendor, lacking: str
) -> None:
    none = {"sources": ()} if lacking == "sources" else {"trust_root": str(tmp_path / "mistyped")}
    stand = Stand(tmp_path / "stand", database, vendor, **none)
    with pytest.raises(RefusedError, match="no source, or no trust root") as refused:
        stand.follower.sync_now()
    assert (refused.value.status, refused.value.code) == (409, "no_source")


def test_a_trust_root_that_cant_be_read_is_none(
    tmp_path: Path, database: Database, vendor: Vendor
) -> None:
    stand = Stand(tmp_path / "stand", database, vendor, trust_root=str(tmp_path))  # a folder

    async def play() -> None:
        async with stand.running():
            await until(lambda: stand.follower.next_at() is not None)
            assert (await stand.follower.source()).trust_root_sha256 is None

    asyncio.run(play())


def test_a_trust_root_is_taken_if_it_signs_itself_and_is_in_the_audit(
    tmp_path: Path, database: Database, vendor: Vendor
) -> None:
    stand = Stand(tmp_path / "stand", database, vendor, sources=(), trust_root=None)
    forged = vendor.root.replace(b'"version":1}', b'"version":9}')
    assert forged != vendor.root
    newest = max((vendor.feed / "metadata").glob("*.snapshot.json"))

    async def give(root: bytes, url: str | None = None) -> Any:
        return await stand.follower.set_source(url=url, trust_root=root.decode(), by="ada")

    async def play() -> None:
        for bad in (forged, newest.read_bytes(), b"{}"):
            with pytest.raises(RefusedError) as refused:
                await give(bad, vendor.url)
            assert (refused.value.status, refused.value.code) == (400, "root_unusable")
        assert stand.policy().source is None
        with pytest.raises(RefusedError):
            await give(vendor.root, "gopher://feed.example")
        assert not stand.places.given_root.exists()
        seen = await give(vendor.root, vendor.url)
        newest_line = stand.database.read_blocking(audit.recent)[0]
        assert newest_line.action == "trust_root_changed"
        assert newest_line.who == "ada"
        assert newest_line.detail == {"sha256": seen.trust_root_sha256}
        assert stand.places.given_root.read_bytes() == vendor.root
        async with stand.running():
            await until(lambda: (last := stand.last()) and last.outcome == "switched")

    asyncio.run(play())


def test_versions_that_nobody_signed_start_no_sync(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.follower.NEEDS_SETTLE_S", 0.0)
    looked, invented = [], {PATTERN: {"no such version": 1}}

    def needs(_session: object) -> dict[str, dict[str, int]]:
        looked.append(1)
        return invented

    monkeypatch.setattr("server.fleet.needs.versions", needs)

    def heard() -> None:
        stand.database.write_blocking(lambda session: announce(session, VERSIONS, ""))

    async def play() -> None:
        async with stand.running():
            await until(stand.last)
            first = stand.last().started_at
            for _ in range(3):
                invented[PATTERN][str(len(looked))] = 1
                before = len(looked)
                await asyncio.to_thread(heard)
                await until(lambda before=before: len(looked) > before)  # type: ignore[misc]
            assert stand.follower.progress() is None
            assert stand.last().started_at == first
            invented[PATTERN]["171"] = 1
            await asyncio.to_thread(heard)
            await until(lambda: stand.last().started_at > first)

    asyncio.run(play())


def test_changes_of_the_policy_at_one_time_keep_each_other(database: Database) -> None:
    async def play() -> None:
        policy = InForce(database, Policy())
        changes = ({"check_in_s": 60.0}, {"notify_times": 3}, {"versions_kept": 2})
        await asyncio.gather(*(policy.change(item, by="ada", now=1.0) for item in changes))
        assert policy() == Policy(check_in_s=60.0, notify_times=3, versions_kept=2)

    asyncio.run(play())

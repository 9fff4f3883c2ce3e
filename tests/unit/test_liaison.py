"""The guardian's part with the server: told, asked, answered, and no token kept."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agent.channel import Enrol, EnrolAnswer, ServerNews, Situation
from agent.errors import ControlError
from agent.guardian.liaison import Liaison
from agent.guardian.lifecycle import State
from tests.support.rooms import Rooms

TOKEN = "hfenr_secret"


class Fetcher:
    """A fetcher that notes what it is told, while it is there."""

    def __init__(self) -> None:
        self.told: list[Situation] = []
        self.orders: list[Enrol] = []
        self.there = True

    def tell(self, situation: Situation) -> bool:
        if self.there:
            self.told.append(situation)
        return self.there

    def order(self, order: Enrol) -> bool:
        if self.there:
            self.orders.append(order)
        return self.there


class Room:
    """A liaison on a ledger, with a fetcher that listens."""

    def __init__(self, folder: Path) -> None:
        self.rooms = Rooms(folder)
        self.rooms.install("a", "r171", {"virus-pattern": "171"})
        self.fetcher = Fetcher()
        self.liaison = Liaison(self.rooms.ledger, self.fetcher)  # type: ignore[arg-type]

    def turn(self) -> list[Situation]:
        self.rooms.ledger.loop.turn(0)
        return self.fetcher.told

    def to(self, state: State, reason: str) -> None:
        self.rooms.ledger.to(state, reason=reason, sentence="s")


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def test_a_fetcher_that_comes_up_is_told_what_this_machine_is(room: Room) -> None:
    room.liaison.tell_anew()
    (told,) = room.turn()
    assert (told.host_id, told.active_release) == ("test-host", "r171")
    assert told.components == {"virus-pattern": "171"}
    assert told.resting
    room.liaison.tell_anew()
    assert len(room.turn()) == 2


def test_a_check_without_news_wakes_nobody(room: Room) -> None:
    room.to(State.CHECKING, "schedule")
    room.to(State.IDLE, "current")
    room.liaison.tell_anew()
    room.turn()
    for _ in range(3):
        room.to(State.CHECKING, "schedule")
        room.turn()
        room.to(State.IDLE, "current")
        room.turn()
    assert len(room.fetcher.told) == 1


def test_an_end_is_told_even_if_it_is_the_same_as_before(room: Room) -> None:
    room.liaison.tell_anew()
    for number in range(2):
        room.to(State.CHECKING, "schedule")
        room.to(State.STAGING, "verifying")
        room.to(State.FAILED, "disk_full")
        room.rooms.ledger.last_attempt = str(number)
        room.turn()
    assert [item.last_attempt for item in room.fetcher.told] == ["0", "1"]


def test_an_enrolment_is_passed_on_and_its_answer_kept_until_asked_for(room: Room) -> None:
    ticket = room.liaison.begin(action="enrol", url="https://s", token=TOKEN)["ticket"]
    (order,) = room.fetcher.orders
    assert (order.url, order.token) == ("https://s", TOKEN)
    assert TOKEN not in repr(order)
    assert TOKEN not in str(vars(room.liaison))
    assert room.liaison.progress(ticket) == {"done": False}
    with pytest.raises(ControlError, match="in progress"):
        room.liaison.begin(action="forget", url="", token="")
    room.liaison.hear(EnrolAnswer(ok=True, sentence="enrolled"))
    for _ in range(2):
        assert room.liaison.progress(ticket)["done"]
    with pytest.raises(ControlError, match="in between"):
        room.liaison.progress(ticket + 1)


def test_an_enrolment_ends_with_the_fetcher(room: Room) -> None:
    ticket = room.liaison.begin(action="enrol", url="https://s", token=TOKEN)["ticket"]
    room.liaison.lost("the fetcher ended")
    answer = room.liaison.progress(ticket)
    assert (answer["done"], answer["ok"], answer["code"]) == (True, False, "fetcher_lost")
    room.fetcher.there = False
    with pytest.raises(ControlError, match="isn't running"):
        room.liaison.begin(action="enrol", url="https://s", token=TOKEN)
    with pytest.raises(ControlError, match="no action"):
        room.liaison.begin(action="dance", url="", token="")


def test_an_answer_that_nobody_asked_for_is_none(room: Room) -> None:
    room.liaison.hear(EnrolAnswer(ok=True, sentence="enrolled"))
    assert room.liaison.begin(action="rotate", url="", token="") == {"ticket": 1}
    assert room.liaison.progress(1) == {"done": False}


def test_the_status_shows_the_server_and_that_its_line_is_dead(room: Room) -> None:
    assert room.liaison.document() is None
    news = ServerNews(url="https://s", agent_id="a", connected=True, since=5.0)
    room.liaison.hear(news)
    assert room.liaison.document() == msgspec.structs.asdict(news)
    room.liaison.lost("the fetcher ended")
    shown = room.liaison.document()
    assert shown is not None
    assert (shown["connected"], shown["code"]) == (False, "fetcher_lost")
    room.liaison.hear(ServerNews(url=""))
    assert room.liaison.document() is None

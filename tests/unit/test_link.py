"""The link's decisions: what follows what is heard, without a server or a clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.channel import Due, Looked, Looking, ServerNews, Situation
from agent.errors import EnrolmentError
from agent.fetcher import membership, pace
from agent.fetcher.link import Link
from agent.fetcher.listening import Connected, Heard, Lost
from agent.fetcher.membership import Credential, Enrolment, Membership
from agent.fetcher.session import Session
from agent.fetcher.spool import Spool
from agent.guardian import history
from agent.guardian.history import Outcome
from agent.layout import Layout
from feed.errors import SecurityServerError
from feed.messages import (
    CHECK_IN_PATH,
    CREDENTIAL_PATH,
    REPORTS_PATH,
    CheckIn,
    CheckInReply,
    NewCredential,
    ReportsTaken,
)

SITUATION = Situation(
    host_id="h", region="global", platform="linux", agent_version="1", state="idle",
    components={"pattern": "171"},
)  # fmt: skip
REFUSED = SecurityServerError("401", code="token_refused", status=401)
AWAY = SecurityServerError("away")


class Client:
    """A server in a few answers; `asked` is what it was asked, `taken` whose word it takes."""

    url = "https://s"

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any, str]] = []
        self.taken = {"old"}
        self.error: SecurityServerError | None = None
        self.reply = CheckInReply(round=0, look=False, check_in_s=300.0)

    def ask(self, path: str, message: Any, _reply: Any, *, bearer: str) -> Any:
        self.asked.append((path, message, bearer))
        if bearer not in self.taken:
            raise REFUSED
        if self.error:
            raise self.error
        if path == CHECK_IN_PATH:
            return self.reply
        if path == CREDENTIAL_PATH:
            self.taken.add("new")
            return NewCredential(credential="new")
        return ReportsTaken(taken=tuple(item.attempt for item in message.reports))

    def check_ins(self) -> list[CheckIn]:
        return [message for path, message, _ in self.asked if path == CHECK_IN_PATH]


class Linked:
    """A link on a clock of the test's."""

    def __init__(self, folder: Path) -> None:
        self.places = Layout(folder / "state", folder / "run", folder / "root.json")
        self.places.server.mkdir(parents=True)
        self.now = 1000.0
        self.client = Client()
        self.said: list[Any] = []
        self.hurried = 0
        member = Membership(
            enrolment=Enrolment(url="https://s", agent_id="a", enrolled_at=0.0),
            credential=Credential(agent_id="a", current="old"),
        )
        membership.store(self.places, member)
        self.link = self.restarted()

    def restarted(self) -> Link:
        member = membership.load(self.places)
        assert member is not None
        self.link = Link(
            Session(self.places, member, self.client),  # type: ignore[arg-type]
            Spool(self.places),
            say=self.said.append,
            hurry=self._hurry,
            clock=lambda: self.now,
            wall=lambda: self.now,
            draw=lambda: 0.5,
        )
        return self.link

    def _hurry(self) -> None:
        self.hurried += 1

    def take(self, *items: Any) -> float:
        for item in items:
            self.link.take(item)
        return self.link.work()

    def pass_by(self, seconds: float) -> float:
        self.now += seconds
        return self.link.work()

    @property
    def dues(self) -> int:
        return sum(isinstance(item, Due) for item in self.said)

    @property
    def news(self) -> ServerNews:
        return [item for item in self.said if isinstance(item, ServerNews)][-1]


@pytest.fixture
def linked(tmp_path: Path) -> Linked:
    return Linked(tmp_path)


def test_a_smaller_round_of_a_server_restored_from_a_backup_is_news(linked: Linked) -> None:
    linked.take(SITUATION, Heard(2**53))
    linked.pass_by(60)
    linked.take(Heard(450))
    assert linked.dues == 2
    assert linked.client.check_ins()[-1].heard_round == 450
    linked.client.reply = CheckInReply(round=449, look=True, check_in_s=300.0)
    linked.pass_by(600)
    linked.pass_by(pace.ANSWER_GAP_S)
    assert linked.dues == 3
    assert linked.client.check_ins()[-1].heard_round == 449


def test_nothing_is_said_before_it_is_known_what_the_machine_is(linked: Linked) -> None:
    linked.take(Connected())
    assert linked.client.asked == []
    linked.take(SITUATION)
    assert [item.facts.components for item in linked.client.check_ins()] == [{"pattern": "171"}]


def test_it_checks_in_about_as_often_as_the_server_asks(linked: Linked) -> None:
    patience = linked.take(SITUATION)
    assert patience == pytest.approx(300, rel=0.11)
    linked.pass_by(patience - 1)
    assert len(linked.client.check_ins()) == 1
    linked.pass_by(1)
    assert len(linked.client.check_ins()) == 2


def test_a_notification_is_a_due_check_and_is_answered_at_once(linked: Linked) -> None:
    linked.take(SITUATION, Connected())
    linked.take(Heard(7))
    assert linked.dues == 1
    assert linked.client.check_ins()[-1].heard_round == 7
    assert linked.client.check_ins()[-1].looked_round == 0
    linked.take(Looking(), Heard(8), Looked())
    linked.pass_by(pace.ANSWER_GAP_S)
    assert linked.client.check_ins()[-1].heard_round == 8
    assert linked.client.check_ins()[-1].looked_round == 7


def test_a_repeated_notification_is_answered_without_another_check(linked: Linked) -> None:
    linked.take(SITUATION, Heard(7))
    linked.pass_by(60)
    linked.take(Heard(7))
    assert linked.dues == 1
    assert len(linked.client.check_ins()) == 2


def test_a_flood_of_notifications_costs_a_check_now_and_then(linked: Linked) -> None:
    linked.take(SITUATION)
    for number in range(1000):
        linked.take(Heard(number + 1))
        linked.pass_by(0.01)
    assert linked.dues <= 3
    assert len(linked.client.check_ins()) <= 4


def test_a_check_ins_answer_may_say_look(linked: Linked) -> None:
    linked.client.reply = CheckInReply(round=3, look=True, check_in_s=300.0)
    linked.take(SITUATION)
    linked.pass_by(0)
    linked.pass_by(pace.ANSWER_GAP_S)
    assert linked.dues == 1
    assert linked.client.check_ins()[-1].heard_round == 3
    asked = len(linked.client.asked)
    linked.pass_by(60)  # it goes on saying so: that round has been heard
    assert len(linked.client.asked) == asked


def test_only_news_at_rest_is_told_before_its_time(linked: Linked) -> None:
    linked.take(SITUATION)
    linked.take(msgspec.structs.replace(SITUATION, state="trial", resting=False))
    linked.take(SITUATION)
    assert len(linked.client.check_ins()) == 1
    linked.take(msgspec.structs.replace(SITUATION, components={"pattern": "173"}))
    assert linked.client.check_ins()[-1].facts.components == {"pattern": "173"}


def test_a_server_that_is_away_is_asked_ever_more_rarely(linked: Linked) -> None:
    linked.client.error = AWAY
    waits = [linked.take(SITUATION)]
    for _ in range(9):
        waits.append(linked.pass_by(waits[-1]))
    assert waits == sorted(waits)
    assert len(linked.client.asked) == 10
    assert 0.5 * pace.RECONNECT_MAX_S <= waits[-1] <= pace.RECONNECT_MAX_S
    assert linked.news.code == "server_unreachable"
    linked.client.error = None
    linked.take(Connected())  # it is back: no more waiting
    assert linked.news.problem == ""
    assert linked.news.last_check_in == linked.now


def test_a_refused_credential_is_shown_slowly_whatever_happens_here(linked: Linked) -> None:
    linked.client.taken.clear()
    assert linked.take(SITUATION) >= 300
    linked.take(Lost("401", "token_refused", refused=True))
    linked.take(msgspec.structs.replace(SITUATION, components={}))
    assert len(linked.client.asked) == 1
    assert linked.news.code == "token_refused"


def test_a_new_credential_is_kept_before_it_is_shown(linked: Linked) -> None:
    linked.client.reply = CheckInReply(round=0, look=False, check_in_s=300.0, rotate=True)
    linked.take(SITUATION)
    kept = membership.load(linked.places)
    assert kept is not None
    assert (kept.credential.current, kept.credential.next) == ("old", "new")
    linked.client.reply = CheckInReply(round=0, look=False, check_in_s=300.0)
    linked.restarted()
    linked.take(SITUATION)
    assert linked.client.asked[-1][2] == "new"
    kept = membership.load(linked.places)
    assert kept is not None
    assert (kept.credential.current, kept.credential.next) == ("new", None)


def test_a_new_credential_that_is_refused_gives_way_to_the_old_one(linked: Linked) -> None:
    credential = Credential(agent_id="a", current="old", next="never heard of")
    membership.store_credential(linked.places, credential)
    linked.restarted()
    linked.take(Lost("401", "token_refused", refused=True), SITUATION)
    assert [bearer for _, _, bearer in linked.client.asked] == ["never heard of", "old"]
    kept = membership.load(linked.places)
    assert kept is not None
    assert kept.credential == Credential(agent_id="a", current="old")
    assert linked.hurried == 1


def test_an_attempts_end_is_reported_when_the_guardian_says_so(linked: Linked) -> None:
    linked.take(SITUATION)
    history.append(
        linked.places.history,
        Outcome(
            attempt="x", outcome="failed", release="r", from_release=None, trigger="", reason="",
            sentence="", ended=1.0,
        ),
    )  # fmt: skip
    linked.client.error = AWAY
    linked.take(msgspec.structs.replace(SITUATION, last_attempt="x"))
    assert linked.news.reports_waiting == 1
    linked.client.error = None
    linked.pass_by(300)
    assert REPORTS_PATH in [path for path, _, _ in linked.client.asked]
    assert linked.news.reports_waiting == 0


def test_a_credential_of_another_enrolment_is_never_shown(linked: Linked) -> None:
    membership.store_credential(linked.places, Credential(agent_id="b", current="else"))
    with pytest.raises(EnrolmentError, match="enrol again"):
        membership.load(linked.places)
    linked.places.credential.write_bytes(b'{"secret')
    with pytest.raises(EnrolmentError, match="damaged"):
        membership.load(linked.places)


def test_secrets_are_in_no_representation() -> None:
    shown = repr(Membership(
        enrolment=Enrolment(url="u", agent_id="a", enrolled_at=0.0),
        credential=Credential(agent_id="a", current="hfagt_secret", next="hfagt_other"),
    ))  # fmt: skip
    assert "hfagt" not in shown

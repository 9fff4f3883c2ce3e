"""python -m agent.fetcher.enrol: join a Security Server, leave it, renew the credential.

One order on standard input, one answer on standard output. The link doesn't run
meanwhile. Nothing is sent to a server whose authority isn't the one that the
token pins, and the token reaches no log.
"""

from __future__ import annotations

import socket
import sys
import time

import agent.fetcher.road  # noqa: F401 - before any other import of httpx; see there
from agent import channel, worker
from agent.channel import Enrol, EnrolAnswer
from agent.errors import AgentError, EnrolmentError
from agent.fetcher import membership, spool, telling
from agent.fetcher.membership import Credential, Enrolment, Membership
from agent.fetcher.session import Session
from agent.layout import Layout
from feed import enrolling
from feed.enrolling import Joined
from feed.errors import FeedError
from feed.messages import CHECK_IN_PATH, CheckIn, CheckInReply, EnrolRequest
from feed.serverclient import ServerClient


def main(arguments: list[str] | None = None) -> int:
    """Carry out the order; the answer says how it went."""
    _, places = worker.begin("agent.fetcher.enrol", __doc__, arguments, program="fetcher")
    channel.send(sys.stdout.buffer, serve(worker.order(Enrol), places))
    return 0


def serve(order: Enrol, places: Layout) -> EnrolAnswer:
    """Do what is ordered; every expected problem becomes an answer."""
    actions = {"enrol": _enrol, "forget": _forget, "rotate": _rotate}
    try:
        return actions[order.action](order, places)
    except (AgentError, FeedError) as error:
        return EnrolAnswer(ok=False, code=error.code, sentence=str(error))
    except OSError as error:
        where = error.filename or places.server
        return EnrolAnswer(ok=False, code="io_error", sentence=f"{where}: {error.strerror}")


def _enrol(order: Enrol, places: Layout) -> EnrolAnswer:
    request = EnrolRequest(facts=telling.facts(order.situation, name=socket.gethostname()))
    try:
        joined = enrolling.enrol(order.url, order.token, request)
    except ValueError as error:
        return EnrolAnswer(ok=False, code="enrolment_malformed", sentence=str(error))
    _store(places, joined)
    given, url = joined.enrolled, joined.aim.url
    return EnrolAnswer(
        ok=True,
        sentence=f"enrolled with {url} as {given.agent_id}, group {given.group}",
        warning=joined.aim.warning,
    )


def _store(places: Layout, joined: Joined) -> None:
    url, given = joined.aim.url, joined.enrolled
    try:
        before = membership.enrolment(places)
    except EnrolmentError:
        before = None
    if before is None or before.url != url:
        spool.begin_anew(places)  # what ended before isn't this server's business
    fresh = Membership(
        enrolment=Enrolment(
            url=url,
            agent_id=given.agent_id,
            enrolled_at=time.time(),
            authority=joined.authority,
        ),
        credential=Credential(agent_id=given.agent_id, current=given.credential),
    )
    membership.store(places, fresh)


def _forget(_order: Enrol, places: Layout) -> EnrolAnswer:
    if not membership.is_enrolled(places):
        return EnrolAnswer(ok=False, code="not_enrolled", sentence="this machine isn't enrolled")
    membership.forget(places)
    spool.discard(places)
    return EnrolAnswer(ok=True, sentence="left; updates come from the configured sources")


def _rotate(order: Enrol, places: Layout) -> EnrolAnswer:
    member = membership.load(places)
    if member is None:
        return EnrolAnswer(ok=False, code="not_enrolled", sentence="this machine isn't enrolled")
    kept = member.enrolment
    with ServerClient(kept.url, authority=kept.authority) as client:
        session = Session(places, member, client)
        session.rotate()
        facts = telling.facts(order.situation, name=socket.gethostname())
        session.ask(CHECK_IN_PATH, CheckIn(facts=facts), CheckInReply)
    return EnrolAnswer(ok=True, sentence=f"{kept.url} has given this machine a new credential")


if __name__ == "__main__":
    worker.end(main)

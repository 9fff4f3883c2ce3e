"""python -m agent.fetcher.enrol: join a Security Server, leave it, renew the credential.

One order on standard input, one answer on standard output. The link doesn't run
meanwhile. Nothing is sent to a server whose authority isn't the one that the
token pins, and the token reaches no log.
"""

from __future__ import annotations

import socket
import ssl
import sys
import time

import agent.fetcher.road  # noqa: F401 - before any other import of httpx; see there
from agent import channel, worker
from agent.channel import Enrol, EnrolAnswer
from agent.errors import AgentError, EnrolmentError, ServerError
from agent.fetcher import membership, pinning, spool, telling
from agent.fetcher.membership import Credential, Enrolment, Membership
from agent.fetcher.pinning import Aim
from agent.fetcher.serverclient import ServerClient, fetch_authority
from agent.fetcher.session import Session
from agent.layout import Layout
from feed.messages import CHECK_IN_PATH, ENROL_PATH, CheckIn, CheckInReply, Enrolled, EnrolRequest

AGENT_ID_CHARS_MAX = 255


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
    except AgentError as error:
        return EnrolAnswer(ok=False, code=error.code, sentence=str(error))
    except OSError as error:
        where = error.filename or places.server
        return EnrolAnswer(ok=False, code="io_error", sentence=f"{where}: {error.strerror}")


def _enrol(order: Enrol, places: Layout) -> EnrolAnswer:
    try:
        aim = pinning.aim(order.url, order.token)
    except ValueError as error:
        return EnrolAnswer(ok=False, code="enrolment_malformed", sentence=str(error))
    authority = _authority(aim)
    request = EnrolRequest(facts=telling.facts(order.situation, name=socket.gethostname()))
    with ServerClient(aim.url, authority=authority) as client:
        given = client.ask(ENROL_PATH, request, Enrolled, bearer=order.token)
    _check(given, aim)
    _store(places, aim, authority, given)
    return EnrolAnswer(
        ok=True,
        sentence=f"enrolled with {aim.url} as {given.agent_id}, group {given.group}",
        warning=aim.warning,
    )


def _authority(aim: Aim) -> str | None:
    """The pinned authority, None where the system's are to be trusted.

    Raises ServerError: it isn't the one that is pinned, or can't be had.
    """
    if aim.pin is None:
        return None
    text = fetch_authority(aim.url).strip()
    try:
        certificate = ssl.PEM_cert_to_DER_cert(text)
    except ValueError as error:
        raise ServerError(
            f"{aim.url} shows no certificate of its authority", code="server_not_understood"
        ) from error
    if not pinning.is_pinned(certificate, aim.pin):
        raise ServerError(
            f"the authority of {aim.url} isn't the one that the token names: either the token is "
            "another server's, or somebody answers in its place. The token wasn't sent",
            code="pin_mismatch",
        )
    return ssl.DER_cert_to_PEM_cert(certificate)  # exactly what was compared


def _check(given: Enrolled, aim: Aim) -> None:
    is_usable = pinning.CREDENTIAL.fullmatch(given.credential) and given.agent_id
    if not is_usable or len(given.agent_id) > AGENT_ID_CHARS_MAX:
        raise ServerError(
            f"{aim.url} gives a credential that can't be one", code="server_not_understood"
        )


def _store(places: Layout, aim: Aim, authority: str | None, given: Enrolled) -> None:
    try:
        before = membership.enrolment(places)
    except EnrolmentError:
        before = None
    if before is None or before.url != aim.url:
        spool.begin_anew(places)  # what ended before isn't this server's business
    fresh = Membership(
        enrolment=Enrolment(
            url=aim.url, agent_id=given.agent_id, enrolled_at=time.time(), authority=authority
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

"""What agents ask: enrolment, check-ins, reports, another credential; servers' counts.

Who speaks is read from the credential alone; what is sent names nobody.
"""

from __future__ import annotations

from litestar.params import JSONBody

from feed.messages import (
    AUTHORITY_PATH,
    CHECK_IN_PATH,
    COUNTS_PATH,
    CREDENTIAL_PATH,
    ENROL_PATH,
    REPORTS_PATH,
    Authority,
    CheckIn,
    CheckInReply,
    Counts,
    Enrolled,
    EnrolRequest,
    NewCredential,
    Reports,
    ReportsTaken,
)
from server.accounts import enrolment
from server.accounts.credentials import AgentIdentity
from server.errors import RefusedError
from server.fleet import counts as countings
from server.fleet import reports as reporting
from server.web.parts import Parts
from server.web.routes import (
    AnyRequest,
    PartsGiven,
    Speaker,
    agent_post,
    open_get,
    open_post,
    server_post,
)
from server.web.wire import body


@open_get(AUTHORITY_PATH, tags=["agents"])
async def authority(parts: PartsGiven) -> Authority:
    """The server's own certificate authority; 404 where it has none."""
    if parts.authority is None:
        raise RefusedError(
            "this server's certificate isn't of an authority of its own",
            status=404,
            code="no_own_authority",
        )
    return Authority(certificate=parts.authority)


@open_post(
    ENROL_PATH,
    dto=body(EnrolRequest),
    return_dto=None,
    status_code=200,
    security=[{"enrolment": []}],
    tags=["agents"],
)
async def enrol(request: AnyRequest, parts: PartsGiven, data: JSONBody[EnrolRequest]) -> Enrolled:
    """From an enrolment token to an id and a credential of one's own."""
    now, check_in_s = parts.clock(), parts.policy().check_in_s

    async def take(token: str) -> Enrolled:
        return await parts.database.write(
            lambda session: enrolment.enrol(session, token, data, now=now, check_in_s=check_in_s)
        )

    made = await parts.door.enrolling(request.scope, take)  # type: ignore[arg-type]
    parts.mirror.fleet_changed()
    return made


@agent_post(CHECK_IN_PATH, dto=body(CheckIn), return_dto=None, status_code=200)
async def check_in(parts: PartsGiven, agent: Speaker, data: JSONBody[CheckIn]) -> CheckInReply:
    """Here I am, this I run."""
    return await checked_in(parts, agent, data)


async def checked_in(parts: Parts, agent: AgentIdentity, data: CheckIn) -> CheckInReply:
    """Take it down, and tell the hub what has been answered."""
    reply = await parts.check_ins.take(agent, data, now=parts.clock())
    if not reply.look:
        parts.hub.answered(agent.id, reply.round)
    return reply


@agent_post(REPORTS_PATH, dto=body(Reports), return_dto=None, status_code=200)
async def reports(parts: PartsGiven, agent: Speaker, data: JSONBody[Reports]) -> ReportsTaken:
    """How attempts ended; those named in the answer are durably kept."""
    now = parts.clock()
    return await parts.database.write(
        lambda session: reporting.take(session, agent.id, data, now=now)
    )


@agent_post(CREDENTIAL_PATH, status_code=200)
async def credential(parts: PartsGiven, agent: Speaker) -> NewCredential:
    """Another credential; the one before holds until the new one is used."""
    return await parts.database.write(lambda session: enrolment.rotate(session, agent.id))


@server_post(COUNTS_PATH, dto=body(Counts), return_dto=None, status_code=204)
async def counts(parts: PartsGiven, agent: Speaker, data: JSONBody[Counts]) -> None:
    """Another server's numbers; older ones than are known change nothing."""
    now = parts.clock()
    await parts.database.write(lambda session: countings.take(session, agent.id, data, now=now))


HANDLERS = (authority, enrol, check_in, reports, credential, counts)

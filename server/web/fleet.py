"""What administrators ask about machines: agents, groups, reports, servers below."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar.params import FromPath, JSONBody, QueryParameter
from sqlalchemy.orm import Session

from feed.messages import API
from server.accounts import enrolment
from server.errors import RefusedError
from server.fleet import agents as machines
from server.fleet import groups as grouping
from server.fleet import reports as reporting
from server.fleet.agents import AgentDetail, AgentView
from server.fleet.reports import ReportView
from server.web import lookups
from server.web.models import (
    AgentChange,
    AgentRow,
    Agents,
    AgentShown,
    Downstreams,
    GroupRow,
    Groups,
    NewGroup,
    ReportPage,
    ReportRow,
    ReportShown,
)
from server.web.parts import Parts
from server.web.routes import (
    Administrator,
    PartsGiven,
    admin_delete,
    admin_get,
    admin_patch,
    admin_post,
)
from server.web.wire import body

REPORTS_SHOWN = 20  # with an agent

Limit = Annotated[int, QueryParameter(ge=1, le=1000)]
Word = Annotated[str | None, QueryParameter(max_length=64)]
Flag = Annotated[bool | None, QueryParameter()]
Cursor = Annotated[str | None, QueryParameter(max_length=1000)]
Before = Annotated[int | None, QueryParameter(ge=0, le=2**31 - 1)]


@admin_get(f"{API}/agents")
async def agents(
    parts: PartsGiven,
    who: Administrator,
    *,
    group: Word = None,
    release: Word = None,
    silent: Flag = None,
    after: Cursor = None,
    limit: Limit = 100,
) -> Agents:
    """A page of the machines, by name."""
    del who
    now, silent_after_s = parts.clock(), parts.policy().silent_after_s
    wanted = machines.Wanted(group=_storable(group), release=_storable(release), silent=silent)
    page = await parts.database.read(
        lambda session: machines.page(
            session, wanted, now=now, silent_after_s=silent_after_s, after=after, limit=limit
        )
    )
    return Agents(agents=[_row(parts, item) for item in page.agents], next=page.after)


@admin_get(f"{API}/agents/{{agent_id:str}}")
async def agent(parts: PartsGiven, who: Administrator, agent_id: FromPath[str]) -> AgentShown:
    """One machine: what it runs, and how its last attempts ended."""
    del who
    now, silent_after_s = parts.clock(), parts.policy().silent_after_s

    def look(session: Session) -> tuple[AgentDetail, list[ReportView]]:
        found = machines.show(session, agent_id, now=now, silent_after_s=silent_after_s)
        return found, reporting.recent(session, limit=REPORTS_SHOWN, agent_id=agent_id)

    found, reports = await parts.database.read(look)
    return AgentShown(
        agent=_row(parts, found),
        components=found.components,
        reports=[_report(item, found.name) for item in reports],
    )


@admin_patch(f"{API}/agents/{{agent_id:str}}", dto=body(AgentChange), return_dto=None)
async def move_agent(
    parts: PartsGiven, who: Administrator, agent_id: FromPath[str], data: JSONBody[AgentChange]
) -> AgentRow:
    """Into another group."""
    now, silent_after_s = parts.clock(), parts.policy().silent_after_s

    def move(session: Session) -> AgentDetail:
        machines.move(session, [agent_id], group=data.group, now=now, by=who)
        session.flush()
        return machines.show(session, agent_id, now=now, silent_after_s=silent_after_s)

    return _row(parts, await parts.database.write(move))


@admin_delete(f"{API}/agents/{{agent_id:str}}")
async def revoke_agent(parts: PartsGiven, who: Administrator, agent_id: FromPath[str]) -> None:
    """Its credential is refused from now on, and its stream ends."""
    now = parts.clock()
    await parts.database.write(lambda session: machines.revoke(session, agent_id, now=now, by=who))


@admin_post(f"{API}/agents/{{agent_id:str}}/rotate", status_code=204)
async def rotate_agent(parts: PartsGiven, who: Administrator, agent_id: FromPath[str]) -> None:
    """It is asked for at the next check-in; the old credential holds until then."""
    now = parts.clock()

    await parts.database.write(
        lambda session: enrolment.ask_rotation(session, agent_id, now=now, by=who)
    )


@admin_get(f"{API}/groups")
async def groups(parts: PartsGiven, who: Administrator) -> Groups:
    """Every group, with the number of its agents."""
    del who
    found = await parts.database.read(grouping.listed)
    return Groups(groups=[GroupRow(name=item.name, agents=item.agents) for item in found])


@admin_post(f"{API}/groups", dto=body(NewGroup), return_dto=None)
async def create_group(parts: PartsGiven, who: Administrator, data: JSONBody[NewGroup]) -> GroupRow:
    """An empty one."""
    now = parts.clock()
    await parts.database.write(lambda session: grouping.create(session, data.name, now=now, by=who))
    return GroupRow(name=data.name, agents=0)


@admin_delete(f"{API}/groups/{{name:str}}")
async def remove_group(parts: PartsGiven, who: Administrator, name: FromPath[str]) -> None:
    """409 while agents are in it."""
    now = parts.clock()
    await parts.database.write(lambda session: grouping.remove(session, name, now=now, by=who))


@admin_get(f"{API}/reports")
async def reports(
    parts: PartsGiven,
    who: Administrator,
    outcome: Word = None,
    release: Word = None,
    after: Before = None,
    limit: Limit = 100,
) -> ReportPage:
    """How attempts ended, the newest first."""
    del who

    def look(session: Session) -> tuple[list[ReportView], dict[str, str]]:
        found = reporting.recent(
            session,
            limit=limit,
            before_id=after,
            outcome=_storable(outcome),
            release=_storable(release),
        )
        return found, lookups.names(session, [item.agent_id for item in found])

    found, names = await parts.database.read(look)
    full = len(found) >= min(limit, reporting.PAGE_MAX)
    return ReportPage(
        reports=[_report(item, names.get(item.agent_id, "")) for item in found],
        next=str(found[-1].id) if full else None,
    )


@admin_get(f"{API}/reports/{{report_id:int}}")
async def report(parts: PartsGiven, who: Administrator, report_id: FromPath[int]) -> ReportShown:
    """One, with what the verdict was reached from."""
    del who

    def look(session: Session) -> tuple[ReportView, bytes | None, dict[str, str]]:
        found, evidence = lookups.report(session, report_id)
        return found, evidence, lookups.names(session, [found.agent_id])

    found, evidence, names = await parts.database.read(look)
    row = _report(found, names.get(found.agent_id, ""))
    return ReportShown(
        **msgspec.structs.asdict(row),
        evidence=None if evidence is None else msgspec.Raw(evidence),
    )


@admin_get(f"{API}/downstream")
async def downstream(parts: PartsGiven, who: Administrator) -> Downstreams:
    """The servers that are enrolled here, in numbers."""
    del who
    return Downstreams(servers=await parts.database.read(lookups.downstream))


def _storable(text: str | None) -> str | None:
    """A filter; no database has a NUL in a text, and PostgreSQL refuses to look for one."""
    if text is not None and "\0" in text:
        raise RefusedError("a NUL is nowhere found", status=400, code="invalid")
    return text


def _row(parts: Parts, found: AgentView) -> AgentRow:
    said = {
        name: getattr(found, name)
        for name in AgentRow.__struct_fields__
        if name not in {"silent", "connected"}
    }
    return AgentRow(
        **said,
        silent=found.silent_since is not None,
        connected=parts.hub.is_connected(found.id),
    )


def _report(found: ReportView, name: str) -> ReportRow:
    said = msgspec.structs.asdict(found)
    kept = said.pop("evidence_bytes")
    return ReportRow(**said, name=name, has_evidence=kept > 0)


HANDLERS = (
    agents,
    agent,
    move_agent,
    revoke_agent,
    rotate_agent,
    groups,
    create_group,
    remove_group,
    reports,
    report,
    downstream,
)

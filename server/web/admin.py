"""What administrators ask of the server itself: mirror, tokens, policy, set-up, audit."""

from __future__ import annotations

from typing import Annotated

from litestar.params import FromPath, JSONBody, QueryParameter
from sqlalchemy.orm import Session

from feed.messages import API
from feed.source import public_url
from server import __version__
from server.accounts import access, audit, setup, tokens
from server.accounts import policy as policies
from server.errors import RefusedError, conflict
from server.notify import rounds as keeping
from server.notify.rounds import Announcement
from server.settings import Policy
from server.web import lookups
from server.web.inforce import checked
from server.web.models import (
    Asked,
    AuditPage,
    FleetStatus,
    MirrorStatus,
    NewToken,
    Retention,
    Rounds,
    RoundsStatus,
    Scrubbed,
    SetUp,
    SetUpDone,
    SetupLink,
    SourceChange,
    SourceView,
    Status,
    TokenMade,
    Tokens,
    UpstreamEnrolment,
    UpstreamView,
)
from server.web.parts import Parts
from server.web.routes import (
    Administrator,
    AnyRequest,
    PartsGiven,
    admin_delete,
    admin_get,
    admin_patch,
    admin_post,
    admin_put,
    open_post,
)
from server.web.setup_page import SETUP_PATH
from server.web.wire import body

ENROL_GOOD_S = 7 * 86400.0

Limit = Annotated[int, QueryParameter(ge=1, le=1000)]
Before = Annotated[int | None, QueryParameter(ge=0, le=2**31 - 1)]


@admin_get(f"{API}/status")
async def status(parts: PartsGiven, who: Administrator) -> Status:
    """The mirror, the fleet, the rounds, and what is wrong."""
    del who
    now, policy = parts.clock(), parts.policy()

    def look(session: Session) -> tuple[lookups.Fleet, lookups.Syncs, list[keeping.RoundView]]:
        return (
            lookups.fleet(session, now=now, silent_after_s=policy.silent_after_s),
            lookups.syncs(session),
            keeping.recent(session, limit=1),
        )

    fleet, syncs, rounds = await parts.database.read(look)
    source = await parts.mirror.source()
    releases = await parts.mirror.releases()
    problems = _problems(fleet, syncs, source, releases)
    return Status(
        version=__version__,
        up_s=max(0.0, now - parts.started_at),
        sentence=problems[0] if problems else "all is well",
        problems=problems,
        mirror=MirrorStatus(
            source=source.url,
            releases=releases,
            last=syncs.last,
            running=parts.mirror.progress(),
            next_at=parts.mirror.next_at(),
            fetched_bytes=syncs.fetched_bytes,
            saved_bytes=syncs.saved_bytes,
        ),
        agents=FleetStatus(
            enrolled=fleet.enrolled,
            connected=parts.hub.connected,
            silent=fleet.silent,
            states=fleet.states,
        ),
        rounds=RoundsStatus(
            newest=parts.hub.newest,
            told=rounds[0].told if rounds else 0,
            answered=rounds[0].answered if rounds else 0,
        ),
    )


def _problems(
    fleet: lookups.Fleet, syncs: lookups.Syncs, source: SourceView, releases: tuple[str, ...]
) -> list[str]:
    found = []
    if source.url is None and not releases:
        found.append("no source is named: serverctl source URL --trust-root FILE")
    elif syncs.last is not None and syncs.last.outcome == "failed":
        found.append(f"the last sync failed: {syncs.last.sentence}")
    elif source.url is not None and source.trust_root_sha256 is None:
        found.append("no trust root is known: serverctl source --trust-root FILE")
    elif not releases:
        found.append("nothing is served yet: no sync has ended")
    if fleet.silent:
        found.append(f"{fleet.silent:,} of {fleet.enrolled:,} agents are silent")
    return found


@admin_post(f"{API}/sync", status_code=202)
async def sync(parts: PartsGiven, who: Administrator) -> Asked:
    """Look at the source now; 409 while a sync runs."""
    parts.mirror.sync_now()
    await _note(parts, who, "sync_asked", {})
    return Asked()


@admin_get(f"{API}/source")
async def source(parts: PartsGiven, who: Administrator) -> SourceView:
    """Where the mirror updates from."""
    del who
    return await parts.mirror.source()


@admin_put(f"{API}/source", dto=body(SourceChange), return_dto=None)
async def set_source(
    parts: PartsGiven, who: Administrator, data: JSONBody[SourceChange]
) -> SourceView:
    """Update from somewhere else; 409 where the server's file says it."""
    if data.url is not None:
        checked({"source": data.url})
    return await parts.mirror.set_source(url=data.url, trust_root=data.trust_root, by=who)


@admin_get(f"{API}/upstream")
async def upstream(parts: PartsGiven, who: Administrator) -> UpstreamView:
    """The next server, which gets counts."""
    del who
    return await parts.upstream.view()


@admin_put(f"{API}/upstream", dto=body(UpstreamEnrolment), return_dto=None)
async def enrol_upstream(
    parts: PartsGiven, who: Administrator, data: JSONBody[UpstreamEnrolment]
) -> UpstreamView:
    """Enrol with the next server; 409 where it refuses."""
    made = await parts.upstream.enrol(url=data.url, token=data.token)
    await _note(parts, who, "upstream_enrolled", {"url": made.url and public_url(made.url)})
    return made


@admin_delete(f"{API}/upstream")
async def forget_upstream(parts: PartsGiven, who: Administrator) -> None:
    """Send no counts any more."""
    await parts.upstream.forget()
    await _note(parts, who, "upstream_left", {})


@admin_get(f"{API}/retention")
async def retention(parts: PartsGiven, who: Administrator) -> Retention:
    """What is kept, and what each choice costs; PATCH /policy chooses."""
    del who
    return await parts.mirror.retention()


@admin_post(f"{API}/scrub", status_code=200)
async def scrub(parts: PartsGiven, who: Administrator) -> Scrubbed:
    """Hold every served file against its signature."""
    await _note(parts, who, "scrub_asked", {})
    return await parts.mirror.scrub_now()


@admin_post(f"{API}/notify", status_code=200)
async def notify(parts: PartsGiven, who: Administrator) -> Announcement:
    """Tell all agents to look: the connected ones now, the others on their return."""
    made = await parts.announcer.announce(cause="administrator", by=who)
    await _note(parts, who, "notified", {"round": made.round})
    return made


@admin_get(f"{API}/rounds")
async def rounds(parts: PartsGiven, who: Administrator, limit: Limit = 50) -> Rounds:
    """Who was told and who answered, the newest first."""
    del who
    return Rounds(
        rounds=await parts.database.read(lambda session: keeping.recent(session, limit=limit))
    )


@admin_get(f"{API}/tokens")
async def list_tokens(parts: PartsGiven, who: Administrator) -> Tokens:
    """Without their secrets, which nobody keeps."""
    del who
    now = parts.clock()
    return Tokens(tokens=await parts.database.read(lambda session: access.listed(session, now=now)))


@admin_post(f"{API}/tokens", dto=body(NewToken), return_dto=None)
async def create_token(
    parts: PartsGiven, who: Administrator, data: JSONBody[NewToken]
) -> TokenMade:
    """Another token, whose text is in this answer and nowhere else."""
    now = parts.clock()

    def make(session: Session) -> str:
        text = access.issue(
            session,
            kind=data.kind,
            name=data.name,
            now=now,
            expires_at=data.expires_at,
            uses=data.uses,
            role=data.role,
            group=data.group,
            pin=parts.authority_pin if data.kind == "enrol" else None,
        )
        detail: dict[str, object] = {"id": _id(text), "kind": data.kind, "name": data.name}
        if data.kind == "enrol":
            detail["role"] = data.role
        audit.note(session, who=who, action="token_created", detail=detail, now=now)
        return text

    text = await parts.database.write(make)
    return TokenMade(token=text, id=_id(text), url=parts.url)


@admin_delete(f"{API}/tokens/{{token_id:str}}")
async def revoke_token(parts: PartsGiven, who: Administrator, token_id: FromPath[str]) -> None:
    """Refused from now on."""
    now = parts.clock()
    await parts.database.write(lambda session: access.revoke(session, token_id, now=now, by=who))


@admin_get(f"{API}/policy")
async def policy(parts: PartsGiven, who: Administrator) -> Policy:
    """What is in force; of the source, the address without its password."""
    del who
    return policies.public(parts.policy())


@admin_patch(f"{API}/policy", dto=body(dict[str, object]), return_dto=None)
async def change_policy(
    parts: PartsGiven, who: Administrator, data: JSONBody[dict[str, object]]
) -> Policy:
    """Put some fields in force; the others stay. What GET has told changes nothing."""
    told = policies.public(parts.policy()).source
    given = {key: value for key, value in data.items() if key != "source" or value != told}
    return policies.public(await parts.policy.change(given, by=who, now=parts.clock()))


@admin_get(f"{API}/audit")
async def audited(
    parts: PartsGiven, who: Administrator, limit: Limit = 100, before: Before = None
) -> AuditPage:
    """What administrators did, the newest first."""
    del who
    entries = await parts.database.read(
        lambda session: audit.recent(session, limit=limit, before_id=before)
    )
    full = len(entries) >= min(limit, audit.PAGE_MAX)
    return AuditPage(entries=entries, next=entries[-1].id if full else None)


@admin_post(f"{API}/setup-link", status_code=200)
async def setup_link(parts: PartsGiven, who: Administrator) -> SetupLink:
    """A new link to the page that makes the first administrator; 409 once there is one."""
    now = parts.clock()

    def make(session: Session) -> str:
        text = setup.prepare(session, now=now)
        if text is None:
            raise conflict("there is an administrator; tokens are made with theirs")
        audit.note(session, who=who, action="setup_link_made", detail={}, now=now)
        return text

    text = await parts.database.write(make)
    return SetupLink(url=f"{parts.url}{SETUP_PATH}#{text}")


@open_post(f"{API}/setup", dto=body(SetUp), return_dto=None, status_code=200, tags=["set-up"])
async def set_up(request: AnyRequest, parts: PartsGiven, data: JSONBody[SetUp]) -> SetUpDone:
    """Make the first administrator, with the one-time token that the server printed."""
    if data.source is not None:
        checked({"source": data.source})
    now = parts.clock()

    def make(session: Session) -> tuple[str, str]:
        text = setup.complete(session, data.token, name=data.name, now=now)
        enrol = access.issue(
            session,
            kind="enrol",
            name="set-up",
            now=now,
            expires_at=now + ENROL_GOOD_S,
            pin=parts.authority_pin,
        )
        return text, enrol

    async def use() -> tuple[str, str]:
        return await parts.database.write(make)

    text, enrol = await parts.door.once(request.scope, use)  # type: ignore[arg-type]
    if data.source is not None or data.trust_root is not None:
        await _set_source_leniently(parts, data)
    return SetUpDone(token=text, enrol=enrol, url=parts.url)


async def _set_source_leniently(parts: Parts, data: SetUp) -> None:
    """The token is spent and its answer must arrive: what is wrong with a source is said later."""
    try:
        await parts.mirror.set_source(url=data.source, trust_root=data.trust_root, by=data.name)
    except RefusedError as error:
        await _note(parts, data.name, "source_refused", {"reason": str(error)})


def _id(text: str) -> str:
    made = tokens.parse(text)
    return made.id if made else ""


async def _note(parts: Parts, who: str, action: str, detail: dict[str, object]) -> None:
    now = parts.clock()
    await parts.database.write(
        lambda session: audit.note(session, who=who, action=action, detail=detail, now=now)
    )


HANDLERS = (
    status,
    sync,
    source,
    set_source,
    upstream,
    enrol_upstream,
    forget_upstream,
    retention,
    scrub,
    notify,
    rounds,
    list_tokens,
    create_token,
    revoke_token,
    policy,
    change_policy,
    audited,
    setup_link,
    set_up,
)

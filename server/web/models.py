"""What administrators send and get, field by field (docs/api.md)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from feed.messages import STORABLE, Counts, Word
from server.accounts.access import TokenView
from server.accounts.audit import Entry
from server.notify.rounds import RoundView

Label = Annotated[str, Meta(min_length=1, max_length=255, pattern=STORABLE)]
Address = Annotated[str, Meta(min_length=1, max_length=2000, pattern=STORABLE)]
RootText = Annotated[str, Meta(min_length=1, max_length=512 << 10)]


class Given(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request. A misspelt field is refused rather than passed over."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """An answer."""


class Progress(Told, frozen=True, kw_only=True):
    """Where a running sync is."""

    what: str
    done_bytes: int
    total_bytes: int


class SyncView(Told, frozen=True, kw_only=True):
    """One sync."""

    id: int
    trigger: str
    started_at: float
    ended_at: float | None
    outcome: str
    sentence: str
    code: str
    source: str
    fetched_bytes: int
    saved_bytes: int


class MirrorStatus(Told, frozen=True, kw_only=True):
    """The mirror; fetched_bytes and saved_bytes are those of all its syncs."""

    source: str | None
    releases: tuple[str, ...]
    last: SyncView | None
    running: Progress | None
    next_at: float | None
    fetched_bytes: int
    saved_bytes: int


class FleetStatus(Told, frozen=True, kw_only=True):
    """The machines, in numbers."""

    enrolled: int
    connected: int
    silent: int
    states: dict[str, int]


class RoundsStatus(Told, frozen=True, kw_only=True):
    """The newest notification."""

    newest: int
    told: int
    answered: int


class Status(Told, frozen=True, kw_only=True):
    """The whole server; sentence is the first problem, or that all is well."""

    version: str
    up_s: float
    sentence: str
    problems: list[str]
    mirror: MirrorStatus
    agents: FleetStatus
    rounds: RoundsStatus


class Asked(Told, frozen=True, kw_only=True):
    """It is asked for and will be done."""

    asked: bool = True


class SourceView(Told, frozen=True, kw_only=True):
    """Where the mirror updates from. from_file: only the server's file changes it."""

    url: str | None
    trust_root_sha256: str | None
    from_file: bool


class SourceChange(Given, frozen=True, kw_only=True):
    """None leaves it as it is. trust_root is the text of the vendor's first root.json."""

    url: Address | None = None
    trust_root: RootText | None = None


class UpstreamView(Told, frozen=True, kw_only=True):
    """The next server, which gets counts; None: there is none."""

    url: str | None
    agent_id: str | None


class UpstreamEnrolment(Given, frozen=True, kw_only=True):
    """Where to enrol, and the enrolment token that its administrator made."""

    url: Address
    token: Label


class RetentionChoice(Told, frozen=True, kw_only=True):
    """What keeping so many versions costs."""

    versions_kept: int
    bytes: int
    agents_to_fulls: int


class Retention(Told, frozen=True, kw_only=True):
    """Every choice, and the one that holds."""

    in_force: int
    choices: list[RetentionChoice]


class Scrubbed(Told, frozen=True, kw_only=True):
    """Every served file held against its signature."""

    sentence: str
    checked: int
    damaged: list[str]
    repaired: list[str]


class Rounds(Told, frozen=True, kw_only=True):
    rounds: list[RoundView]


class AgentRow(Told, frozen=True, kw_only=True):
    """One machine."""

    id: str
    name: str
    host_id: str
    role: str
    group: str
    platform: str
    agent_version: str
    region: str
    traits: dict[str, str]
    active_release: str | None
    state: str
    reason: str
    enrolled_at: float
    seen_at: float
    silent: bool
    revoked_at: float | None
    connected: bool
    answered_round: int


class Agents(Told, frozen=True, kw_only=True):
    """A page; next is the `after` of the one that follows."""

    agents: list[AgentRow]
    next: str | None


class ReportRow(Told, frozen=True, kw_only=True):
    """How an attempt ended."""

    id: int
    agent_id: str
    name: str
    attempt: str
    outcome: str
    release: str
    from_release: str | None
    trigger: str
    reason: str
    sentence: str
    cause: str
    ended_at: float
    received_at: float
    seconds_in_trial: float | None
    wire_bytes: int | None
    full_bytes: int | None
    has_evidence: bool


class ReportShown(ReportRow, frozen=True, kw_only=True):
    """With what the verdict was reached from."""

    evidence: Any


class ReportPage(Told, frozen=True, kw_only=True):
    reports: list[ReportRow]
    next: str | None


class AgentShown(Told, frozen=True, kw_only=True):
    """All about one."""

    agent: AgentRow
    components: dict[str, str]
    reports: list[ReportRow]


class AgentChange(Given, frozen=True, kw_only=True):
    group: Word


class GroupRow(Told, frozen=True, kw_only=True):
    name: str
    agents: int


class Groups(Told, frozen=True, kw_only=True):
    groups: list[GroupRow]


class NewGroup(Given, frozen=True, kw_only=True):
    name: Word


class Tokens(Told, frozen=True, kw_only=True):
    tokens: list[TokenView]


class NewToken(Given, frozen=True, kw_only=True):
    """uses, role and group are for enrolment tokens."""

    kind: Literal["admin", "enrol"]
    name: Label
    role: Literal["agent", "server"] = "agent"
    group: Word | None = None
    uses: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    expires_at: Annotated[float, Meta(ge=0, le=1e11)] | None = None


class TokenMade(Told, frozen=True, kw_only=True):
    """The token's text, this once, and where it is good."""

    token: str
    id: str
    url: str


class AuditPage(Told, frozen=True, kw_only=True):
    entries: list[Entry]
    next: int | None


class SetupLink(Told, frozen=True, kw_only=True):
    url: str


class SetUp(Given, frozen=True, kw_only=True):
    """token is the one-time one; name the first administrator's."""

    token: Annotated[str, Meta(max_length=200)]
    name: Label
    source: Address | None = None
    trust_root: RootText | None = None


class SetUpDone(Told, frozen=True, kw_only=True):
    """token: the administrator's. enrol: for agents, many uses, seven days."""

    token: str
    enrol: str
    url: str


class Downstream(Told, frozen=True, kw_only=True):
    """What another server last said of its fleet."""

    id: str
    name: str
    received_at: float
    counts: Counts


class Downstreams(Told, frozen=True, kw_only=True):
    servers: list[Downstream]


class Health(Told, frozen=True, kw_only=True):
    """What it waits for is in `sentence`."""

    sentence: str

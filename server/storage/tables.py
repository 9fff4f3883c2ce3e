"""Every table of the server's database, for SQLite and PostgreSQL alike.

Times are Unix seconds as floats, digests lowercase hex SHA-256, identifiers
random hex. Columns change only with a migration beside them
(server/storage/migrations; a test holds the two against each other).
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Double,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

ID = String(32)
DIGEST = String(64)
NAME = String(255)
WORD = String(64)
BYTES = BigInteger()


class Table(DeclarativeBase):
    """Base of all. Every constraint has a name, so that a migration can change it."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {float: Double()}


class Setting(Table):
    """One fact a key: the policy, the set-up token's digest, cursors."""

    __tablename__ = "settings"
    key: Mapped[str] = mapped_column(WORD, primary_key=True)
    value: Mapped[dict[str, object]] = mapped_column(JSON)
    changed_at: Mapped[float]


class Token(Table):
    """An administrator's or an enrolment token, by the digest of its secret."""

    __tablename__ = "tokens"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    kind: Mapped[str] = mapped_column(WORD)  # admin, enrol
    name: Mapped[str] = mapped_column(NAME)
    digest: Mapped[str] = mapped_column(DIGEST)
    role: Mapped[str] = mapped_column(WORD, default="agent")  # enrol: agent, server
    group: Mapped[str | None] = mapped_column("group_name", WORD)  # enrol: where to
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    uses_left: Mapped[int | None]  # None: any number
    revoked_at: Mapped[float | None]


class Group(Table):
    """Agents that are administered together."""

    __tablename__ = "groups"
    name: Mapped[str] = mapped_column(WORD, primary_key=True)
    created_at: Mapped[float]


class Agent(Table):
    """One enrolled machine, or another server, and what it last said.

    credential is the digest of its secret; next_credential that of one that
    was handed out and not used yet, empty while one is to be asked for.
    Rounds: answered_round is the newest the agent has heard of; told_round the
    one it was last told of, told_times and told_at how often and when.
    facts_digest is that of all it last said about itself: the same again
    changes only the time.
    """

    __tablename__ = "agents"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    role: Mapped[str] = mapped_column(WORD, default="agent")  # agent, server
    host_id: Mapped[str] = mapped_column(NAME)
    name: Mapped[str] = mapped_column(NAME)
    group: Mapped[str] = mapped_column("group_name", ForeignKey("groups.name"))
    platform: Mapped[str] = mapped_column(WORD)
    agent_version: Mapped[str] = mapped_column(WORD)
    region: Mapped[str] = mapped_column(WORD)
    traits: Mapped[dict[str, str]] = mapped_column(JSON)
    active_release: Mapped[str | None] = mapped_column(WORD)
    state: Mapped[str] = mapped_column(WORD, default="")
    reason: Mapped[str] = mapped_column(WORD, default="")
    credential: Mapped[str] = mapped_column(DIGEST)
    next_credential: Mapped[str | None] = mapped_column(DIGEST)
    enrolled_at: Mapped[float]
    enrolled_with: Mapped[str] = mapped_column(ID)  # the token
    seen_at: Mapped[float]
    revoked_at: Mapped[float | None]
    answered_round: Mapped[int] = mapped_column(default=0)
    told_round: Mapped[int] = mapped_column(default=0)
    told_times: Mapped[int] = mapped_column(default=0)
    told_at: Mapped[float | None]
    dropped_reports: Mapped[dict[str, int]] = mapped_column(JSON, default=dict)
    facts_digest: Mapped[str] = mapped_column(DIGEST, default="")

    __table_args__ = (
        Index("agents_by_group", "group_name"),
        Index("agents_by_host", "host_id"),
        Index("agents_by_name", "name", "id"),
        Index(
            "agents_revoked",
            "revoked_at",
            sqlite_where=text("revoked_at IS NOT NULL"),
            postgresql_where=text("revoked_at IS NOT NULL"),
        ),
        # No index on what a check-in changes: PostgreSQL then rewrites a row in its page.
        {"postgresql_with": {"fillfactor": 70}},
    )


class AgentComponent(Table):
    """Which version of a component an agent runs."""

    __tablename__ = "agent_components"
    agent_id: Mapped[str] = mapped_column(ForeignKey("agents.id"), primary_key=True)
    component: Mapped[str] = mapped_column(WORD, primary_key=True)
    version: Mapped[str] = mapped_column(WORD)

    __table_args__ = (Index("agent_components_by_version", "component", "version"),)


class AgentReport(Table):
    """How an attempt ended on a machine; once for each attempt.

    evidence_bytes is the length of the evidence that is kept.
    """

    __tablename__ = "reports"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    agent_id: Mapped[str] = mapped_column(ForeignKey("agents.id"))
    attempt: Mapped[str] = mapped_column(WORD)
    outcome: Mapped[str] = mapped_column(WORD)
    release: Mapped[str] = mapped_column(WORD)
    from_release: Mapped[str | None] = mapped_column(WORD)
    trigger: Mapped[str] = mapped_column(WORD)
    reason: Mapped[str] = mapped_column(WORD)
    sentence: Mapped[str] = mapped_column(Text)
    cause: Mapped[str] = mapped_column(WORD)
    ended_at: Mapped[float]
    received_at: Mapped[float]
    seconds_in_trial: Mapped[float | None]
    wire_bytes: Mapped[int | None] = mapped_column(BYTES)
    full_bytes: Mapped[int | None] = mapped_column(BYTES)
    evidence: Mapped[bytes | None] = mapped_column(LargeBinary)
    evidence_bytes: Mapped[int] = mapped_column(default=0)

    __table_args__ = (
        UniqueConstraint("agent_id", "attempt", name="reports_once"),
        Index("reports_by_release", "release", "outcome"),
        Index("reports_by_time", "received_at"),
        Index(
            "reports_with_evidence",
            "outcome",
            "received_at",
            "evidence_bytes",
            "agent_id",
            sqlite_where=text("evidence_bytes > 0"),
            postgresql_where=text("evidence_bytes > 0"),
        ),
    )


class Round(Table):
    """A notification: every agent is told once to look; ids grow."""

    __tablename__ = "rounds"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    created_at: Mapped[float]
    window_s: Mapped[float]
    cause: Mapped[str] = mapped_column(WORD)  # release, administrator
    by: Mapped[str] = mapped_column("by_whom", NAME, default="")


class SyncRun(Table):
    """One run of the mirror. saved_bytes: what fulls would have cost, less what travelled."""

    __tablename__ = "sync_runs"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    trigger: Mapped[str] = mapped_column(WORD)  # start, schedule, administrator, needs
    started_at: Mapped[float]
    ended_at: Mapped[float | None]
    outcome: Mapped[str] = mapped_column(WORD)  # running, unchanged, switched, failed
    source: Mapped[str] = mapped_column(Text, default="")
    sentence: Mapped[str] = mapped_column(Text, default="")
    code: Mapped[str] = mapped_column(WORD, default="")
    fetched_bytes: Mapped[int] = mapped_column(BYTES, default=0)
    saved_bytes: Mapped[int] = mapped_column(BYTES, default=0)


class UpstreamCounts(Table):
    """The newest counts that a server below this one has sent."""

    __tablename__ = "upstream_counts"
    agent_id: Mapped[str] = mapped_column(ForeignKey("agents.id"), primary_key=True)
    serial: Mapped[int] = mapped_column(BYTES)
    received_at: Mapped[float]
    counts: Mapped[dict[str, object]] = mapped_column(JSON)


class AuditEntry(Table):
    """What an administrator did, when, from where."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[float]
    who: Mapped[str] = mapped_column(NAME)
    action: Mapped[str] = mapped_column(WORD)
    detail: Mapped[dict[str, object]] = mapped_column(JSON)

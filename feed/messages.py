"""What flows back and sideways: enrolment, check-ins, reports, notifications.

JSON over HTTP between an agent and its Security Server, and between a server
and the next one (docs/api.md). Nothing here is trusted to decide what is
installed: that is signed. Every text and list has a limit; whoever decodes one
of these refuses what is longer.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

API = "/api/v1"
ENROL_PATH = f"{API}/enrol"
CHECK_IN_PATH = f"{API}/agent/check-in"
REPORTS_PATH = f"{API}/agent/reports"
CREDENTIAL_PATH = f"{API}/agent/credential"
NOTIFICATIONS_PATH = f"{API}/agent/notifications"
COUNTS_PATH = f"{API}/agent/counts"
AUTHORITY_PATH = f"{API}/authority"
FEED_PATH = "/feed"

BODY_BYTES_MAX = 1 << 20
EVIDENCE_BYTES_MAX = 64 << 10
REPORTS_MAX = 32  # in one request

LOOK = "look"  # the one kind of notification: look now, never what to install

STORABLE = "^[^\\u0000]*$"  # no database keeps a NUL in a text

Name = Annotated[str, Meta(min_length=1, max_length=255, pattern=STORABLE)]
Word = Annotated[str, Meta(max_length=64, pattern=STORABLE)]
Version = Annotated[str, Meta(max_length=64, pattern=STORABLE)]
Text = Annotated[str, Meta(max_length=2000, pattern=STORABLE)]
Moment = Annotated[float, Meta(ge=0, le=1e11)]  # Unix seconds, to the year 5138
Bytes = Annotated[int, Meta(ge=0, le=1 << 60)]
Count = Annotated[int, Meta(ge=0, le=1 << 53)]
Components = Annotated[dict[Word, Version], Meta(max_length=256)]
Traits = Annotated[dict[Word, Word], Meta(max_length=16)]


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Unknown fields are passed over, so that a newer end can say more."""


class Facts(Message, frozen=True, kw_only=True):
    """What a machine says about itself. components is what it runs, {name: version}.

    traits decide which components of a release are meant for it
    (feed.manifest); state and reason are those of `agentctl status`.
    """

    host_id: Name
    name: Name  # the machine's own, for people
    platform: Word
    agent_version: Version
    region: Word = "global"
    traits: Traits = {}
    active_release: Word | None = None
    components: Components = {}
    state: Word = ""
    reason: Word = ""


class EnrolRequest(Message, frozen=True, kw_only=True):
    """Sent with an enrolment token as the bearer. role server: another Security Server."""

    facts: Facts
    role: Literal["agent", "server"] = "agent"


class Enrolled(Message, frozen=True, kw_only=True):
    """The agent's own name and credential; the credential is shown this once."""

    agent_id: str
    credential: str
    group: str
    check_in_s: float

    def __repr__(self) -> str:
        return f"Enrolled(agent_id={self.agent_id!r}, credential=…, group={self.group!r})"


class CheckIn(Message, frozen=True, kw_only=True):
    """Here I am, this I run. heard_round answers a notification: the newest round heard of."""

    facts: Facts
    heard_round: Count = 0
    looked_round: Count = 0  # the newest round after which it has asked the feed


class CheckInReply(Message, frozen=True, kw_only=True):
    """round is the newest one. look: this agent has not answered it, so look at the feed now.

    check_in_s: seconds until the next check-in is expected. rotate: ask for a
    new credential.
    """

    round: Count
    look: bool
    check_in_s: float
    rotate: bool = False


Outcome = Literal["committed", "reverted", "failed", "held"]


def _nothing() -> msgspec.Raw:
    """JSON's null. A union of Raw with None decodes null and nothing else."""
    return msgspec.Raw(b"null")


class Report(Message, frozen=True, kw_only=True):
    """How an attempt ended, as in the agent's history; attempt makes it count once.

    Times are Unix seconds; evidence is the verdict's evidence file, JSON.
    """

    attempt: Word
    outcome: Outcome
    release: Word
    from_release: Word | None = None
    trigger: Word = ""
    reason: Word = ""
    sentence: Text = ""
    cause: Word = "update"
    ended: Moment
    seconds_in_trial: Annotated[float, Meta(ge=0, le=1e9)] | None = None
    wire_bytes: Bytes | None = None
    full_bytes: Bytes | None = None
    evidence: msgspec.Raw = msgspec.field(default_factory=_nothing)


class Reports(Message, frozen=True, kw_only=True):
    """Some reports, the most important first. dropped: lost since the last, by outcome."""

    reports: Annotated[tuple[Report, ...], Meta(max_length=REPORTS_MAX)]
    dropped: Annotated[dict[Word, Count], Meta(max_length=8)] = {}


class ReportsTaken(Message, frozen=True, kw_only=True):
    """The attempts that are durably kept now, those known before among them."""

    taken: tuple[str, ...]


class NewCredential(Message, frozen=True, kw_only=True):
    """The next credential. The old one holds until the new one is used for the first time."""

    credential: str

    def __repr__(self) -> str:
        return "NewCredential(credential=…)"


class Counts(Message, frozen=True, kw_only=True):
    """What a server tells the next one: numbers, no machine's name.

    serial grows with each; agents by release and by component version,
    outcomes since enrolment by release.
    """

    serial: Count
    agents: Count
    silent: Count
    releases: Annotated[dict[Word, Count], Meta(max_length=256)] = {}
    versions: Annotated[
        dict[Word, Annotated[dict[Version, Count], Meta(max_length=256)]], Meta(max_length=256)
    ] = {}
    outcomes: Annotated[
        dict[Word, Annotated[dict[Word, Count], Meta(max_length=8)]], Meta(max_length=256)
    ] = {}


class Authority(Message, frozen=True, kw_only=True):
    """The certificate authority of the server's own TLS, PEM. Fetched unverified: hold its
    SHA-256 (of the DER) against the enrolment token's before using it."""

    certificate: str

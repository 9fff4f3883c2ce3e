"""What the agent's processes say to each other: JSON lines over pipes.

The guardian is the parent of all of them. It reads what the fetcher says with
fixed types and limits, and believes none of it: a handover is verified by the
stager, a state is only shown.
"""

from __future__ import annotations

from typing import Annotated, Any, BinaryIO, Literal, TypeVar

import msgspec
from msgspec import Meta

from agent.errors import ControlError
from agent.slots.record import SlotContent, SlotName
from feed.manifest import Activation, HealthPolicy
from feed.rollout import QuarantinedSet

LINE_BYTES_MAX = 1 << 20
UNREAD_BYTES_MAX = 16 << 20  # of lines to somebody who talks and never reads
# Between the package's guardian and a fetcher or stager that may come from a slot:
# these messages and the programs' arguments. agent/program.json repeats it.
PROTOCOL = 2
TEXT_CHARS_MAX = 2000  # of what the fetcher says; sentences are far shorter

# What a fetcher says is shown to people: figures that can't be, don't get in.
Bytes = Annotated[int, Meta(ge=0, le=1 << 60)]
Moment = Annotated[float, Meta(ge=0, le=1e11)]  # Unix seconds, to the year 5138


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """One intact component of the active slot; filename is empty for a tree, or if unknown."""

    version: str
    digest: str
    length: int
    filename: str = ""


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks for an update, and what it runs intact."""

    host_id: str
    region: str
    platform: str
    agent_version: str
    active_release: str | None
    installed: dict[str, Installed]
    quarantine: tuple[QuarantinedSet, ...]
    traits: dict[str, str] = {}

    @property
    def digests(self) -> dict[str, str]:
        """{component: content digest} of what runs intact."""
        return {name: item.digest for name, item in self.installed.items()}

    @property
    def filenames(self) -> dict[str, str]:
        """{component: the name of its file} of what runs intact."""
        return {name: item.filename for name, item in self.installed.items() if item.filename}


# guardian → fetcher


class Begin(msgspec.Struct, frozen=True, kw_only=True, tag="begin"):
    """Check now; with `download`, also fetch what is offered into incoming/<attempt>."""

    attempt: str
    trigger: str
    download: bool
    host: Host
    full_only: tuple[str, ...] = ()  # neither kept nor rebuilt: that just failed
    spare: dict[str, str] = {}  # {component: digest} of the sealed spare slot
    fetched_bytes: Bytes = 0  # in vain, earlier in this run


class Reach(msgspec.Struct, frozen=True, kw_only=True, tag="reach"):
    """Say whether the update source can still be reached."""


class Situation(msgspec.Struct, frozen=True, kw_only=True, tag="situation"):
    """What this machine is, for its Security Server; no answer is expected.

    components is what it runs, {name: version}. resting: no attempt is in
    progress. last_attempt is the newest line of the history, if one was
    written since the guardian started.
    """

    host_id: str
    region: str
    platform: str
    agent_version: str
    traits: dict[str, str] = {}
    active_release: str | None = None
    components: dict[str, str] = {}
    state: str = ""
    reason: str = ""
    resting: bool = True
    last_attempt: str = ""


class Enrol(msgspec.Struct, frozen=True, kw_only=True, tag="enrol"):
    """Join a Security Server, leave it, or get a new credential of it."""

    action: Literal["enrol", "forget", "rotate"]
    situation: Situation
    url: str = ""
    token: str = ""

    def __repr__(self) -> str:
        return f"Enrol(action={self.action!r})"  # the token isn't for logs


Order = Begin | Reach | Situation | Enrol

# fetcher → guardian


class Due(msgspec.Struct, frozen=True, kw_only=True, tag="due"):
    """A check is due; the guardian answers with Begin when it is at rest."""

    trigger: str


class Scheduled(msgspec.Struct, frozen=True, kw_only=True, tag="scheduled"):
    """When the next check is due, in Unix seconds; also the fetcher's sign of life.

    version is that of the program that says so.
    """

    next_check: Moment
    version: str = ""


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """How far a download is, in bytes on the wire."""

    release: str
    done: Bytes
    total: Bytes


class Checked(msgspec.Struct, frozen=True, kw_only=True, tag="checked"):
    """A check ended without anything handed over.

    decision is a feed.rollout.Decision value. plan is what an update would
    fetch when the check was only a look.
    """

    attempt: str
    source: str
    decision: str
    sentence: str
    release: str | None = None
    ready_at: Moment | None = None
    fetch_bytes: Bytes = 0
    full_bytes: Bytes = 0
    wire_bytes: Bytes = 0
    requests: Annotated[int, Meta(ge=0)] = 0


class HandedOver(msgspec.Struct, frozen=True, kw_only=True, tag="handed_over"):
    """Everything the release needs lies in incoming/<attempt>.

    digest is the release's content digest, as the fetcher sees it. wire_bytes
    travelled for it, fetch_bytes were planned; requests are the whole check's.
    """

    attempt: str
    source: str
    release: str
    digest: str
    decision: str
    wire_bytes: Bytes
    full_bytes: Bytes
    fetch_bytes: Bytes = 0
    requests: Annotated[int, Meta(ge=0)] = 0


class CycleFailed(msgspec.Struct, frozen=True, kw_only=True, tag="cycle_failed"):
    """No source could be used; code is an error's reason code."""

    attempt: str
    source: str
    code: str
    sentence: str


class Reached(msgspec.Struct, frozen=True, kw_only=True, tag="reached"):
    """The answer to Reach."""

    ok: bool
    detail: str


class EnrolAnswer(msgspec.Struct, frozen=True, kw_only=True, tag="enrol_answer"):
    """The answer to Enrol. warning is about what was done all the same."""

    ok: bool
    sentence: str
    code: str = ""
    warning: str = ""


class ServerNews(msgspec.Struct, frozen=True, kw_only=True, tag="server_news"):
    """How it stands with the Security Server; url "" without one.

    since is when notifications began or ceased to be heard; code and problem
    are what keeps check-ins from being taken.
    """

    url: str
    agent_id: str = ""
    connected: bool = False
    since: Moment = 0.0
    last_check_in: Moment | None = None
    reports_waiting: Annotated[int, Meta(ge=0, le=1 << 53)] = 0
    reports_dropped: Annotated[int, Meta(ge=0, le=1 << 53)] = 0
    code: str = ""
    problem: str = ""


Word = (
    Due
    | Scheduled
    | Progress
    | Checked
    | HandedOver
    | CycleFailed
    | Reached
    | EnrolAnswer
    | ServerNews
)

# fetcher → its link to the server, besides Situation; the link says Due and ServerNews


class Looking(msgspec.Struct, frozen=True, kw_only=True, tag="looking"):
    """A check begins; what was notified before is answered by its end."""


class Looked(msgspec.Struct, frozen=True, kw_only=True, tag="looked"):
    """That check got an answer of a source."""


Told = Situation | Looking | Looked

# guardian → stager (one job on standard input), stager → guardian


class StageJob(msgspec.Struct, frozen=True, kw_only=True, tag="stage"):
    """Verify incoming/<attempt> and make it a sealed slot."""

    attempt: str
    host: Host
    active: SlotName | None
    slot: SlotName
    reuse: bool  # the slot is sealed and said to hold the release already


class VerifyJob(msgspec.Struct, frozen=True, kw_only=True, tag="verify"):
    """Hold slots against their seals, and mend each from the other where both agree.

    slots names the seal's digest that the boot record knows for each.
    """

    slots: dict[SlotName, str]


class Greet(msgspec.Struct, frozen=True, kw_only=True, tag="greet"):
    """Only say who you are: whether a program on trial can be a stager at all."""


Job = StageJob | VerifyJob | Greet


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """incoming/<attempt>/handover.json: the road the fetcher took for each component.

    A road is the versions of a chain of incrementals, base first; components
    that aren't named came whole or are kept. A hint: the stager believes only
    what the component's role signed.
    """

    roads: dict[str, tuple[str, ...]] = {}


class Staged(msgspec.Struct, frozen=True, kw_only=True, tag="staged"):
    """The slot is sealed. changed is what a flip to it changes."""

    release: str
    content: SlotContent
    changed: dict[str, str]
    activation: Activation
    health: HealthPolicy
    decision: str
    reused: bool = False  # the slot already held the release


class NeedsFull(msgspec.Struct, frozen=True, kw_only=True, tag="needs_full"):
    """The incrementals of these components don't lead to the signed result."""

    components: tuple[str, ...]
    sentence: str


class StageRefused(msgspec.Struct, frozen=True, kw_only=True, tag="stage_refused"):
    """Nothing was sealed; code is an error's or an offer's reason code."""

    code: str
    sentence: str


class SlotReport(msgspec.Struct, frozen=True, kw_only=True):
    """What verifying one slot found; content is None when it isn't sealed.

    known is the seal's digest that the boot record had for it.
    """

    slot: SlotName
    known: str
    content: SlotContent | None
    problems: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()  # components
    repaired: tuple[str, ...] = ()  # files mended from the other slot

    @property
    def intact(self) -> bool:
        return self.content is not None and not self.problems


class Verified(msgspec.Struct, frozen=True, kw_only=True, tag="verified"):
    """The answer to a VerifyJob."""

    reports: tuple[SlotReport, ...]


class Greeting(msgspec.Struct, frozen=True, kw_only=True, tag="greeting"):
    """The answer to a Greet."""

    version: str
    protocol: int


Result = Staged | NeedsFull | StageRefused | Verified | Greeting

W = TypeVar("W", bound=msgspec.Struct)


def clipped(word: W) -> W:
    """`word` with its texts cut: they go into the status, the history and the log."""
    long = {
        name: f"{text[:TEXT_CHARS_MAX]}…"
        for name, text in msgspec.structs.asdict(word).items()
        if isinstance(text, str) and len(text) > TEXT_CHARS_MAX
    }
    return msgspec.structs.replace(word, **long) if long else word


_encoder = msgspec.json.Encoder()


def encode(message: msgspec.Struct) -> bytes:
    """One line."""
    return _encoder.encode(message) + b"\n"


def send(stream: BinaryIO, message: msgspec.Struct) -> None:
    """Write one message and flush it."""
    stream.write(encode(message))
    stream.flush()


def decode(line: bytes, kind: Any) -> Any:
    """The message in `line`, of the union `kind`.

    Raises ControlError: too long or not such a message.
    """
    if len(line) > LINE_BYTES_MAX:
        raise ControlError(f"a message of {len(line):,} bytes; the limit is {LINE_BYTES_MAX:,}")
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ControlError(f"not a message of this channel: {error}") from error


class LineBuffer:
    """Splits what arrives on a pipe into lines, holding at most one line's limit."""

    def __init__(self, limit: int = LINE_BYTES_MAX) -> None:
        self._pending = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> list[bytes]:
        """The lines completed by `data`.

        Raises ControlError: a line outgrew the limit; what was pending is dropped.
        """
        *lines, rest = (bytes(self._pending) + data).split(b"\n")
        if len(rest) > self._limit or any(len(line) > self._limit for line in lines):
            self._pending.clear()
            raise ControlError(f"a line of over {self._limit:,} bytes")
        self._pending = bytearray(rest)
        return [line for line in lines if line]

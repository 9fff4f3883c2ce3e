"""Whether a new agent program works, judged against the one before it.

Pure. The new program is asked; only when it fails, the prior one is asked the
same at once.

 * It counts against the new program only when the prior one then succeeds.
 * When both fail, the cause is elsewhere (network, source, disk, memory): what
   was counted is forgotten, and the trial gets longer.
 * One success clears the account.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from agent.guardian.samples import ProgramSample


class Answer(StrEnum):
    """What became of one question."""

    GOOD = "good"
    REFUSED = "refused"  # it answered that it can't: no source, not trusted
    ENDED = "ended"  # the process ended, or said what isn't understood
    SILENT = "silent"  # it lived, and said nothing in time
    NOT_ASKED = "not_asked"  # this machine couldn't start a process


class Reply(msgspec.Struct, frozen=True):
    """One answer, with what was seen of it."""

    answer: Answer
    detail: str = ""


def wants_control(new: Reply) -> bool:
    """Whether the prior program has to be asked the same."""
    return new.answer not in {Answer.GOOD, Answer.NOT_ASKED}


def after(known: ProgramSample, new: Reply, control: Reply | None) -> ProgramSample:
    """What is known of a question after one more round of it.

    control is the prior program's reply, None when it wasn't asked.
    """
    if new.answer is Answer.GOOD:
        return ProgramSample(question=known.question, version=known.version, proven=True)
    lost = control is not None and control.answer is Answer.GOOD
    return ProgramSample(
        question=known.question,
        version=known.version,
        proven=False,
        losses=known.losses + 1 if lost else 0,
        how=new.answer,
        detail=new.detail,
        control=control.detail or control.answer if control and not lost else "",
    )

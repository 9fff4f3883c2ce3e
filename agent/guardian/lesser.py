"""Which of two bad slots is held: the less bad one, by what is recorded of each.

Pure. From bad to worse:

 1. the agent can't update itself from it;
 2. it makes the machine slow;
 3. what it protects with doesn't run or doesn't answer;
 4. its files aren't those that were signed;
 5. it takes the machine down, or can't be watched at all;
 6. it isn't a sealed release.

A machine that comes up can be helped, so what takes it down is worse than
altered files; altered files are worse than a signed release that hurts,
because nobody knows what they do. Between equals the present one stays.
"""

from __future__ import annotations

import msgspec

UPDATES = frozenset({"program_not_started", "program_silent", "program_cut_off"})
SLOW = frozenset({"cpu_pinned", "memory_growth"})
FILES = frozenset({"slot_damaged", "repair_failed"})  # the files themselves say how they are
DOWN = frozenset({"tries_used_up", "guardian_faults"})

_UNPROTECTED, _DAMAGED, _DOWN, _UNSEALED = 3, 4, 5, 6


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """What is recorded against a slot.

    damaged are its components with altered files. failed is the reason code of
    the trial that it failed, "" for none; a code that isn't known here counts
    as "what it protects with doesn't run".
    """

    sealed: bool = True
    damaged: tuple[str, ...] = ()
    failed: str = ""


def badness(found: Findings) -> tuple[int, int]:
    """How bad a slot is: its worst kind of evidence, then how many components are damaged."""
    return max(
        _UNSEALED if not found.sealed else 0,
        _DAMAGED if found.damaged else 0,
        _failure(found.failed),
    ), len(found.damaged)


def _failure(code: str) -> int:
    if not code or code in FILES:
        return 0
    if code in DOWN:
        return _DOWN
    return 1 if code in UPDATES else 2 if code in SLOW else _UNPROTECTED


def is_bad(found: Findings) -> bool:
    """Whether anything is recorded against a slot."""
    return badness(found) > (0, 0)


def is_less_bad(one: Findings, *, than: Findings) -> bool:
    """Whether `one` is clearly the better of two."""
    return badness(one) < badness(than)

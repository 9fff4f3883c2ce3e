"""What administrators may call things: groups and tokens."""

from __future__ import annotations

import re

from server.errors import RefusedError

GROUP_FORM = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
ID_FORM = re.compile(r"[0-9a-f]{32}")
NAME_MAX = 255


def group(text: str) -> str:
    """`text`, where it can name a group.

    Raises RefusedError 400: not 1 to 64 lowercase letters, digits, '.', '_', '-'.
    """
    if not GROUP_FORM.fullmatch(text):
        raise RefusedError(
            f"{text[:64]!r} can't name a group: expected 1 to 64 lowercase letters, digits, "
            "'.', '_' or '-', the first and last a letter or digit",
            status=400,
            code="name_invalid",
        )
    return text


def label(text: str) -> str:
    """`text`, where it can stand for a person, a machine or a token in lists and logs.

    Raises RefusedError 400: empty, past 255 characters, or not printable.
    """
    if not (0 < len(text) <= NAME_MAX and text.isprintable() and text == text.strip()):
        raise RefusedError(
            f"{text[:64]!r} can't be a name: expected 1 to {NAME_MAX} printable characters",
            status=400,
            code="name_invalid",
        )
    return text


def is_id(text: str) -> bool:
    """Whether `text` could be the id of an agent or a token."""
    return ID_FORM.fullmatch(text) is not None

"""The form of every secret that the server hands out.

    <prefix>_<id: 32 hex>_<secret: 43 base64url>[_<pin: 64 hex>]

Pure: random bytes come in. The prefix lets people and scanners recognise a
leaked one; the id finds its row; the pin, on enrolment tokens, is the SHA-256
of the server's own certificate authority. A secret is 256 random bits, so its
SHA-256 is all that is stored and a slow hash would protect nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from typing import Literal

import msgspec

Kind = Literal["admin", "enrol", "agent", "setup"]

PREFIXES: dict[Kind, str] = {
    "admin": "hfadm",
    "enrol": "hfenr",
    "agent": "hfagt",
    "setup": "hfset",
}
ID_BYTES = 16
SECRET_BYTES = 32

_KINDS = {prefix: kind for kind, prefix in PREFIXES.items()}
# Lengths are fixed: a secret may itself contain "_".
_FORM = re.compile(r"(hf[a-z]{3})_([0-9a-f]{32})_([A-Za-z0-9_-]{43})(?:_([0-9a-f]{64}))?")


class Token(msgspec.Struct, frozen=True):
    """A token that has the right form; whether it is good is another question."""

    kind: Kind
    id: str
    secret: str
    pin: str | None = None

    def __repr__(self) -> str:
        return f"Token(kind={self.kind!r}, id={self.id!r}, secret=…)"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        return [("kind", self.kind), ("id", self.id)]


def make(kind: Kind, *, id_bytes: bytes, secret_bytes: bytes, pin: str | None = None) -> str:
    """A token's text, from 16 and 32 random bytes."""
    if len(id_bytes) != ID_BYTES or len(secret_bytes) != SECRET_BYTES:
        raise ValueError(f"a token needs {ID_BYTES} and {SECRET_BYTES} bytes")
    secret = base64.urlsafe_b64encode(secret_bytes).rstrip(b"=").decode()
    parts = [PREFIXES[kind], id_bytes.hex(), secret]
    return "_".join([*parts, pin] if pin else parts)


def parse(text: str) -> Token | None:
    """The token in `text`; None when it has another form, and nothing says why."""
    match = _FORM.fullmatch(text)
    if match is None or match[1] not in _KINDS:
        return None
    return Token(_KINDS[match[1]], match[2], match[3], match[4])


def masked(text: str) -> str:
    """`text` without the secrets of the tokens in it."""
    return _FORM.sub(lambda match: f"{match[1]}_{match[2]}_…", text)


def digest(secret: str) -> str:
    """What is stored of a secret: lowercase hex SHA-256."""
    return hashlib.sha256(secret.encode()).hexdigest()


def matches(secret: str, stored: str) -> bool:
    """Whether `stored` is the digest of `secret`, in a time that tells nothing."""
    return same(digest(secret), stored)


def same(first: str, second: str) -> bool:
    """Whether two digests are one, in a time that tells nothing."""
    return hmac.compare_digest(first, second)

"""What an enrolment token and a server's address say, before anybody is asked.

Pure. A token is `hfenr_<id>_<secret>`, and with the server's own authority
`_<SHA-256 of its certificate's DER>` behind it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import NamedTuple
from urllib.parse import urlsplit

TOKEN = re.compile(r"hfenr_[0-9a-f]{32}_[A-Za-z0-9_-]{43}(?:_(?P<pin>[0-9a-f]{64}))?")
CREDENTIAL = re.compile(r"[\x21-\x7e]{1,512}")  # fits a header, whatever the server makes of it
URL_CHARS_MAX = 2000
PLAIN_HTTP = (
    "http:// hides and protects nothing on the way: who can listen gets this machine's credential, "
    "who can change what is sent can withhold updates; use https:// beyond this machine"
)
PIN_UNUSED = "the token's pin of the server's authority can't be held against an http:// address"


class Aim(NamedTuple):
    """Where to enrol: the address as it is kept, and the pin of its authority, if it has one."""

    url: str
    pin: str | None
    warning: str = ""


def aim(url: str, token: str) -> Aim:
    """What a URL and a token ask for.

    Raises ValueError: one of them can't be used; the message is for people and
    never repeats the token.
    """
    found = TOKEN.fullmatch(token)
    if found is None:
        raise ValueError(
            "that is no enrolment token: expected hfenr_…, as the server's administrator got it"
        )
    place = _address(url)
    pin = found["pin"]
    if place.startswith("http:"):
        return Aim(place, None, f"{PLAIN_HTTP}; {PIN_UNUSED}" if pin else PLAIN_HTTP)
    return Aim(place, pin)


def _address(url: str) -> str:
    expected = "expected https://name:port"
    if len(url) > URL_CHARS_MAX or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"that is no address of a server; {expected}")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"that is no address of a server ({error}); {expected}") from error
    if parts.scheme not in {"http", "https"} or not host:
        raise ValueError(f"that is no address of a server; {expected}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"an address with a user and a password isn't taken; {expected}")
    if parts.query or parts.fragment:
        raise ValueError(f"an address with ? or # isn't taken; {expected}")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def is_pinned(certificate: bytes, pin: str) -> bool:
    """Whether a certificate (DER) is the one that a token pins."""
    return hmac.compare_digest(hashlib.sha256(certificate).hexdigest(), pin)

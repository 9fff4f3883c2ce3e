"""The shapes of ASGI, and what every raw application here needs of them."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

ADDRESSES_KEPT = 20_000


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of this name (lower case), as latin-1 text."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None


def bearer(scope: Scope) -> str | None:
    """The token of `Authorization: Bearer …`."""
    scheme, _, token = (header(scope, b"authorization") or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def address(scope: Scope) -> str:
    """Whom a request's share is counted for: the IPv4 host, or the /64 of an IPv6 one."""
    client = scope.get("client")
    return _counted_for(client[0] if client else "")


@functools.lru_cache(maxsize=ADDRESSES_KEPT)
def _counted_for(text: str) -> str:
    try:
        host = ipaddress.ip_address(text)
    except ValueError:
        return "unknown"
    if host.version == 4:
        return str(host)
    return str(host.ipv4_mapped or ipaddress.ip_network((int(host), 64), strict=False))


def state(scope: Scope) -> dict[str, Any]:
    """What the layers of one request tell each other."""
    kept: dict[str, Any] = scope.setdefault("state", {})
    return kept

"""Which proxy a request goes through.

The environment is read as curl reads it: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY
and NO_PROXY, lower case first. NO_PROXY takes names (with their subdomains),
IPv4 and IPv6 addresses, networks in CIDR form, `host:port`, and `*`; httpx
alone doesn't understand networks.

Pure: settings and a host come in, a proxy's URL or None comes out.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Mapping


def choose(settings: Mapping[str, str], *, scheme: str, host: str, port: int) -> str | None:
    """The proxy for `scheme`://`host`:`port`; None goes straight there.

    settings is what urllib.request.getproxies returns: proxies by scheme
    (`http`, `https`, `all`) and the exceptions under `no`.
    """
    proxy = settings.get(scheme) or settings.get("all")
    if not proxy or is_exempt(settings.get("no", ""), host=host, port=port):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def is_exempt(no_proxy: str, *, host: str, port: int) -> bool:
    """Whether the list `no_proxy` names `host`, which may be a name or an address."""
    host = host.strip("[]").rstrip(".").lower()
    entries = (entry.strip().lower() for entry in no_proxy.replace(" ", ",").split(","))
    return any(_matches(entry, host, port) for entry in entries if entry)


def _matches(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    name, wanted_port = _split_port(entry)
    if wanted_port is not None and wanted_port != port:
        return False
    address = _address(host)
    if address is not None:
        network = _network(name)
        return network is not None and address in network
    name = name.lstrip("*").strip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _split_port(entry: str) -> tuple[str, int | None]:
    if entry.startswith("["):
        name, _, port = entry[1:].partition("]")
        port = port.removeprefix(":")
    elif entry.count(":") == 1:
        name, _, port = entry.partition(":")
    else:
        name, port = entry, ""
    return name, int(port) if port.isdecimal() else None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host.partition("%")[0])
        return getattr(address, "ipv4_mapped", None) or address
    return None


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_network(text, strict=False)
    return None

"""Every setting of the server, with its default and unit.

Two places, and each setting is in one of them: what the process needs to start
is in the file (TOML, server.example.toml); what administrators change while it
runs is the Policy, kept in the database and changed through the API.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from feed import misfit
from feed.manifest import INCREMENTALS_KEPT
from server.errors import ConfigError

CONFIG_BYTES_MAX = 1 << 20
DEFAULT_PORT = 8443

_SOURCE_URL = re.compile(r"(https?://[^/]|file://.)")

Seconds = Annotated[float, Meta(ge=0, le=366 * 86400)]
PositiveSeconds = Annotated[float, Meta(gt=0, le=366 * 86400)]
Proxy = Annotated[
    str,
    Meta(
        pattern=r"^[0-9a-fA-F:.]{2,39}(/[0-9]{1,3})?$",
        description="an address, or a network such as 10.0.0.0/8",
    ),
]
Bytes = Annotated[int, Meta(ge=0, le=1 << 60)]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""


class Source(Section, frozen=True, kw_only=True):
    """Where the mirror updates from; sources are tried in order."""

    url: str  # http, https or file; the folder that holds metadata/ and targets/
    proxy: str | None = None  # None: HTTPS_PROXY and friends; "": no proxy at all
    authority: str | None = None  # PEM file; None: the system's or SSL_CERT_FILE


class Tls(Section, frozen=True, kw_only=True):
    """How agents reach the server.

    own: a certificate authority made at the first start, which agents pin.
    given: certificate and key (PEM, the chain included). off: plain HTTP, for
    a proxy in front that does it, and for loopback.
    """

    mode: Literal["own", "given", "off"] = "own"
    certificate: str | None = None
    key: str | None = None
    names: Annotated[tuple[str, ...], Meta(max_length=64)] = ()  # besides this machine's own


class Limits(Section, frozen=True, kw_only=True):
    """What one client may take of the server."""

    body_bytes_max: Annotated[int, Meta(ge=1024, le=1 << 26)] = 1 << 20
    body_s: PositiveSeconds = 20.0  # until a request's body is there
    header_s: PositiveSeconds = 15.0  # until a new connection has asked for something
    agent_requests_per_s: Annotated[float, Meta(gt=0, le=1e6)] = 2.0
    agent_requests_burst: Annotated[int, Meta(ge=1, le=1_000_000)] = 20
    enrolments_per_s: Annotated[float, Meta(gt=0, le=1e6)] = 5.0  # and refused tokens, an address
    connections_max: Annotated[int, Meta(ge=16, le=1_000_000)] = 18_000


class Config(Section, frozen=True, kw_only=True):
    """The whole file."""

    state_dir: str | None = None  # None: platformdirs
    listen: Annotated[str, Meta(max_length=255)] = f"[::]:{DEFAULT_PORT}"  # both families
    url: str | None = None  # how agents reach it; None: from the machine's name and the port
    proxies: Annotated[tuple[Proxy, ...], Meta(max_length=64)] = ()  # whose word on clients holds
    database: str | None = None  # postgresql://…; None: SQLite in the state folder
    tls: Tls = Tls()
    origin: str | None = None  # serve this publisher's feed folder instead of mirroring
    sources: Annotated[tuple[Source, ...], Meta(max_length=16)] = ()  # (): from the Policy
    trust_root: str | None = None  # the vendor's first root.json
    limits: Limits = Limits()
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What administrators change while the server runs; kept whole in the database."""

    source: Annotated[str, Meta(max_length=2000)] | None = None  # where the file names none
    sync_interval_s: Annotated[float, Meta(ge=1, le=30 * 86400)] = 3600.0
    distribute_automatically: bool = True
    check_in_s: Annotated[float, Meta(ge=10, le=86400)] = 300.0
    silent_after_s: PositiveSeconds = 3600.0
    notify_per_s: Annotated[float, Meta(gt=0, le=1e6)] = 50.0  # agents told a second
    notify_window_max_s: PositiveSeconds = 900.0
    notify_again_s: PositiveSeconds = 900.0  # 15 minutes
    notify_times: Annotated[int, Meta(ge=1, le=20)] = 5
    increments: Literal["needed", "all"] = "needed"
    versions_kept: Annotated[int, Meta(ge=1, le=INCREMENTALS_KEPT)] = INCREMENTALS_KEPT
    scrub_interval_s: PositiveSeconds = 86400.0
    bandwidth_bytes_per_s: Bytes = 0  # of syncs; 0: unlimited


def load(path: Path | None) -> Config:
    """The configuration in `path`; all defaults without one.

    Raises ConfigError: the message names the file, the key and what is expected.
    """
    if path is None:
        return Config()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: can't be read ({error.strerror}); give --config PATH "
            "or set HOLDFAST_SERVER_CONFIG"
        ) from error
    return anchored(parse(data, where=str(path)), path.absolute().parent)


def anchored(config: Config, folder: Path) -> Config:
    """`config` with the relative paths of its files made absolute below `folder`."""
    replace = msgspec.structs.replace

    def fixed(path: str | None) -> str | None:
        return str(folder / path) if path else path

    tls = replace(config.tls, certificate=fixed(config.tls.certificate), key=fixed(config.tls.key))
    sources = tuple(replace(item, authority=fixed(item.authority)) for item in config.sources)
    return replace(
        config,
        tls=tls,
        sources=sources,
        origin=fixed(config.origin),
        trust_root=fixed(config.trust_root),
    )


def parse(data: bytes, *, where: str) -> Config:
    """The configuration in `data`, which `where` names in errors."""
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigError(f"{where}: {len(data):,} bytes, the limit is {CONFIG_BYTES_MAX:,}")
    try:
        config = msgspec.toml.decode(data, type=Config)
    except msgspec.ValidationError as error:
        told = misfit.explained(error, msgspec.toml.decode(data), Config)
        raise ConfigError(f"{where}: {told}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{where}: not TOML: {error}") from error
    check(config, where)
    return config


def check(config: Config, where: str) -> None:
    """Refuse what can't be meant. Raises ConfigError: starts with `where`."""
    for number, source in enumerate(config.sources):
        if not is_source_url(source.url):
            raise ConfigError(
                f"{where}: sources[{number}].url: expected http://, https:// or file:// "
                "and an address"
            )
    if config.tls.mode == "given" and not (config.tls.certificate and config.tls.key):
        raise ConfigError(f"{where}: tls: mode given needs certificate and key")
    if config.origin and config.sources:
        raise ConfigError(f"{where}: origin and sources exclude each other; keep one")
    host, _, port = config.listen.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal() and int(port[:6]) <= 65535):
        raise ConfigError(f"{where}: listen: {config.listen!r}, expected address:port")


def is_source_url(text: str) -> bool:
    """Whether a mirror could update from it."""
    return bool(_SOURCE_URL.match(text)) and text.isprintable()

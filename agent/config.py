"""Every setting of the agent, with its default and unit.

The file is TOML (config.example.toml, docs/configuration.md). Unknown keys,
wrong types and impossible values are refused with the file, the key and the
expected form; nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from agent.errors import ConfigError
from feed import misfit
from feed.errors import ManifestError
from feed.manifest import INCREMENTALS_KEPT, HealthPolicy, check_traits
from feed.roads import CHAIN_LINKS_MAX, REBUILD_BYTES_MAX, Limits

CONFIG_BYTES_MAX = 1 << 20

_SOURCE_URL = re.compile(r"(https?://[^/]|file://.)")

Seconds = Annotated[float, Meta(ge=0, le=366 * 86400)]
PositiveSeconds = Annotated[float, Meta(gt=0, le=366 * 86400)]
Share = Annotated[float, Meta(gt=0, le=4096)]
Factor = Annotated[float, Meta(ge=1, le=1000)]
Count = Annotated[int, Meta(ge=0, le=1_000_000)]
Bytes = Annotated[int, Meta(ge=0, le=1 << 60)]
Name = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][a-z0-9_.@-]{0,62}$",
        description="1 to 63 of a-z, 0-9 and _ . @ -, the first a letter or digit",
    ),
]
Region = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$",
        description="1 to 63 of a-z, 0-9 and -, the first a letter or digit",
    ),
]
UNIT_NAME = (
    r"^(?=.{1,255}\Z)[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\-]*)?"
    r"\.(service|socket|target|mount|path|timer)\Z"
)
UnitName = Annotated[
    str,
    Meta(pattern=UNIT_NAME, description="a unit's whole name, such as scanner.service"),
]
Command = Annotated[tuple[str, ...], Meta(min_length=1, max_length=64)]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""


class Source(Section, frozen=True, kw_only=True):
    """One update source; they are tried in order."""

    url: str  # http, https or file; the folder that holds metadata/ and targets/
    proxy: str | None = None  # None: HTTPS_PROXY and friends; "": no proxy at all


class Check(Section, frozen=True, kw_only=True):
    """When the agent looks for updates."""

    interval_s: Annotated[float, Meta(ge=1, le=30 * 86400)] = 3600.0
    jitter_s: Seconds = 300.0
    at_start: bool = True


class Download(Section, frozen=True, kw_only=True):
    """How the agent downloads."""

    bandwidth_bytes_per_s: Bytes = 0  # 0: unlimited
    connect_timeout_s: PositiveSeconds = 10.0
    read_timeout_s: PositiveSeconds = 30.0
    attempts: Annotated[int, Meta(ge=1, le=20)] = 4
    room_reserve_bytes: Bytes = 64 << 20
    fetch_bytes_max: Bytes = 0  # payloads of one run; 0: unlimited
    chain_links_max: Annotated[int, Meta(ge=0, le=INCREMENTALS_KEPT)] = CHAIN_LINKS_MAX
    rebuild_bytes_max: Bytes = REBUILD_BYTES_MAX  # of one component, all links; 0: unlimited

    @property
    def limits(self) -> Limits:
        """What a plan may take."""
        return Limits(
            fetch_bytes_max=self.fetch_bytes_max,
            chain_links_max=self.chain_links_max,
            rebuild_bytes_max=self.rebuild_bytes_max,
        )


class Health(Section, frozen=True, kw_only=True):
    """Overrides of a release's health policy; None takes the release's or the default.

    Defaults and reasons: agent.guardian.verdict.DEFAULTS, docs/adr/0005.
    """

    warmup_s: Seconds | None = None
    window_s: PositiveSeconds | None = None
    probation_s: Seconds | None = None
    probation_max_s: PositiveSeconds | None = None
    baseline_s: Seconds | None = None
    cpu_factor: Factor | None = None
    cpu_floor_share: Share | None = None
    memory_factor: Factor | None = None
    memory_floor_bytes: Bytes | None = None
    crashes_allowed: Count | None = None
    probe_failures_allowed: Count | None = None
    tries: Annotated[int, Meta(ge=1, le=10)] | None = None

    def as_policy(self) -> HealthPolicy:
        """The same values as the feed's policy type."""
        return HealthPolicy(**msgspec.structs.asdict(self))


class Probe(Section, frozen=True, kw_only=True):
    """A question the engine must answer: exactly one of the four kinds."""

    command: Command | None = None  # exit code 0
    tcp: str | None = None  # address:port accepts a connection (a probe doesn't ask DNS)
    http: str | None = None  # URL answers 200 to 399
    unix: str | None = None  # socket path accepts a connection
    send: Annotated[str, Meta(max_length=1024)] | None = None  # tcp, unix: said once connected
    expect: Annotated[str, Meta(max_length=1024)] | None = None  # tcp, unix: part of the answer
    timeout_s: PositiveSeconds = 5.0
    interval_s: PositiveSeconds = 5.0


class Watch(Section, frozen=True, kw_only=True):
    """A protected process: exactly one of pid_file, process, executable, unit."""

    name: Name
    pid_file: str | None = None
    process: str | None = None  # the process's name
    executable: str | None = None  # absolute path
    unit: str | None = None  # a systemd unit: its main process and all of its control group
    required: bool = True  # must run after a first install; at rest its absence is a risk
    probe: Probe | None = None


class Hook(Section, frozen=True, kw_only=True):
    """What makes an engine take a new release; runs at every flip and revert.

    Exactly one of command, signal, reload_unit, restart_unit. A command runs with
    HOLDFAST_CURRENT, HOLDFAST_RELEASE and HOLDFAST_REASON (flip or revert) in its
    environment.
    """

    name: Name
    command: Command | None = None
    reload_unit: UnitName | None = None  # of systemd, by systemctl reload
    restart_unit: UnitName | None = None
    signal: Literal["HUP", "USR1", "USR2"] | None = None
    pid_file: str | None = None  # the process a signal goes to
    timeout_s: PositiveSeconds = 30.0
    output_bytes_max: Annotated[int, Meta(ge=0, le=1 << 20)] = 16 << 10


class SettingsTarget(Section, frozen=True, kw_only=True):
    """Where a `settings` component's values go: exactly one of file and registry."""

    component: Name
    file: str | None = None  # of `key = value` lines
    registry: str | None = None  # Windows: a key, HKLM\\SOFTWARE\\…


class AgentProgram(Section, frozen=True, kw_only=True):
    """Where the fetcher and the stager come from; the guardian is the package's."""

    component: Name | None = None  # a tree with agent/ and feed/; None: the package's own
    answer_s: PositiveSeconds = 30.0  # a new program that hasn't said a word by then is silent


class Config(Section, frozen=True, kw_only=True):
    """The whole file."""

    state_dir: str | None = None  # None: platformdirs
    runtime_dir: str | None = None  # sockets; None: platformdirs
    trust_root: str | None = None  # the vendor's first root.json; None: <config folder>/root.json
    host_id: str | None = None  # None: a random one, made once and kept in the state folder
    region: Region = "global"
    fetcher_user: str = "holdfast"  # only as root; "" runs the fetcher as root (not advised)
    admin_group: str = ""  # may use the control socket besides its owner
    sources: Annotated[tuple[Source, ...], Meta(max_length=64)] = ()  # (): a Security Server only
    traits: dict[str, str] = {}  # {trait: value}; which components of a release are meant
    check: Check = Check()
    download: Download = Download()
    health: Health = Health()
    program: AgentProgram = AgentProgram()
    quarantine_s: Seconds = 30 * 86400.0
    watch: Annotated[tuple[Watch, ...], Meta(max_length=64)] = ()
    activation: Annotated[tuple[Hook, ...], Meta(max_length=64)] = ()
    settings: Annotated[tuple[SettingsTarget, ...], Meta(max_length=64)] = ()
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def load(path: Path) -> Config:
    """The configuration in `path`.

    Raises ConfigError: the message names the file, the key and what is expected.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: can't be read ({error.strerror}); give --config PATH or set HOLDFAST_CONFIG"
        ) from error
    return anchored(parse(data, where=str(path)), path.absolute().parent)


def salvaged(path: Path) -> Config:
    """Of a file that can't be used: where it says that things live, all else by default.

    For the boot guard, which mustn't be kept from a way back by a misspelt key.
    """
    import tomllib  # noqa: PLC0415 - only for a file that msgspec has refused

    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8", "replace"))
    except (OSError, ValueError, RecursionError):
        table = {}

    def folder(name: str) -> str | None:
        value = table.get(name)
        return value if isinstance(value, str) and "\0" not in value else None

    return Config(
        state_dir=folder("state_dir"),
        runtime_dir=folder("runtime_dir"),
    )


def anchored(config: Config, folder: Path) -> Config:
    """`config` with the relative paths of its entries made absolute below `folder`."""
    replace = msgspec.structs.replace

    def fixed(path: str | None) -> str | None:
        return str(folder / path) if path else path

    watches = []
    for watch in config.watch:
        probe = watch.probe and replace(watch.probe, unix=fixed(watch.probe.unix))
        watches.append(
            replace(
                watch,
                pid_file=fixed(watch.pid_file),
                executable=fixed(watch.executable),
                probe=probe,
            )
        )
    return replace(
        config,
        watch=tuple(watches),
        activation=tuple(
            replace(hook, pid_file=fixed(hook.pid_file)) for hook in config.activation
        ),
        settings=tuple(replace(item, file=fixed(item.file)) for item in config.settings),
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
    for text in _texts(msgspec.to_builtins(config)):
        if "\0" in text:
            raise ConfigError(f"{where}: {text!r}: no path, name or argument can hold \\u0000")
    _check(config, where)
    return config


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _check(config: Config, where: str) -> None:
    for number, source in enumerate(config.sources):
        if not _SOURCE_URL.match(source.url):
            raise ConfigError(
                f"{where}: sources[{number}].url: {_without_credentials(source.url)!r}, "
                "expected http://, https:// or file:// and an address"
            )
    try:
        check_traits(config.traits, where=f"{where}: traits")
    except ManifestError as error:
        raise ConfigError(str(error)) from error
    _check_health(config.health, where)
    for target in config.settings:
        place = f"{where}: settings {target.component!r}"
        _exactly_one((target.file, target.registry), place, "file, registry")
    for watch in config.watch:
        _check_watch(watch, f"{where}: watch {watch.name!r}")
    for hook in config.activation:
        _exactly_one(
            (hook.command, hook.signal, hook.reload_unit, hook.restart_unit),
            f"{where}: activation {hook.name!r}",
            "command, signal, reload_unit, restart_unit",
        )
        if hook.signal and not hook.pid_file:
            raise ConfigError(f"{where}: activation {hook.name!r}: signal needs pid_file")
    for kind, names in (
        ("watch", [item.name for item in config.watch]),
        ("activation", [item.name for item in config.activation]),
        ("settings", [item.component for item in config.settings]),
    ):
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{where}: {kind}: {name!r} is given twice")


def _check_health(health: Health, where: str) -> None:
    shortest, longest = health.probation_s, health.probation_max_s
    if shortest is not None and longest is not None and longest < shortest:
        raise ConfigError(
            f"{where}: health.probation_max_s: {longest}, expected at least probation_s "
            f"({shortest})"
        )


def _check_watch(watch: Watch, place: str) -> None:
    found_by = (watch.pid_file, watch.process, watch.executable, watch.unit)
    _exactly_one(found_by, place, "pid_file, process, executable, unit")
    if probe := watch.probe:
        asks = (probe.command, probe.tcp, probe.http, probe.unix)
        _exactly_one(asks, f"{place}: probe", "command, tcp, http, unix")
        if probe.tcp is not None and not _is_address(probe.tcp):
            raise ConfigError(f"{place}: probe.tcp: {probe.tcp!r}, expected address:port")
        if (probe.send or probe.expect) is not None and not (probe.tcp or probe.unix):
            raise ConfigError(f"{place}: probe: send and expect go with tcp or unix")
        if probe.send is not None and probe.expect is None:
            raise ConfigError(f"{place}: probe: send needs expect ('' takes any answer)")
        if probe.http is not None and not probe.http.startswith(("http://", "https://")):
            raise ConfigError(f"{place}: probe.http: {probe.http!r}, expected http:// or https://")


def _is_address(text: str) -> bool:
    import ipaddress  # noqa: PLC0415 - only where a TCP probe is configured

    host, _, port = text.rpartition(":")
    if not (port.isdecimal() and port.isascii() and 0 < int(port[:6]) <= 65535):
        return False
    try:
        return host == "localhost" or bool(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return False


def _exactly_one(values: tuple[object, ...], where: str, names: str) -> None:
    given = sum(value is not None for value in values)
    if given != 1:
        raise ConfigError(f"{where}: expected exactly one of {names}; {given} are given")


def as_shown(config: Config) -> dict[str, Any]:
    """Every setting with its value in force; credentials in proxies are left out."""
    shown: dict[str, Any] = msgspec.to_builtins(config)
    for source in shown["sources"]:
        if source["proxy"]:
            source["proxy"] = _without_credentials(source["proxy"])
        source["url"] = _without_credentials(source["url"])
    return shown


def _without_credentials(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}{mark}{place.rpartition('@')[2]}{slash}{path}"


def as_text(shown: dict[str, Any], *, prefix: str = "") -> str:
    """`as_shown` as `key = value` lines, values as in JSON."""
    lines: list[str] = []
    for key, value in shown.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            lines.append(as_text(value, prefix=f"{name}."))
        elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            lines += [as_text(item, prefix=f"{name}[{at}].") for at, item in enumerate(value)]
        elif value is not None:
            lines.append(f"{name} = {msgspec.json.encode(value).decode()}")
    return "\n".join(filter(None, lines))

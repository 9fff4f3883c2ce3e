"""The server's process: everything put together, started in order, ended in order.

   lock → database → certificate → policy → web → READY → follower

* Nothing is listened to before the database is migrated.
* At SIGTERM streams end at once, requests under way get a few seconds, what
  was taken on is written, and only then the lock is let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import resource
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import structlog
import uvicorn
import uvloop

from feed.servicemanager import notify
from server import alone, listening, log, tls
from server.accounts import access, setup
from server.accounts.credentials import Credentials
from server.ctl.access import Access, follow, leave
from server.errors import ConfigError
from server.fleet.checkins import CheckIns
from server.follower import Follower
from server.layout import Layout
from server.mirror.mirror import Mirror
from server.notify import rounds
from server.origin import Origin
from server.settings import Config
from server.storage.database import Database
from server.tls import Identity
from server.upstream import Upstream
from server.web import app
from server.web.connections import Connections, Server, uvicorn_config
from server.web.door import Door
from server.web.inforce import InForce
from server.web.parts import Mirroring, Parts
from server.web.setup_page import SETUP_PATH

RENEW_LOOK_S = 12 * 3600.0

_log = structlog.get_logger()


@dataclass(frozen=True)
class Addresses:
    """How the server is reached: by agents, and by serverctl on this machine."""

    public: str
    local: str


def run(config: Config, places: Layout) -> None:
    """Serve until told to stop.

    Raises ConfigError, StorageError, BusyError, OSError: it can't start.
    """
    log.configure(config.log_level, program="serverd")
    places.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with alone.hold(places.lock), contextlib.ExitStack() as stack:
        _check_trust_root(config)
        _let_many_in()
        made = listening.sockets(config.listen)
        for item in made:
            stack.enter_context(item)
        database = Database(config.database or f"sqlite:///{places.database}")
        stack.callback(database.close)
        notify("STATUS=migrating the database")
        database.migrate()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config, places, database, made))


def _check_trust_root(config: Config) -> None:
    """Raises ConfigError: it is there and can't be read."""
    if config.trust_root:
        try:
            with contextlib.suppress(FileNotFoundError):
                Path(config.trust_root).read_bytes()
        except OSError as error:
            raise ConfigError(
                f"trust_root: {config.trust_root} can't be read ({error.strerror})"
            ) from error


def _let_many_in() -> None:
    """As many open files as this process may have: each agent that listens is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # a hard limit of none, where there is one
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(
    config: Config, places: Layout, database: Database, made: list[socket.socket]
) -> None:
    identity = _identity(config, places)
    addresses = _addresses(config, listening.port_of(made[0]))
    counted = Connections()
    parts, works = await _assemble(config, places, database, counted, addresses, identity)
    options = _tls_options(identity) | _proxy_options(config)
    settings = uvicorn_config(app.build(parts), config.limits, counted, **options)
    served = _Served(settings, closing=parts.hub.close)
    await _let_serverctl_in(places, database, addresses, identity)
    served.greeting = await _greeting(database, addresses)
    async with _in_the_background(*works, _renewing(config, places, settings)):
        await served.serve(sockets=made)


class _Served(Server):
    """Says that it is ready once it listens, and returns when it is told to stop."""

    greeting = ""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own would raise the signal again, before the database is closed."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        yield

    def _stop(self) -> None:
        self.force_exit = self.should_exit  # asked twice: at once
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            notify("READY=1\nSTATUS=serving")
            print(self.greeting, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        notify("STOPPING=1")
        await super().shutdown(sockets)


async def _assemble(
    config: Config,
    places: Layout,
    database: Database,
    counted: Connections,
    addresses: Addresses,
    identity: Identity | None,
) -> tuple[Parts, tuple[Coroutine[Any, Any, None], ...]]:
    """What answers requests, and what goes on beside them."""
    policy = await InForce.load(database)
    credentials = Credentials(database)
    door = Door(database, credentials, config.limits, monotonic=time.monotonic, clock=time.time)
    hub = rounds.hub_of(
        database,
        door.agent,
        policy=policy,
        clock=time.time,
        most=config.limits.connections_max,
        newest=await database.read(rounds.newest),
    )
    announcer = rounds.Announcer(database, hub, time.time)
    background: Background
    if config.origin:
        background = Origin(Path(config.origin), places.trust, database, tell=announcer)
    else:
        background = Follower(
            database,
            Mirror(places),
            config,
            places,
            policy=policy,
            tell=announcer,
            clock=time.time,
        )
    upstream = Upstream(places.upstream, database, policy, clock=time.time)
    parts = Parts(
        database=database,
        door=door,
        check_ins=CheckIns(database, policy),
        hub=hub,
        announcer=announcer,
        policy=policy,
        mirror=background,
        upstream=upstream,
        feed=Path(config.origin) if config.origin else places.feed,
        clock=time.time,
        started_at=time.time(),
        url=addresses.public,
        limits=config.limits,
        connections=counted,
        authority=identity.authority if identity else None,
        authority_pin=identity.pin if identity else None,
    )
    return parts, (background.run(), upstream.run())


class Background(Mirroring, Protocol):
    """What goes on beside the requests."""

    async def run(self) -> None:
        """Until cancelled."""


@contextlib.asynccontextmanager
async def _in_the_background(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """All of it while the block runs; one that fails ends the process, which is started anew."""
    tasks = [asyncio.create_task(work) for work in works]
    this = asyncio.current_task()

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and this is not None:
            this.cancel()

    for task in tasks:
        task.add_done_callback(ended)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result


# How it is reached.


def _addresses(config: Config, port: int) -> Addresses:
    scheme = "http" if config.tls.mode == "off" else "https"
    address = config.listen.rpartition(":")[0]
    everywhere = address.strip("[]") in {"::", "0.0.0.0"}  # noqa: S104 - compared, not bound to
    # By its number: a small machine may know no names, its own neither.
    local = "127.0.0.1" if everywhere else address
    public = _own_name() if everywhere else address
    return Addresses(
        public=(config.url or f"{scheme}://{public}:{port}").rstrip("/"),
        local=f"{scheme}://{local}:{port}",
    )


def _own_name() -> str:
    """As others may know this machine: never localhost, which each of them is to itself."""
    name = socket.getfqdn()
    return socket.gethostname() if name.partition(".")[0] == "localhost" else name


def _identity(config: Config, places: Layout) -> Identity | None:
    """What TLS is done with; None without TLS. Raises ConfigError."""
    if config.tls.mode == "off":
        return None
    if config.tls.certificate and config.tls.key:
        return Identity(certificate=Path(config.tls.certificate), key=Path(config.tls.key))
    more = [*config.tls.names]
    if config.url and (host := urlsplit(config.url).hostname):
        more.append(host)
    names = tls.own_names(config.listen, more)
    return tls.prepare(places.tls, names, now=datetime.datetime.now(datetime.UTC))


def _tls_options(identity: Identity | None) -> dict[str, Any]:
    if identity is None:
        return {}
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(identity.certificate, identity.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"tls: {identity.certificate} with {identity.key} can't be used: "
            f"{error.strerror or error}"
        ) from error
    return {"ssl_certfile": identity.certificate, "ssl_keyfile": identity.key}


def _proxy_options(config: Config) -> dict[str, Any]:
    if not config.proxies:
        return {}
    return {"proxy_headers": True, "forwarded_allow_ips": list(config.proxies)}


async def _renewing(config: Config, places: Layout, settings: uvicorn.Config) -> None:
    """Look after the certificate; new connections get the newest. Until cancelled."""
    while True:
        await asyncio.sleep(RENEW_LOOK_S)
        try:
            identity = await asyncio.to_thread(_identity, config, places)
            if identity is not None and settings.ssl is not None:
                settings.ssl.load_cert_chain(identity.certificate, identity.key)
                await asyncio.to_thread(follow, places.local_access, _given(identity))
        except (ConfigError, OSError, ssl.SSLError) as error:
            _log.error("certificate_not_renewed", problem=str(error))


async def _let_serverctl_in(
    places: Layout, database: Database, addresses: Addresses, identity: Identity | None
) -> None:
    token = await database.write(lambda session: access.local(session, now=time.time()))
    left = Access(
        url=addresses.local,
        token=token,
        authority=identity.authority if identity else None,
        certificate=_given(identity),
    )
    leave(places.local_access, left)


def _given(identity: Identity | None) -> str | None:
    """A certificate that isn't below the own authority, and rarely for a loopback address."""
    return tls.leaf(identity.certificate) if identity and identity.authority is None else None


async def _greeting(database: Database, addresses: Addresses) -> str:
    text = f"serving     {addresses.public}"
    token = await database.write(lambda session: setup.prepare(session, now=time.time()))
    if token is None:
        return text
    return f"{text}\nset up      {addresses.public}{SETUP_PATH}#{token}   (once, within a day)"

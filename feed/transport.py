"""The road to a feed: one synchronous face over http, https and file URLs.

httpx's asynchronous client runs in a thread of its own, because under anyio
it opens connections by Happy Eyeballs (RFC 8305): a host whose first address
is dead costs a quarter of a second, not a timeout.

 * Every read has a limit in bytes and a floor in speed: an endless or a
   dripping answer ends in a TransferError.
 * Only what can pass by itself is tried again: no connection, a timeout, a
   connection cut, 408, 429 and 5xx. Retry-After is obeyed up to a cap; a
   longer one is handed to the caller in `retry_after_s`.
 * Redirects are followed at most five times, never from https to http, never
   to a file; credentials stay with the host they were given for.
 * No URL's credentials or query reach an error or a log.
"""

from __future__ import annotations

import contextlib
import datetime
import ssl
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal

from feed import filesource, patience, proxy, wire
from feed.pacing import Bucket, Floor
from feed.source import (
    NOT_MODIFIED,
    Fetched,
    Incoming,
    OversizeError,
    SourceError,
    content_length,
    content_range,
    public_url,
    retry_after_s,
)

__all__ = ["Fetched", "Incoming", "OversizeError", "SourceError", "Transport"]

REDIRECTS_MAX = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504, 507})

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class _Ask:
    """A request: where, and its headers. `auth` goes to its own origin only."""

    url: httpx.URL
    headers: dict[str, str]
    auth: httpx.BasicAuth | None


class Transport:
    """A connection pool, its limits, and its retries; use it as a context manager.

    proxy None takes the environment's (NO_PROXY included), "" none at all,
    anything else is the proxy's URL. bandwidth_bytes_per_s 0 is unlimited.
    slowest_bytes_per_s is the floor, over a window of read_timeout_s.
    attempts counts attempts in a row that brought nothing. Not thread-safe.
    """

    def __init__(
        self,
        *,
        connect_timeout_s: float = 10.0,
        read_timeout_s: float = 30.0,
        attempts: int = 4,
        bandwidth_bytes_per_s: int = 0,
        proxy: str | None = None,
        user_agent: str = "holdfast",
        retry_after_max_s: float = 60.0,
        slowest_bytes_per_s: int = 256,
        fetch_max_s: float = 120.0,
        verify: ssl.SSLContext | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.attempts = attempts
        self.requests = 0  # made so far, redirects and repetitions included
        self.received_bytes = 0  # of bodies, so far
        self._timeout = httpx.Timeout(read_timeout_s, connect=connect_timeout_s)
        # Headers have no floor of their own: a proxy's and a server's connect, then one read.
        self._open_max_s = 2 * connect_timeout_s + read_timeout_s
        self._floor = Floor(slowest_bytes_per_s, read_timeout_s)
        self._fetch_max_s = fetch_max_s
        self._retry_after_max_s = retry_after_max_s
        self._proxy = proxy
        self._headers = {"User-Agent": user_agent, "Accept-Encoding": "identity"}
        self._verify = verify
        self._sleep = sleep
        self._clock = clock
        self._bucket = (
            Bucket.full(bandwidth_bytes_per_s, now_s=clock()) if bandwidth_bytes_per_s else None
        )
        self._stack = contextlib.ExitStack()
        self._portal: BlockingPortal | None = None
        self._clients: dict[tuple[str, str | None], httpx.AsyncClient] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        self._portal = None
        self._clients.clear()

    def fetch(
        self,
        url: str,
        *,
        limit: int,
        etag: str | None = None,
        last_modified: str | None = None,
    ) -> Fetched:
        """The whole of `url`, at most `limit` bytes, with retries.

        With an etag, or a last_modified date as the source gave it, the
        request is conditional and `not_modified` may be true.

        Raises SourceError (its `status` is the source's answer, if it gave
        one), OversizeError.
        """
        headers = {}
        if etag is not None:
            headers["If-None-Match"] = etag
        elif last_modified is not None:
            headers["If-Modified-Since"] = last_modified
        return self.retry(lambda: self._fetch_once(url, limit, headers))

    def _fetch_once(self, url: str, limit: int, headers: dict[str, str]) -> Fetched:
        deadline = self._clock() + self._fetch_max_s
        with self._open(url, limit=limit, start=0, headers=headers) as incoming:
            parts = []
            for chunk in incoming.chunks:
                parts.append(chunk)
                if self._clock() > deadline:
                    raise SourceError(
                        f"{public_url(url)}: not complete after {self._fetch_max_s:g} s "
                        f"({sum(map(len, parts)):,} bytes came)",
                        temporary=True,
                    )
            return Fetched(incoming.status, b"".join(parts), incoming.etag, incoming.last_modified)

    @contextlib.contextmanager
    def stream(
        self, url: str, *, limit: int, start: int = 0, if_range: str | None = None
    ) -> Iterator[Incoming]:
        """One attempt at `url` from byte `start`, its chunks to be read inside the block.

        The answer's `start` says where the chunks begin: 0 when the source
        doesn't do ranges, or when if_range (an ETag) is no longer its file's.
        limit bounds start plus what comes. Callers repeat through `retry`.

        Raises SourceError (status 416: nothing at `start`), OversizeError;
        so does reading the chunks.
        """
        headers = {}
        if start:
            headers["Range"] = f"bytes={start}-"
            if if_range is not None:
                headers["If-Range"] = if_range
        with self._open(url, limit=limit, start=start, headers=headers) as incoming:
            yield incoming

    def retry(self, attempt: Callable[[], T], *, progress: Callable[[], int] = lambda: 0) -> T:
        """The result of `attempt`, repeated while it fails in ways that pass.

        progress, in bytes, is asked after a failure: an attempt that moved
        it by 64 KiB starts the count of attempts anew.
        """
        return patience.retry(
            attempt,
            attempts=self.attempts,
            retry_after_max_s=self._retry_after_max_s,
            sleep=self._sleep,
            progress=progress,
        )

    @contextlib.contextmanager
    def _open(
        self, url: str, *, limit: int, start: int, headers: dict[str, str]
    ) -> Iterator[Incoming]:
        self.requests += 1
        if url.startswith("file:"):
            with filesource.open_file(
                url, limit=limit, start=start, etag=headers.get("If-None-Match")
            ) as found:
                found.chunks = self._metered(found.chunks)
                yield found
            return
        response = self._send(self._ask(url, headers))
        try:
            is_conditional = "If-None-Match" in headers or "If-Modified-Since" in headers
            yield self._answer(
                response, url, limit=limit, start=start, is_conditional=is_conditional
            )
        finally:
            self._call(response.aclose)

    def _ask(self, url: str, headers: dict[str, str]) -> _Ask:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise SourceError(f"{public_url(url)}: not a URL: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise SourceError(f"{public_url(url)}: expected http://, https:// or file://")
        auth = None
        if parsed.userinfo:
            # httpx logs the URL it sends, so the credentials travel beside it.
            auth = httpx.BasicAuth(parsed.username, parsed.password)
            parsed = parsed.copy_with(username=None, password=None)
        return _Ask(parsed, self._headers | headers, auth)

    def _send(self, ask: _Ask) -> httpx.Response:
        for _ in range(REDIRECTS_MAX + 1):
            response = self._send_one(ask)
            if response.status_code not in _REDIRECTS or "location" not in response.headers:
                return response
            self._call(response.aclose)
            ask = self._redirected(ask, response.headers["location"])
            self.requests += 1
        raise SourceError(f"{public_url(str(ask.url))}: more than {REDIRECTS_MAX} redirects")

    def _redirected(self, ask: _Ask, location: str) -> _Ask:
        where = public_url(str(ask.url))
        try:
            target = ask.url.join(location)
        except httpx.InvalidURL as error:
            raise SourceError(f"{where}: redirects to something that is no URL") from error
        if target.scheme not in ("http", "https"):
            raise SourceError(f"{where}: redirects to a {target.scheme or 'nameless'} URL; refused")
        if ask.url.scheme == "https" and target.scheme == "http":
            raise SourceError(f"{where}: redirects from https to http; refused")
        same = (ask.url.scheme, ask.url.host, ask.url.port) == (
            target.scheme,
            target.host,
            target.port,
        )
        target = target.copy_with(username=None, password=None)
        return _Ask(target, ask.headers, ask.auth if same else None)

    def _send_one(self, ask: _Ask) -> httpx.Response:
        client = self._client(ask.url)
        request = client.build_request("GET", ask.url, headers=ask.headers)
        with wire.translated(public_url(str(ask.url)), self._open_max_s):
            return self._call(wire.send, client, request, ask.auth, self._open_max_s)

    def _answer(
        self,
        response: httpx.Response,
        url: str,
        *,
        limit: int,
        start: int,
        is_conditional: bool,
    ) -> Incoming:
        status, headers = response.status_code, response.headers
        is_answer = status in (200, 206) or (status == NOT_MODIFIED and is_conditional)
        if not is_answer:
            raise self._refusal(url, response)
        if headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            raise SourceError(
                f"{public_url(url)}: sent compressed ({headers['content-encoding'][:40]}) "
                "though asked not to; the source or a proxy before it is misconfigured"
            )
        first, total = 0, content_length(headers.get("content-length"))
        if status == 206:
            stated = content_range(headers.get("content-range"))
            if stated is None or stated[0] != start:
                raise SourceError(
                    f"{public_url(url)}: answers another range than the one from byte {start:,}"
                )
            first, total = stated
        if total is not None and total > limit:
            raise OversizeError(
                f"{public_url(url)}: announces {total:,} bytes, expected at most {limit:,}"
            )
        body = self._body(response, public_url(url), limit - first)
        return Incoming(
            status,
            first,
            total,
            headers.get("etag"),
            headers.get("last-modified"),
            self._metered(body),
        )

    def _refusal(self, url: str, response: httpx.Response) -> SourceError:
        now = datetime.datetime.now(datetime.UTC)
        asked = retry_after_s(response.headers.get("retry-after"), now=now)
        when = f"; it asks for a pause of {asked:g} s" if asked is not None else ""
        status = response.status_code
        return SourceError(
            f"{public_url(url)}: the source answers {status} {wire.phrase(status)}{when}",
            status=status,
            temporary=status in _TEMPORARY,
            retry_after_s=asked,
        )

    def _body(self, response: httpx.Response, where: str, room: int) -> Iterator[bytes]:
        floor, received = self._floor, 0
        stream = response.aiter_raw()
        while True:
            began = self._clock()
            with wire.translated(where, self._open_max_s):
                chunk = self._call(wire.next_chunk, stream)
            if chunk is None:
                return
            received += len(chunk)
            if received > room:
                raise OversizeError(f"{where}: sends more than the {room:,} bytes expected; cut")
            floor = floor.add(len(chunk), waited_s=self._clock() - began)
            if floor.is_broken:
                raise SourceError(
                    f"{where}: {floor.received:,} bytes in {floor.waited_s:.0f} s is below "
                    f"{floor.bytes_per_s:g} bytes/s; cut",
                    temporary=True,
                )
            yield chunk

    def _metered(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.received_bytes += len(chunk)
            if self._bucket is not None:
                self._bucket, wait_s = self._bucket.take(len(chunk), now_s=self._clock())
                if wait_s:
                    self._sleep(wait_s)
            yield chunk

    def _client(self, url: httpx.URL) -> httpx.AsyncClient:
        chosen = self._proxy or None
        if self._proxy is None:
            port = url.port or (443 if url.scheme == "https" else 80)
            chosen = proxy.choose(
                urllib.request.getproxies(), scheme=url.scheme, host=url.host, port=port
            )
        key = (url.scheme, chosen)
        if key not in self._clients:
            self._clients[key] = self._new_client(chosen, self._tls(url.scheme))
        return self._clients[key]

    def _tls(self, scheme: str) -> ssl.SSLContext:
        if scheme == "http":
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody; never used
        if self._verify is None:
            self._verify = httpx.create_ssl_context()  # SSL_CERT_FILE, else certifi
        return self._verify

    def _new_client(self, chosen: str | None, tls: ssl.SSLContext) -> httpx.AsyncClient:
        try:
            through = None
            if chosen is not None:
                own_tls = self._tls("https") if chosen.startswith("https:") else None
                through = httpx.Proxy(chosen, ssl_context=own_tls)
            client = httpx.AsyncClient(
                proxy=through,
                verify=tls,
                timeout=self._timeout,
                trust_env=False,
                follow_redirects=False,
            )
        except (ValueError, ImportError, httpx.InvalidURL) as error:
            raise SourceError(
                f"proxy {public_url(chosen or '')}: can't be used; "
                "expected http://host:port or https://host:port"
            ) from error
        self._call(client.__aenter__)
        self._stack.callback(self._call, client.aclose)
        return client

    def _call(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._portal is None:
            self._portal = self._stack.enter_context(start_blocking_portal("asyncio"))
        return self._portal.call(function, *args, **kwargs)

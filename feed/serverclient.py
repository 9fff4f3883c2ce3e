"""One Security Server over HTTP: questions with an answer, and notifications.

Synchronous, for processes that wait for nothing else. Every answer has a limit
in bytes and in time; redirects aren't followed, for a credential goes to no
other place; what the server says of an error is passed on, cut short.
"""

from __future__ import annotations

import contextlib
import datetime
import ssl
import time
import urllib.request
from collections.abc import Iterator
from types import TracebackType
from typing import Self, TypeVar

import httpx
import httpx_sse
import msgspec

from feed import proxy
from feed.errors import SecurityServerError
from feed.messages import AUTHORITY_PATH, BODY_BYTES_MAX, LOOK, NOTIFICATIONS_PATH, Authority, Count
from feed.source import retry_after_s

CONNECT_S = 10.0
READ_S = 30.0
ANSWER_MAX_S = 60.0
STALL_S = 90.0  # heartbeats come about every 30 s
EVENT_BYTES_MAX = 64 << 10
SENTENCE_CHARS_MAX = 500
RETRY_MAX_S = 120.0  # what a server may ask of who connects again

T = TypeVar("T", bound=msgspec.Struct)


class _Complaint(msgspec.Struct):
    code: str = ""
    sentence: str = ""


class _Look(msgspec.Struct):
    round: Count


class ServerClient:
    """A server at `url`; use it as a context manager.

    authority is the PEM certificate that alone signs for it, None: those that
    the system trusts. retry_s is how long the server asks to wait before
    notifications are asked for again, 0 to RETRY_MAX_S.
    """

    def __init__(self, url: str, *, authority: str | None = None) -> None:
        """Raises SecurityServerError: nothing can be asked with that authority."""
        self.url = url
        self.retry_s = 0.0
        self._client = _client(url, trust(authority) if url.startswith("https:") else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def ask(self, path: str, message: msgspec.Struct | None, reply: type[T], *, bearer: str) -> T:
        """POST `message`; the server's answer.

        Raises SecurityServerError.
        """
        body = b"{}" if message is None else msgspec.json.encode(message)
        headers = {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"}
        with _translated(self.url):
            request = self._client.build_request(
                "POST", f"{self.url}{path}", headers=headers, content=body
            )
            return _answer(self._client, request, self.url, reply)

    @contextlib.contextmanager
    def notifications(self, *, bearer: str, after: int) -> Iterator[Iterator[int]]:
        """The rounds that the server tells of from now on; inside the block it is connected.

        after is the newest round that was heard of, 0 for none.
        Raises SecurityServerError, from the block and from the iterator: the connection
        ended, or nothing came for STALL_S.
        """
        headers = {"Authorization": f"Bearer {bearer}"}
        if after:
            headers["Last-Event-ID"] = str(after)
        patience = httpx.Timeout(READ_S, connect=CONNECT_S, read=STALL_S)
        with (
            _translated(self.url),
            httpx_sse.connect_sse(
                self._client,
                "GET",
                f"{self.url}{NOTIFICATIONS_PATH}",
                headers=headers,
                timeout=patience,
            ) as source,
        ):
            response = source.response
            if response.status_code != httpx.codes.OK:
                raise _refusal(response, self.url)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise SecurityServerError(
                    f"{self.url}: sends notifications compressed, though asked not to",
                    code="server_not_understood",
                )
            response.stream = _Bounded(response.stream)
            yield self._rounds(source)

    def _rounds(self, source: httpx_sse.EventSource) -> Iterator[int]:
        for event in source.iter_sse():
            if event.retry is not None:
                self.retry_s = min(max(event.retry, 0), int(RETRY_MAX_S * 1000)) / 1000
            if event.event == LOOK:
                with contextlib.suppress(msgspec.DecodeError, UnicodeEncodeError, RecursionError):
                    yield msgspec.json.decode(event.data, type=_Look).round


def fetch_authority(url: str) -> str:
    """The server's own certificate authority, PEM, believed by nobody yet.

    Raises SecurityServerError.
    """
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE  # the pin decides, before anything is sent
    with _client(url, unverified) as client, _translated(url):
        request = client.build_request("GET", f"{url}{AUTHORITY_PATH}")
        return _answer(client, request, url, Authority).certificate


def trust(authority: str | None) -> ssl.SSLContext:
    """What a server's certificate is held against.

    Raises SecurityServerError: `authority` is no certificate.
    """
    if authority is None:
        return ssl.create_default_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=authority)
    except (ssl.SSLError, ValueError) as error:
        raise SecurityServerError(
            "the authority that is kept of the server is no certificate; enrol again",
            code="authority_unusable",
        ) from error
    return context


def _client(url: str, tls: ssl.SSLContext | None) -> httpx.Client:
    parsed = httpx.URL(url)
    port = parsed.port or (443 if parsed.scheme == "https" else 80)
    through = proxy.choose(
        urllib.request.getproxies(), scheme=parsed.scheme, host=parsed.host, port=port
    )
    try:
        return httpx.Client(
            proxy=through,
            verify=tls or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),  # for http: never used
            timeout=httpx.Timeout(READ_S, connect=CONNECT_S),
            headers={"User-Agent": "holdfast", "Accept-Encoding": "identity"},
            trust_env=False,
            follow_redirects=False,
        )
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise SecurityServerError(
            "the proxy of the environment can't be used; expected http://host:port"
        ) from error


def _answer(client: httpx.Client, request: httpx.Request, where: str, reply: type[T]) -> T:
    response = client.send(request, stream=True)
    try:
        if not response.is_success:
            raise _refusal(response, where)
        data = _body(response, where)
    finally:
        response.close()
    try:
        return msgspec.json.decode(data, type=reply)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SecurityServerError(
            f"{where}: answers something else than a Security Server does",
            code="server_not_understood",
            status=response.status_code,
        ) from error


def _body(response: httpx.Response, where: str) -> bytes:
    found = bytearray()
    deadline = time.monotonic() + ANSWER_MAX_S
    for chunk in response.iter_raw():
        found += chunk
        if len(found) > BODY_BYTES_MAX or time.monotonic() > deadline:
            raise SecurityServerError(
                f"{where}: an answer of more than {BODY_BYTES_MAX:,} bytes or "
                f"{ANSWER_MAX_S:g} s; cut",
                code="server_not_understood",
            )
    return bytes(found)


def _refusal(response: httpx.Response, where: str) -> SecurityServerError:
    try:
        said = msgspec.json.decode(_body(response, where), type=_Complaint)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, SecurityServerError):
        said = _Complaint()
    status = response.status_code
    now = datetime.datetime.now(datetime.UTC)
    why = f": {said.sentence[:SENTENCE_CHARS_MAX]}" if said.sentence else ""
    return SecurityServerError(
        f"{where} answers {status} {response.reason_phrase}{why}",
        code=said.code[:64] or f"http_{status}",
        status=status,
        retry_after_s=retry_after_s(response.headers.get("retry-after"), now=now),
    )


class _Bounded(httpx.SyncByteStream):
    """A stream of events, none of which is longer than EVENT_BYTES_MAX."""

    def __init__(self, stream: object) -> None:
        if not isinstance(stream, httpx.SyncByteStream):
            raise TypeError("not a synchronous response")
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        pending, last = 0, b""
        for chunk in self._stream:
            seen = last + chunk
            end = max(seen.rfind(b"\n\n"), seen.rfind(b"\r\n\r\n"))
            pending = len(seen) - end if end >= 0 else pending + len(chunk)
            last = seen[-3:]
            if pending > EVENT_BYTES_MAX:
                raise SecurityServerError(
                    f"a notification of more than {EVENT_BYTES_MAX:,} bytes; cut",
                    code="server_not_understood",
                )
            yield chunk

    def close(self) -> None:
        self._stream.close()


@contextlib.contextmanager
def _translated(where: str) -> Iterator[None]:
    """httpx's errors as ours, which say what an administrator can look at."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise SecurityServerError(f"{where}: no answer in time") from error
    except httpx.ProxyError as error:
        raise SecurityServerError(f"{where}: the proxy refuses: {error}") from error
    except httpx.ConnectError as error:
        raise SecurityServerError(f"{where}: no connection: {_root_cause(error)}") from error
    except httpx_sse.SSEError as error:
        raise SecurityServerError(
            f"{where}: sends no notifications: {error}", code="server_not_understood"
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise SecurityServerError(f"{where}: connection lost: {error}") from error


def _root_cause(error: BaseException) -> str:
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, ssl.SSLCertVerificationError):
            return f"its certificate is refused ({found.verify_message})"
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        found = found.__cause__ or found.__context__
    return str(error)

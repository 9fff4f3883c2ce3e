"""The asynchronous steps below feed.transport, and httpx's errors in our words."""

from __future__ import annotations

import contextlib
import http
import ssl
from collections.abc import AsyncIterator, Iterator

import anyio
import httpx

from feed.source import SourceError


async def send(
    client: httpx.AsyncClient, request: httpx.Request, auth: httpx.Auth | None, limit_s: float
) -> httpx.Response:
    with anyio.fail_after(limit_s):
        return await client.send(request, stream=True, auth=auth)


async def next_chunk(stream: AsyncIterator[bytes]) -> bytes | None:
    return await anext(stream, None)


@contextlib.contextmanager
def translated(where: str, limit_s: float) -> Iterator[None]:
    """httpx's errors as ours, which say what an administrator can look at."""
    try:
        yield
    except httpx.TimeoutException as error:
        what = _TIMEOUTS.get(type(error), "no answer")
        raise SourceError(f"{where}: {what} in time", temporary=True) from error
    except TimeoutError as error:
        raise SourceError(f"{where}: no answer within {limit_s:g} s", temporary=True) from error
    except httpx.ProxyError as error:
        temporary = not str(error).startswith("407")
        raise SourceError(f"{where}: the proxy refuses: {error}", temporary=temporary) from error
    except httpx.ConnectError as error:
        raise SourceError(
            f"{where}: no connection: {_root_cause(error)}", temporary=not _is_certificate(error)
        ) from error
    except (httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:
        raise SourceError(f"{where}: can't be asked for: {error}") from error
    except httpx.RequestError as error:
        raise SourceError(f"{where}: connection lost: {error}", temporary=True) from error


_TIMEOUTS = {
    httpx.ConnectTimeout: "no connection",
    httpx.ReadTimeout: "nothing came",
    httpx.WriteTimeout: "the request couldn't be sent",
}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_certificate(error: BaseException) -> bool:
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error))


def _root_cause(error: BaseException) -> str:
    """The system's own words where there are some: httpx says only that all attempts failed."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is refused ({cause.verify_message})"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return str(error)


def phrase(status: int) -> str:
    with contextlib.suppress(ValueError):
        return http.HTTPStatus(status).phrase
    return "(not a status HTTP knows)"

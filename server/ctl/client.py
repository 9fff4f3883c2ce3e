"""One question to a server's API, and what goes wrong with it in words."""

from __future__ import annotations

import ssl
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from feed import messages
from server.ctl.access import Access
from server.errors import ConfigError, ServerError

ANSWER_S = 60.0
CONNECT_S = 5.0
ANSWER_BYTES_MAX = 64 << 20
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class AskError(ServerError):
    """The server didn't do it; `status` is its HTTP answer, None if there was none."""

    code = "ask_failed"

    def __init__(self, sentence: str, *, status: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status


class Client:
    """Asks with the administrator's token; a context manager. Proxies aren't gone through."""

    def __init__(self, access: Access) -> None:
        """Raises ConfigError: the authority is no certificate."""
        self._access = access
        self._http = httpx.Client(
            base_url=access.url,
            headers={"Authorization": f"Bearer {access.token}"},
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            verify=_trust(access),
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> Any:
        """The answer to GET below /api/v1; a query of None is left out."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._ask("GET", path, params=given)

    def post(self, path: str, body: Any = None, *, is_long: bool = False) -> Any:
        """The answer to POST below /api/v1; is_long: however long that takes."""
        more = {"timeout": httpx.Timeout(CONNECT_S, read=None)} if is_long else {}
        return self._ask("POST", path, json=body, **more)

    def put(self, path: str, body: Any) -> Any:
        """The answer to PUT below /api/v1."""
        return self._ask("PUT", path, json=body)

    def patch(self, path: str, body: Any) -> Any:
        """The answer to PATCH below /api/v1."""
        return self._ask("PATCH", path, json=body)

    def delete(self, path: str) -> Any:
        """The answer to DELETE below /api/v1."""
        return self._ask("DELETE", path)

    def _ask(self, method: str, path: str, **more: Any) -> Any:
        try:
            answer = self._http.request(method, f"{messages.API}{path}", **more)
        except httpx.HTTPError as error:
            raise AskError(
                f"{self._access.url} doesn't answer ({error or type(error).__name__}); "
                "serverctl run starts it, systemctl status holdfast-serverd says why it isn't up"
            ) from error
        if not answer.is_success:
            raise AskError(_sentence(answer), status=answer.status_code)
        try:
            return msgspec.json.decode(answer.content) if answer.content else None
        except NOT_JSON as error:
            raise AskError(
                f"{answer.request.url} answers something else than a Security Server does "
                f"({error}); is {self._access.url} one, and of this version?",
                status=answer.status_code,
            ) from error


def _trust(access: Access) -> ssl.SSLContext | bool:
    pinned = access.certificate or access.authority
    if pinned is None:
        return True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if access.certificate is not None:  # this one and no other, by whatever road
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata=pinned)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"the authority is no certificate in PEM: {error}") from error
    return context


def _sentence(answer: httpx.Response) -> str:
    try:
        told = msgspec.json.decode(answer.content)
        return f"{told['sentence']} (request {told['request_id']})"
    except (*NOT_JSON, KeyError, TypeError):
        return f"{answer.request.url} answers {answer.status_code}"

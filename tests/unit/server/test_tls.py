"""The server's own authority: pinned once, renewed quietly, never half written."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509

from server import tls
from server.ctl import access
from server.ctl.access import Access
from server.ctl.client import AskError, Client
from server.errors import ConfigError

NOW = datetime.datetime(2026, 5, 1, tzinfo=datetime.UTC)


def _served(identity: tls.Identity) -> x509.Certificate:
    return x509.load_pem_x509_certificate(identity.certificate.read_bytes())


def test_a_client_that_pins_the_authority_reaches_the_server_by_each_name(tmp_path: Path) -> None:
    identity = tls.prepare(
        tmp_path, ["files.example", "127.0.0.1", "::1"], now=datetime.datetime.now(datetime.UTC)
    )
    assert identity.authority is not None
    here = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    here.load_cert_chain(identity.certificate, identity.key)
    there = ssl.create_default_context(cadata=identity.authority)
    for name in ("files.example", "127.0.0.1"):
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=_shake_hands, args=(here, ours))
        thread.start()
        with there.wrap_socket(theirs, server_hostname=name) as connection:
            assert connection.version() == "TLSv1.3"
        thread.join(10)


def _shake_hands(context: ssl.SSLContext, connection: socket.socket) -> None:
    with context.wrap_socket(connection, server_side=True) as secured:
        secured.recv(1)


def test_serverctl_knows_a_given_certificate_by_itself_whatever_its_names(tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    given = tls.prepare(tmp_path / "a", ["files.example"], now=now)
    other = tls.prepare(tmp_path / "b", ["127.0.0.1"], now=now)
    here = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    here.load_cert_chain(given.certificate, given.key)
    pem = tls.leaf(given.certificate)
    assert "PRIVATE" not in pem
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=_answer_two, args=(here, listener))
        thread.start()
        with Client(Access(url=url, token="t", certificate=pem)) as client:
            assert client.get("/status") == {}
        foreign = tls.leaf(other.certificate)
        with (
            Client(Access(url=url, token="t", certificate=foreign)) as client,
            pytest.raises(AskError, match="certificate"),
        ):
            client.get("/status")
        thread.join(10)


def _answer_two(context: ssl.SSLContext, listener: socket.socket) -> None:
    for _ in range(2):
        connection, _ = listener.accept()
        with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as to:
            to.recv(65536)
            to.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


def test_what_serverctl_goes_by_follows_a_renewed_certificate(tmp_path: Path) -> None:
    path = tmp_path / "serverctl.json"
    access.leave(path, Access(url="https://x", token="t", certificate="old"))
    access.follow(path, "new")
    assert access.local(path) == Access(url="https://x", token="t", certificate="new")
    before = path.stat().st_ino
    access.follow(path, "new")
    assert path.stat().st_ino == before


@pytest.mark.parametrize("data", [None, b"nothing of the kind"])
def test_a_given_certificate_that_isnt_one_is_told(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "given.pem"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"given\.pem can't be read as a certificate"):
        tls.leaf(path)


@pytest.mark.parametrize("name", ["a..b", "x" * 64, ".example"])
def test_a_name_that_no_certificate_can_have_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"correct tls\.names"):
        tls.prepare(tmp_path, [name], now=NOW)


def test_a_machine_may_be_called_what_no_certificate_can_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "a..b")
    monkeypatch.setattr(socket, "getfqdn", lambda: "a..b")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    assert tls.own_names("[::]:8443", []) == ("localhost", "127.0.0.1", "::1")


def test_the_same_authority_and_certificate_come_back_at_the_next_start(tmp_path: Path) -> None:
    first = tls.prepare(tmp_path, ["a.example"], now=NOW)
    before = first.certificate.read_bytes()
    again = tls.prepare(tmp_path, ["a.example"], now=NOW + datetime.timedelta(days=30))
    assert again == first
    assert again.certificate.read_bytes() == before


@pytest.mark.parametrize(
    ("names", "days"), [(["a.example", "b.example"], 1), (["a.example"], 300), (["a.example"], 500)]
)
def test_a_name_more_or_a_third_left_renews_below_the_same_pin(
    tmp_path: Path, names: list[str], days: int
) -> None:
    first = tls.prepare(tmp_path, ["a.example"], now=NOW)
    before = _served(first)
    again = tls.prepare(tmp_path, names, now=NOW + datetime.timedelta(days=days))
    assert again.pin == first.pin
    assert _served(again).serial_number != before.serial_number


def test_keys_are_nobody_elses(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    tls.prepare(folder, ["a.example"], now=NOW)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in ("ca.key", "server.pem"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600


def test_a_damaged_certificate_is_made_anew_and_a_damaged_authority_is_told(
    tmp_path: Path,
) -> None:
    first = tls.prepare(tmp_path, ["a.example"], now=NOW)
    first.certificate.write_bytes(b"torn")
    assert tls.prepare(tmp_path, ["a.example"], now=NOW).pin == first.pin
    assert _served(first)
    (tmp_path / "ca.key").write_bytes(b"torn")
    with pytest.raises(ConfigError, match="enrol again"):
        tls.prepare(tmp_path, ["a.example"], now=NOW)


def test_this_machines_names_include_what_is_asked_for() -> None:
    names = tls.own_names("192.0.2.7:8443", ["files.example"])
    assert {"localhost", "127.0.0.1", "::1", "192.0.2.7", "files.example"} <= set(names)
    assert "::" not in tls.own_names("[::]:8443", [])

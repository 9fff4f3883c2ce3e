"""The server's own authority: pinned once, renewed quietly, never half written."""

from __future__ import annotations

import datetime
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509

from server import tls
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

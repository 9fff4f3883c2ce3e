"""The server's own certificate authority and certificate, made at the first start.

Agents pin the authority when they enrol, so the certificate below it may be
renewed, and the server renamed, without anybody doing anything.

 * Both keys are the server user's alone; written durably before they are used.
 * A certificate is made anew when a third of its time is left, when a name is
   missing in it, or when it isn't this authority's.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import ipaddress
import socket
from collections.abc import Iterable
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from feed import durable
from server.errors import ConfigError

AUTHORITY_DAYS = 3653
CERTIFICATE_DAYS = 397  # what browsers accept of certificates
BACKDATED = datetime.timedelta(hours=24)  # agents' clocks may be behind
_COMMON_NAME_MAX = 64  # RFC 5280, ub-common-name

Key = ec.EllipticCurvePrivateKey


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What the server shows itself with: files for its TLS, and what agents pin.

    authority is PEM, pin the SHA-256 of its DER in lowercase hex; both None
    where the administrator gave a certificate.
    """

    certificate: Path
    key: Path
    authority: str | None = None
    pin: str | None = None


def prepare(folder: Path, names: Iterable[str], *, now: datetime.datetime) -> Identity:
    """The own identity in `folder`, made or renewed as needed.

    Raises ConfigError: what is there can't be read. OSError: the folder can't be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    durable.sweep_temporaries(folder)
    authority, authority_key = _authority(folder, now)
    both = folder / "server.pem"  # one file, so that no power cut can part them
    identity = Identity(
        certificate=both, key=both, authority=_pem(authority).decode(), pin=pin_of(authority)
    )
    wanted = tuple(dict.fromkeys(names))
    if not _is_good(identity, authority, wanted, now):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(key, authority, authority_key, wanted, now)
        durable.replace(both, _private(key) + _pem(certificate))
    return identity


def pin_of(certificate: x509.Certificate) -> str:
    """What an enrolment token carries of the authority."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def leaf(path: Path) -> str:
    """The certificate that a server with this file shows, PEM, without key and chain.

    Raises ConfigError: none can be read there.
    """
    try:
        return _pem(x509.load_pem_x509_certificates(path.read_bytes())[0]).decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"tls: {path} can't be read as a certificate in PEM: {error}") from error


def own_names(listen: str, more: Iterable[str]) -> tuple[str, ...]:
    """The names and addresses that agents may reach this machine by."""
    host = socket.gethostname()
    address = listen.rpartition(":")[0].strip("[]")
    known = [name for name in (host, socket.getfqdn()) if name and _dns_name(name) is not None]
    found = [*known, "localhost", "127.0.0.1", "::1", *_addresses(host)]
    if address not in {"::", "0.0.0.0"}:  # noqa: S104 - compared, not bound to
        found.append(address)
    return tuple(dict.fromkeys(name for name in (*found, *more) if name))


def _addresses(host: str) -> list[str]:
    with contextlib.suppress(OSError):
        return [str(item[4][0]).partition("%")[0] for item in socket.getaddrinfo(host, None)]
    return []


def _authority(folder: Path, now: datetime.datetime) -> tuple[x509.Certificate, Key]:
    """Kept in one file, key and certificate; ca.pem beside it is for people."""
    path = folder / "ca.key"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _self_signed(key, now)
        durable.replace(path, _private(key) + _pem(certificate))
    else:
        certificate, key = _read(path, data)
    public = folder / "ca.pem"
    if not public.is_file() or public.read_bytes() != _pem(certificate):
        durable.replace(public, _pem(certificate), mode=0o644)
    return certificate, key


def _read(path: Path, data: bytes) -> tuple[x509.Certificate, Key]:
    try:
        key = serialization.load_pem_private_key(data, password=None)
        certificate = x509.load_pem_x509_certificate(data)
    except ValueError as error:
        raise ConfigError(
            f"{path}: isn't a key and a certificate ({error}); restore it from a backup. "
            "Without it a new authority is made, and every agent has to enrol again: "
            f"delete {path} for that"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path}: holds another kind of key; restore it from a backup")
    return certificate, key


def _is_good(
    identity: Identity, authority: x509.Certificate, names: tuple[str, ...], now: datetime.datetime
) -> bool:
    try:
        certificate, _ = _read(identity.key, identity.key.read_bytes())
        certificate.verify_directly_issued_by(authority)
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except Exception:  # noqa: BLE001 - whatever is wrong with it, another one is made
        return False
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    is_fresh = begins <= now < ends - (ends - begins) / 3
    return is_fresh and set(_general_names(names)) <= set(alternative.value)


def _self_signed(key: Key, now: datetime.datetime) -> x509.Certificate:
    name = _name(f"Holdfast server CA {socket.gethostname()}")
    usage = _usage(sign_certificates=True)
    return (
        _builder(name, name, key, now, days=AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )


def _certificate(
    key: Key,
    authority: x509.Certificate,
    authority_key: Key,
    names: tuple[str, ...],
    now: datetime.datetime,
) -> x509.Certificate:
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        _builder(_name(names[0]), authority.subject, key, now, days=CERTIFICATE_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer_key, critical=False)
        .add_extension(x509.SubjectAlternativeName(_general_names(names)), critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Key, now: datetime.datetime, *, days: int
) -> x509.CertificateBuilder:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(identifier, critical=False)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    common = x509.NameAttribute(NameOID.COMMON_NAME, text[:_COMMON_NAME_MAX])
    return x509.Name([common])


def _general_names(names: Iterable[str]) -> list[x509.GeneralName]:
    """Raises ConfigError: one of them can't be in a certificate."""
    found: list[x509.GeneralName] = []
    for name in names:
        made = _general_name(name)
        if made is None:
            raise ConfigError(
                f"tls: {name!r} can't be a name in a certificate; correct tls.names, url or listen"
            )
        found.append(made)
    return found


def _general_name(name: str) -> x509.GeneralName | None:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return _dns_name(name)


def _dns_name(name: str) -> x509.DNSName | None:
    try:
        return x509.DNSName(name.encode("idna").decode())
    except UnicodeError:  # an empty part, or one that is too long
        return None


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )

"""The keys of the release desk: where each is, and a signer for it.

keys/keys.toml lists every key with its public half and a URI for the private
one: `file2:<path>` (PKCS#8 PEM, relative to the work folder) for files, or any
scheme of securesystemslib (awskms:, gcpkms:, azurekms:, hv:, hsm:, …). Who signs what is not
said here: the signed metadata alone says that.

 * A private file is 0600 in a folder of 0700; a file that others can read is refused.
 * A key file may be taken away (root, targets): only what needs it then fails.
 * HOLDFAST_PUBLISHER_PASSPHRASE, if set, encrypts new key files and opens encrypted ones.
 * No private byte appears in a message.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner, Key, Signer, SSlibKey

from feed import durable
from publisher import settings
from publisher.errors import SigningError
from publisher.settings import Section

UNLOCK_ENV = "HOLDFAST_PUBLISHER_PASSPHRASE"
REGISTRY_NAME = "keys.toml"
FILE_SCHEME = "file2:"


class KeyEntry(Section, frozen=True, kw_only=True):
    """A key: id and public half as TUF metadata carries them, and where the private half is.

    role is the role it was made for, to name things; metadata decides.
    """

    id: str
    role: str
    uri: str
    keytype: str
    scheme: str
    public: str

    @property
    def key(self) -> SSlibKey:
        """The public key."""
        return SSlibKey(self.id, self.keytype, self.scheme, {"public": self.public})


class Registry(Section, frozen=True, kw_only=True):
    """keys.toml."""

    key: tuple[KeyEntry, ...] = ()


class Keyring:
    """The keys registered in one folder. Each change is on disk before it returns."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._signers: dict[str, Signer] = {}
        path = folder / REGISTRY_NAME
        if path.exists():
            found = settings.parse(path.read_bytes(), Registry, where=str(path))
            self._entries = {entry.id: entry for entry in found.key}
        else:
            self._entries = {}

    @property
    def entries(self) -> tuple[KeyEntry, ...]:
        """Every registered key, in the order of registration."""
        return tuple(self._entries.values())

    def create(self, role: str) -> SSlibKey:
        """A new Ed25519 key for `role`, in a file only its owner can read."""
        signer = CryptoSigner.generate_ed25519()
        key = signer.public_key
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._folder.chmod(0o700)
        path = self._folder / f"{role}-{key.keyid[:12]}.pem"
        durable.replace(path, _private_pem(signer), mode=0o600)
        self._signers[key.keyid] = signer
        self._register(role, key, f"{FILE_SCHEME}{self._folder.name}/{path.name}")
        return key

    def made_for(self, role: str) -> SSlibKey | None:
        """A key that was made for `role` and is here, if any."""
        return next(
            (item.key for item in self.entries if item.role == role and self.is_here(item.id)), None
        )

    def adopt(self, role: str, *, uri: str, public_pem: bytes) -> SSlibKey:
        """Register a key that lives elsewhere; proves it can sign first.

        Raises SigningError: no such key, unknown scheme, or it isn't the
        private half of the public key in `public_pem`.
        """
        try:
            key = SSlibKey.from_crypto(load_pem_public_key(public_pem))
        except ValueError as error:
            raise SigningError(f"the public key for {role} isn't PEM: {error}") from error
        entry = self._entry(role, key, uri)
        signer = self._open(entry)
        try:
            key.verify_signature(signer.sign(b"holdfast"), b"holdfast")
        except UnverifiedSignatureError as error:
            raise SigningError(
                f"what {uri} signs doesn't verify with the public key given for {role}"
            ) from error
        self._signers[key.keyid] = signer
        self._register(role, key, uri)
        return key

    def forget(self, keyid: str) -> None:
        """Unregister a retired key and delete its file, if it is one of ours."""
        entry = self._entries.pop(keyid, None)
        if entry is None:
            return
        self._signers.pop(keyid, None)
        self._write()
        if entry.uri.startswith(FILE_SCHEME):
            durable.remove(self.path(entry))

    def path(self, entry: KeyEntry) -> Path:
        """The file of a `file2:` key."""
        return self._folder.parent / entry.uri.removeprefix(FILE_SCHEME)

    def is_here(self, keyid: str) -> bool:
        """Whether the key can be expected to sign: registered and, if a file, present."""
        entry = self._entries.get(keyid)
        return entry is not None and (
            not entry.uri.startswith(FILE_SCHEME) or self.path(entry).exists()
        )

    def signer(self, keyid: str) -> Signer:
        """The signer for a key.

        Raises SigningError: says where the key was expected.
        """
        if keyid not in self._signers:
            entry = self._entries.get(keyid)
            if entry is None:
                raise SigningError(
                    f"key {keyid[:12]} isn't in {self._folder / REGISTRY_NAME}; restore its "
                    "entry, or replace the key with `publisher keys rotate ROLE --lost`"
                )
            self._signers[keyid] = self._open(entry)
        return self._signers[keyid]

    def present(self, keyids: list[str]) -> list[Signer]:
        """The signers of those keys that are here."""
        return [self.signer(keyid) for keyid in keyids if self.is_here(keyid)]

    def whereabouts(self, keyids: list[str]) -> str:
        """Where the keys are expected, for messages."""
        known = [self._entries[keyid] for keyid in keyids if keyid in self._entries]
        unknown = [
            f"{keyid[:12]} (not registered)" for keyid in keyids if keyid not in self._entries
        ]
        return ", ".join([f"{item.id[:12]} at {item.uri}" for item in known] + unknown)

    def _open(self, entry: KeyEntry) -> Signer:
        try:
            if entry.uri.startswith(FILE_SCHEME):
                return _file_signer(self.path(entry), entry.key)
            return Signer.from_priv_key_uri(entry.uri, entry.key, _secret)
        except SigningError:
            raise
        except Exception as error:  # signers of KMS and HSM raise what they like
            raise SigningError(
                f"key {entry.id[:12]} of {entry.role} at {entry.uri}: {error}"
            ) from error

    def _entry(self, role: str, key: Key, uri: str) -> KeyEntry:
        return KeyEntry(
            id=key.keyid,
            role=role,
            uri=uri,
            keytype=key.keytype,
            scheme=key.scheme,
            public=key.keyval["public"],
        )

    def _register(self, role: str, key: Key, uri: str) -> None:
        self._entries[key.keyid] = self._entry(role, key, uri)
        self._write()

    def _write(self) -> None:
        durable.replace(self._folder / REGISTRY_NAME, _registry_toml(self.entries), mode=0o600)


def _registry_toml(entries: tuple[KeyEntry, ...]) -> bytes:
    lines = [
        "# Where the private half of each key is. A key that moves into a KMS or an HSM",
        "# gets its new `uri` here; the rest stays.",
    ]
    for entry in entries:
        lines.append("\n[[key]]")
        # A JSON string is a TOML basic string.
        lines += [
            f"{field} = {json.dumps(value)}"
            for field, value in msgspec.structs.asdict(entry).items()
        ]
    return ("\n".join(lines) + "\n").encode()


def _private_pem(signer: CryptoSigner) -> bytes:
    passphrase = os.environ.get(UNLOCK_ENV)
    if not passphrase:
        return signer.private_bytes
    private = load_pem_private_key(signer.private_bytes, None)
    return private.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase.encode())
    )


def _file_signer(path: Path, key: SSlibKey) -> CryptoSigner:
    pem = _read_private(path)
    encrypted = b"ENCRYPTED" in pem.split(b"\n", 1)[0]
    passphrase = os.environ.get(UNLOCK_ENV)
    if encrypted and not passphrase:
        raise SigningError(f"{path} is encrypted; set {UNLOCK_ENV} and run again")
    try:
        private = load_pem_private_key(
            pem, passphrase.encode() if encrypted and passphrase else None
        )
    except ValueError as error:
        raise SigningError(
            f"{path} can't be opened: wrong passphrase, or not PKCS#8 PEM"
        ) from error
    return CryptoSigner(private, key)


def _read_private(path: Path) -> bytes:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if os.name != "nt" and mode & 0o077:
            raise SigningError(
                f"{path} can be read by others (mode {mode:04o}); run `chmod 600 {path}`"
            )
        return path.read_bytes()
    except OSError as error:
        raise SigningError(
            f"{path} can't be read ({error.strerror}); bring the offline key back, or set its "
            f"uri in {REGISTRY_NAME}, and run again"
        ) from error


def _secret(_name: str) -> str:
    """What a KMS or HSM asks for (a PIN): taken from the environment, never asked or shown."""
    return os.environ.get(UNLOCK_ENV, "")

"""Keys of the release desk: who can read them, where they may be, what is said when they aren't."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner, Key

from publisher.errors import SettingsError, SigningError
from publisher.keys import UNLOCK_ENV, Keyring


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path / "keys")


def _file(ring: Keyring) -> Path:
    return ring.path(ring.entries[0])


def _public_pem(signer: CryptoSigner) -> bytes:
    return signer._private_key.public_key().public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )


def test_only_the_owner_can_read_a_key(ring: Keyring) -> None:
    ring.create("rollout")
    path = _file(ring)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((path.parent / "keys.toml").stat().st_mode) == 0o600


def test_a_key_that_others_can_read_is_refused(ring: Keyring) -> None:
    key = ring.create("rollout")
    _file(ring).chmod(0o640)
    with pytest.raises(SigningError, match=r"mode 0640.*chmod 600"):
        Keyring(_file(ring).parent).signer(key.keyid)


def test_a_reopened_ring_signs_with_the_same_key(ring: Keyring) -> None:
    key = ring.create("rollout")
    signer = Keyring(_file(ring).parent).signer(key.keyid)
    key.verify_signature(signer.sign(b"data"), b"data")


def test_a_passphrase_encrypts_the_file_and_is_never_said(
    ring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(UNLOCK_ENV, "open sesame")
    key = ring.create("rollout")
    path = _file(ring)
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in path.read_bytes()
    Keyring(path.parent).signer(key.keyid)

    monkeypatch.setenv(UNLOCK_ENV, "open barley")
    with pytest.raises(SigningError, match="wrong passphrase") as raised:
        Keyring(path.parent).signer(key.keyid)
    assert "barley" not in str(raised.value)

    monkeypatch.delenv(UNLOCK_ENV)
    with pytest.raises(SigningError, match=f"is encrypted; set {UNLOCK_ENV}"):
        Keyring(path.parent).signer(key.keyid)


def test_a_key_file_from_before_the_passphrase_still_opens(
    ring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ring.create("rollout")
    monkeypatch.setenv(UNLOCK_ENV, "open sesame")
    Keyring(_file(ring).parent).signer(key.keyid)


def test_an_offline_key_is_named_with_its_place(ring: Keyring) -> None:
    key = ring.create("root")
    path = _file(ring)
    path.unlink()
    assert not ring.is_here(key.keyid)
    with pytest.raises(SigningError, match="bring the offline key back"):
        Keyring(path.parent).signer(key.keyid)


def test_an_unregistered_key_is_named(ring: Keyring) -> None:
    with pytest.raises(SigningError, match=r"key abc isn't in .*keys\.toml"):
        ring.signer("abc")
    assert ring.whereabouts(["abc"]) == "abc (not registered)"


def test_another_key_in_the_file_is_refused(ring: Keyring) -> None:
    key = ring.create("rollout")
    path = _file(ring)
    path.write_bytes(CryptoSigner.generate_ed25519().private_bytes)
    with pytest.raises(SigningError, match="does not match public key"):
        Keyring(path.parent).signer(key.keyid)


def test_rubbish_in_a_key_file_is_refused(ring: Keyring) -> None:
    key = ring.create("rollout")
    path = _file(ring)
    path.write_bytes(b"rubbish")
    with pytest.raises(SigningError, match="not PKCS#8 PEM"):
        Keyring(path.parent).signer(key.keyid)


def test_a_key_behind_a_uri_is_adopted_once_it_has_signed(ring: Keyring, tmp_path: Path) -> None:
    signer = CryptoSigner.generate_ed25519()
    path = tmp_path / 'else"where.pem'
    path.write_bytes(signer.private_bytes)
    path.chmod(0o600)
    (tmp_path / "keys").mkdir()
    key = ring.adopt("rollout", uri=f"file2:{path}", public_pem=_public_pem(signer))
    again = Keyring(tmp_path / "keys")
    key.verify_signature(again.signer(key.keyid).sign(b"data"), b"data")


def test_a_key_that_cannot_sign_is_not_adopted(ring: Keyring, tmp_path: Path) -> None:
    pem = _public_pem(CryptoSigner.generate_ed25519())
    with pytest.raises(SigningError, match="Unsupported private key scheme nokms"):
        ring.adopt("rollout", uri="nokms:1", public_pem=pem)
    with pytest.raises(SigningError, match="isn't PEM"):
        ring.adopt("rollout", uri="nokms:1", public_pem=b"x")
    assert ring.entries == ()


def test_a_signer_whose_signature_does_not_verify_is_not_adopted(
    ring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = _public_pem(CryptoSigner.generate_ed25519())
    monkeypatch.setattr(ring, "_open", lambda entry: CryptoSigner.generate_ed25519())
    with pytest.raises(SigningError, match="doesn't verify with the public key"):
        ring.adopt("rollout", uri="hsm:1", public_pem=pem)


def test_a_module_that_asks_for_a_pin_gets_it_from_the_environment(
    ring: Keyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer = CryptoSigner.generate_ed25519()
    asked: list[str] = []

    class Module:
        """A hardware module that wants a PIN."""

        @classmethod
        def from_priv_key_uri(
            cls, uri: str, key: Key, secrets: Callable[[str], str]
        ) -> CryptoSigner:
            asked.append(secrets("pin"))
            return signer

    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "testmodule", Module)
    monkeypatch.setenv(UNLOCK_ENV, "1234")
    (tmp_path / "keys").mkdir()
    key = ring.adopt("rollout", uri="testmodule:1", public_pem=_public_pem(signer))
    assert asked == ["1234"]
    assert ring.is_here(key.keyid)
    assert "1234" not in (tmp_path / "keys" / "keys.toml").read_text()


def test_a_forgotten_key_leaves_no_file(ring: Keyring) -> None:
    key = ring.create("rollout")
    path = _file(ring)
    ring.forget(key.keyid)
    ring.forget(key.keyid)
    assert not path.exists()
    assert Keyring(path.parent).entries == ()


def test_a_damaged_registry_is_named(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text("[[key]]\nid = 3")
    with pytest.raises(SettingsError, match=r"keys\.toml: key\[0\]\.id: 3, expected a text"):
        Keyring(tmp_path)

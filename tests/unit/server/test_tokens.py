"""Tokens are recognised by their form alone, and never show their secret."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.accounts import tokens

KINDS = st.sampled_from(list(tokens.PREFIXES))
IDS = st.binary(min_size=16, max_size=16)
SECRETS = st.binary(min_size=32, max_size=32)
PINS = st.none() | st.from_regex(r"[0-9a-f]{64}", fullmatch=True)


@given(KINDS, IDS, SECRETS, PINS)
def test_what_is_made_is_parsed(
    kind: tokens.Kind, id_bytes: bytes, secret_bytes: bytes, pin: str | None
) -> None:
    text = tokens.make(kind, id_bytes=id_bytes, secret_bytes=secret_bytes, pin=pin)
    token = tokens.parse(text)
    assert token is not None
    assert (token.kind, token.id, token.pin) == (kind, id_bytes.hex(), pin)
    assert tokens.matches(token.secret, tokens.digest(token.secret))
    assert token.secret in text
    assert token.secret not in f"{token} {token!r} {token.__rich_repr__()} {[token]}"


@given(st.text())
def test_anything_else_is_none_and_never_an_error(text: str) -> None:
    assert tokens.parse(text) is None


@given(KINDS, IDS, SECRETS, PINS, st.data())
def test_a_changed_character_never_gives_the_same_token(
    kind: tokens.Kind, id_bytes: bytes, secret_bytes: bytes, pin: str | None, data: st.DataObject
) -> None:
    text = tokens.make(kind, id_bytes=id_bytes, secret_bytes=secret_bytes, pin=pin)
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters().filter(lambda character: character != text[at]))
    before = tokens.parse(text)
    after = tokens.parse(text[:at] + other + text[at + 1 :])
    assert before is not None
    assert after is None or after != before
    if after is not None and (after.kind, after.id, after.pin) == (kind, before.id, pin):
        assert not tokens.matches(after.secret, tokens.digest(before.secret))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "\n",
        lambda text: " " + text,
        lambda text: text.upper(),
        lambda text: text + "_",
        lambda text: text + "_" + "0" * 63,
        lambda text: text.replace("hfadm", "hfxxx"),
        lambda text: text[:-1] + "٣",
        lambda text: text * 1000,
    ],
)
def test_what_is_nearly_a_token_is_none(change: object) -> None:
    text = tokens.make("admin", id_bytes=b"i" * 16, secret_bytes=b"s" * 32)
    assert callable(change)
    assert tokens.parse(change(text)) is None


def test_a_token_of_too_few_random_bytes_is_not_made() -> None:
    with pytest.raises(ValueError, match="needs 16 and 32 bytes"):
        tokens.make("admin", id_bytes=b"i" * 16, secret_bytes=b"s" * 31)


def test_no_word_of_a_secret_is_a_digest_of_another() -> None:
    assert not tokens.matches("a", tokens.digest("b"))
    assert not tokens.matches("", "")

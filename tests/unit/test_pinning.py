"""What a token and an address say before anybody is asked."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.fetcher import pinning

PLAIN = f"hfenr_{'0a' * 16}_{'_-Aa0' * 8}abc"
PIN = hashlib.sha256(b"an authority").hexdigest()


def test_a_pin_is_read_from_a_token_whose_secret_has_the_same_mark_in_it() -> None:
    assert pinning.aim("https://s:8443/", f"{PLAIN}_{PIN}") == ("https://s:8443", PIN, "")
    assert pinning.aim("https://s/holdfast/", PLAIN) == ("https://s/holdfast", None, "")


def test_http_is_taken_with_a_warning() -> None:
    assert "http://" in pinning.aim("http://s", PLAIN).warning
    aim = pinning.aim("http://s", f"{PLAIN}_{PIN}")
    assert aim.pin is None
    assert "pin" in aim.warning


@pytest.mark.parametrize(
    "url",
    [
        "", "s:8443", "ftp://s", "https://", "https://u:p@s", "https://s?x", "https://s#x",
        "https://s:99999", "https://a b", "https://s\n", "https://[::1", "file:///s", "https://é",
        f"https://s/{'x' * 3000}",
    ],
)  # fmt: skip
def test_what_is_no_servers_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="address") as caught:
        pinning.aim(url, PLAIN)
    assert PLAIN not in str(caught.value)


@given(token=st.text(max_size=300))
def test_what_is_no_token_is_refused_without_being_repeated(token: str) -> None:
    with pytest.raises(ValueError, match="no enrolment token") as caught:
        pinning.aim("https://s", token)
    assert len(token) < 9 or token not in str(caught.value)


def test_only_the_pinned_certificate_is_taken() -> None:
    assert pinning.is_pinned(b"an authority", PIN)
    assert not pinning.is_pinned(b"another authority", PIN)

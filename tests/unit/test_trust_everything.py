"""TrustedFeed.everything: all that is signed by who may sign it, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from feed import trust
from feed.errors import TransferError, TrustError
from feed.transport import Transport
from feed.trust import TrustedFeed
from tests.support.tufrepo import TufRepo, holdfast_repo

FULL = "components/virus-pattern/171/full"


@pytest.fixture
def transport() -> Iterator[Transport]:
    with Transport(proxy="", attempts=1) as made:
        yield made


@pytest.fixture
def repo(tmp_path: Path) -> TufRepo:
    made = holdfast_repo(tmp_path / "feed", "virus-pattern", "engine")
    made.add_target(FULL, b"pattern 171", role="virus-pattern")
    made.add_target("releases/1.json", b"{}", role="releases")
    made.publish()
    return made


def client(repo: TufRepo, transport: Transport) -> TrustedFeed:
    state = repo.folder.parent / "state"
    return TrustedFeed(state, repo.metadata_url, repo.targets_url, repo.trusted_root, transport)


def paths(feed: TrustedFeed) -> list[str]:
    return sorted(item.path for item in feed.everything())


def test_every_role_is_visited(repo: TufRepo, transport: Transport) -> None:
    feed = client(repo, transport)
    assert paths(feed) == [FULL, "releases/1.json"]
    roles = {name.partition(".")[2] for name in feed.metadata()}
    assert {"virus-pattern.json", "engine.json", "releases.json", "rollout.json"} <= roles


def test_the_metadata_is_the_repositorys_byte_for_byte(repo: TufRepo, transport: Transport) -> None:
    feed = client(repo, transport)
    feed.everything()
    for name, data in feed.metadata().items():
        assert data == (repo.folder / "metadata" / name).read_bytes()


def test_what_a_role_may_not_sign_is_left_out(repo: TufRepo, transport: Transport) -> None:
    repo.add_target("releases/evil.json", b"{}", role="virus-pattern")
    repo.add_target("components/engine/1/full", b"not mine", role="virus-pattern")
    repo.publish()
    assert paths(client(repo, transport)) == [FULL, "releases/1.json"]


def test_roles_that_delegate_in_a_circle_end(repo: TufRepo, transport: Transport) -> None:
    repo.delegate("inner", ["components/virus-pattern/*/*"], parent="virus-pattern")
    repo.add_target("components/virus-pattern/173/full", b"173", role="inner")
    inner = repo.targets("inner")
    inner.delegations = repo.roles["targets"].signed.delegations
    repo.publish()
    assert "components/virus-pattern/173/full" in paths(client(repo, transport))


def test_hash_bins_are_visited(tmp_path: Path, transport: Transport) -> None:
    repo = TufRepo(tmp_path / "feed")
    repo.delegate_bins("bin", bit_length=3)
    repo.publish()
    assert paths(client(repo, transport)) == []


def test_too_many_roles_are_refused(
    repo: TufRepo, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "ROLES_MAX", 3)
    with pytest.raises(TrustError, match="more than 3 roles"):
        client(repo, transport).everything()


def test_too_many_hash_bins_are_refused_without_listing_them(
    tmp_path: Path, transport: Transport
) -> None:
    repo = TufRepo(tmp_path / "feed")
    repo.delegate_bins("bin", bit_length=4)
    delegations = repo.targets().delegations
    assert delegations is not None
    assert delegations.succinct_roles is not None
    repo.publish()
    delegations.succinct_roles.bit_length = 32
    delegations.succinct_roles.number_of_bins = 1 << 32
    repo.changed = {"targets"}
    repo.publish()
    with pytest.raises((TrustError, TransferError)):
        client(repo, transport).everything()


def test_too_many_targets_are_refused(
    repo: TufRepo, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "TARGETS_MAX", 1)
    with pytest.raises(TrustError, match="more than 1 targets"):
        client(repo, transport).everything()


def test_a_role_that_is_missing_is_the_roads_fault(repo: TufRepo, transport: Transport) -> None:
    repo.path_of("engine").unlink()
    feed = client(repo, transport)
    with pytest.raises(TransferError, match=r"engine\.json: no such file"):
        feed.everything()


def test_a_role_signed_by_a_stranger_is_refused(repo: TufRepo, transport: Transport) -> None:
    repo.sign("engine", repo.keys["virus-pattern"])
    repo.write("engine")
    with pytest.raises(TrustError, match="engine metadata isn't signed"):
        client(repo, transport).everything()

"""The attacks that the TUF specification lists (section 1.5.2), one by one, over real HTTP.

Each attack starts from a client that trusts a good repository, and ends with
that client still trusting exactly what it trusted before.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata

from feed.errors import ExpiredError, TransferError, TrustError
from feed.transport import Transport
from feed.trust import TrustedFeed
from tests.support.feedserver import Fault, FeedServer
from tests.support.tufrepo import TufRepo, holdfast_repo

FULL = "components/virus-pattern/171/full"
RELEASE = "releases/2026-01.json"


@dataclass
class Site:
    """A repository, a server before it, and clients of it."""

    repo: TufRepo
    server: FeedServer
    transport: Transport
    state: Path

    def client(self, **options: Any) -> TrustedFeed:
        url = self.server.url
        return TrustedFeed(
            self.state,
            f"{url}metadata",
            f"{url}targets",
            self.repo.trusted_root,
            self.transport,
            **{"idle_check": False} | options,
        )

    def stored(self) -> dict[str, bytes]:
        """The trusted metadata by file name."""
        return {file.name: file.read_bytes() for file in self.state.glob("*.json")}

    def version(self, role: str) -> int:
        """The version of a role that the client trusts."""
        return int(Metadata.from_bytes(self.stored()[f"{role}.json"]).signed.version)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    yield from _site(tmp_path, holdfast_repo(tmp_path / "feed", "virus-pattern"))


@pytest.fixture
def hashed_site(tmp_path: Path) -> Iterator[Site]:
    """One whose timestamp and snapshot list lengths and digests too."""
    yield from _site(tmp_path, holdfast_repo(tmp_path / "feed", "virus-pattern", hashes=True))


def _site(tmp_path: Path, repo: TufRepo) -> Iterator[Site]:
    repo.add_target(FULL, b"pattern 171", role="virus-pattern")
    repo.add_target(RELEASE, b"{}", role="releases")
    repo.publish()
    with (
        FeedServer(repo.folder) as server,
        Transport(proxy="", attempts=2, read_timeout_s=5, sleep=lambda _s: None) as transport,
    ):
        yield Site(repo, server, transport, tmp_path / "state")


def refused(site: Site, match: str, kind: type[Exception] = TrustError) -> str:
    """Refresh; it must be refused and leave the trusted metadata alone."""
    before = site.stored()
    with pytest.raises(kind, match=match) as caught:
        site.client().refresh()
    assert site.stored() == before
    return str(caught.value)


def test_arbitrary_installation_is_refused(site: Site, tmp_path: Path) -> None:
    feed = site.client()
    site.repo.target_file(FULL, b"pattern 171").write_bytes(b"malware 171")
    with pytest.raises(TrustError, match=r"its sha256 is .* is signed; discarded"):
        feed.download(FULL, tmp_path / "out")
    assert list((tmp_path / "out").rglob("*.*")) == []
    assert not (tmp_path / "out" / FULL).exists()


def test_endless_metadata_is_cut(site: Site) -> None:
    site.client().refresh()
    site.server.faults["timestamp.json"] = Fault(endless=True)
    refused(site, "timestamp metadata: .* sends more than the 16,384 bytes")
    assert site.server.log[-1].sent < 1 << 26


def test_an_endless_target_is_cut_at_its_signed_length(site: Site, tmp_path: Path) -> None:
    feed = site.client()
    feed.refresh()
    site.server.faults["full"] = Fault(endless=True)
    with pytest.raises(TrustError, match="sends more than the 11 bytes expected"):
        feed.download(FULL, tmp_path / "out")
    assert not (tmp_path / "out" / FULL).exists()


def test_extraneous_dependencies_are_refused(site: Site) -> None:
    # The component's role tries to bring in a release, which is another role's say.
    site.repo.add_target("releases/evil.json", b"{}", role="virus-pattern")
    site.repo.publish()
    feed = site.client()
    assert feed.find("releases/evil.json") is None
    assert feed.find(FULL) is not None


def test_a_fast_forward_attack_is_recovered_from_by_rotating_keys(site: Site) -> None:
    site.client().refresh()
    good = {role: site.repo.roles[role].signed.version for role in ("timestamp", "snapshot")}
    site.repo.roles["snapshot"].signed.version = 2**31
    site.repo.roles["timestamp"].signed.version = 2**31
    site.repo.publish()  # a thief holds both online keys
    site.client().refresh()
    assert site.version("timestamp") > 2**31

    for role in ("timestamp", "snapshot"):
        site.repo.roles[role].signed.version = good[role]
    site.repo.publish()
    refused(site, "older than seen before")
    site.repo.rotate("snapshot")
    site.repo.rotate("timestamp")
    site.repo.publish()
    site.client().refresh()
    assert site.version("timestamp") < 2**31
    assert site.version("snapshot") < 2**31


def test_a_fast_forward_of_the_snapshot_alone_is_recovered_from(site: Site) -> None:
    site.client().refresh()
    good = site.repo.roles["snapshot"].signed.version
    site.repo.roles["snapshot"].signed.version = 2**31
    site.repo.publish()
    site.client().refresh()
    site.repo.roles["snapshot"].signed.version = good
    site.repo.rotate("snapshot")
    site.repo.publish()
    site.client().refresh()
    assert site.version("snapshot") == good + 1


def test_an_indefinite_freeze_ends_when_the_timestamp_expires(site: Site) -> None:
    site.client().refresh()
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=31)
    text = refused_at(site, later)
    assert f"{site.repo.roles['timestamp'].signed.expires:%Y-%m-%d}" in text
    assert "protection goes on" in text


def refused_at(site: Site, now: datetime.datetime) -> str:
    with pytest.raises(ExpiredError, match="timestamp metadata expired") as caught:
        site.client(now=lambda: now).refresh()
    return str(caught.value)


def test_a_malicious_mirror_can_withhold_but_not_author(site: Site, tmp_path: Path) -> None:
    feed = site.client()
    feed.refresh()
    before = site.stored()
    site.server.faults["timestamp.json"] = Fault(status=404)
    with pytest.raises(TransferError, match="404"):
        site.client().refresh()
    site.server.faults["timestamp.json"] = Fault(body=b"<html>Please log in</html>")
    with pytest.raises(TrustError, match="timestamp metadata doesn't parse"):
        site.client().refresh()
    stranger = TufRepo(tmp_path / "stranger")
    fake = stranger.path_of("timestamp").read_bytes()
    site.server.faults["timestamp.json"] = Fault(body=fake)
    with pytest.raises(TrustError, match="isn't signed by enough of the keys"):
        site.client().refresh()
    assert site.stored() == before


def test_mix_and_match_is_refused(hashed_site: Site) -> None:
    site = hashed_site
    site.client().refresh()
    old = site.repo.path_of("targets").read_bytes()
    site.repo.targets().unrecognized_fields["x"] = 1
    site.repo.publish()
    # The newest snapshot with the targets of the release before.
    site.repo.path_of("targets").write_bytes(old)
    with pytest.raises(TrustError, match="targets metadata isn't the file that the metadata above"):
        site.client().refresh()
    assert site.version("targets") == site.repo.roles["targets"].signed.version - 1


def test_a_snapshot_from_elsewhere_is_refused(site: Site, tmp_path: Path) -> None:
    site.client().refresh()
    site.repo.publish()
    stranger = TufRepo(tmp_path / "stranger")
    site.repo.path_of("snapshot").write_bytes(stranger.path_of("snapshot").read_bytes())
    with pytest.raises(TrustError, match="snapshot metadata isn't signed by enough"):
        site.client().refresh()


def test_a_replayed_timestamp_is_refused(site: Site) -> None:
    old = site.repo.path_of("timestamp").read_bytes()
    site.repo.publish()
    site.client().refresh()
    site.repo.path_of("timestamp").write_bytes(old)
    refused(site, "timestamp metadata has another version .* older than seen before")


def test_a_whole_repository_replayed_is_refused(site: Site) -> None:
    old = site.repo.freeze()
    site.repo.add_target(RELEASE, b"{'fixed': 1}", role="releases")
    site.repo.publish()
    site.client().refresh()
    site.repo.thaw(old)
    refused(site, "older than seen before")


def test_a_rolled_back_snapshot_is_refused(site: Site) -> None:
    site.repo.publish()
    site.client().refresh()
    site.repo.roles["snapshot"].signed.version -= 2
    site.repo.publish()
    refused(site, "snapshot version must be >=")


def test_rolled_back_targets_are_refused(site: Site) -> None:
    site.repo.targets()
    site.repo.publish()
    site.client().refresh()
    site.repo.targets().version -= 2
    site.repo.publish()
    with pytest.raises(TrustError, match=r"Expected targets\.json version"):
        site.client().refresh()
    assert site.version("snapshot") == site.repo.roles["snapshot"].signed.version - 1


def test_a_role_dropped_from_the_snapshot_is_refused(site: Site) -> None:
    site.client().refresh()
    del site.repo.roles["snapshot"].signed.meta["virus-pattern.json"]
    site.repo.publish()
    with pytest.raises(TrustError, match=r"missing info for 'virus-pattern\.json'"):
        site.client().refresh()


def test_a_stolen_key_below_the_threshold_signs_nothing(tmp_path: Path) -> None:
    for made in _site(tmp_path, holdfast_repo(tmp_path / "feed", "virus-pattern", keys=2)):
        made.client().refresh()
        made.repo.targets().unrecognized_fields["x"] = "evil"
        made.repo.publish()
        made.repo.sign("targets", made.repo.keys["targets"][:1])
        made.repo.write("targets")
        with pytest.raises(TrustError, match=r"targets metadata isn't signed by enough .*1/2"):
            made.client().refresh()


def test_one_key_signing_twice_is_one_signature(tmp_path: Path) -> None:
    for made in _site(tmp_path, holdfast_repo(tmp_path / "feed", "virus-pattern", keys=2)):
        key = made.repo.keys["timestamp"][0]
        made.repo.sign("timestamp", [key])
        doubled = made.repo.roles["timestamp"].to_dict()
        doubled["signatures"] *= 2
        made.server.faults["timestamp.json"] = Fault(body=_json(doubled))
        with pytest.raises(TrustError, match="timestamp metadata doesn't parse"):
            made.client().refresh()


def test_the_wrong_software_is_never_installed_under_another_name(
    site: Site, tmp_path: Path
) -> None:
    # A mirror answers for one signed target with another signed one.
    site.repo.add_target("components/virus-pattern/169/full", b"pattern 169", role="virus-pattern")
    site.repo.publish()
    wrong = site.repo.target_file("components/virus-pattern/169/full", b"pattern 169")
    site.repo.target_file(FULL, b"pattern 171").write_bytes(wrong.read_bytes())
    with pytest.raises(TrustError, match="is signed; discarded"):
        site.client().download(FULL, tmp_path / "out")


def test_slow_metadata_is_cut(site: Site) -> None:
    site.client().refresh()
    site.server.faults["timestamp.json"] = Fault(drip_s=0.05)
    before = site.stored()
    with Transport(
        proxy="", attempts=1, read_timeout_s=0.3, slowest_bytes_per_s=10_000
    ) as transport:
        site.transport = transport
        with pytest.raises(TransferError, match="below 10000 bytes/s"):
            site.client().refresh()
    assert site.stored() == before


def test_unsigned_metadata_is_refused(site: Site) -> None:
    site.client().refresh()
    site.repo.publish()
    site.repo.sign("timestamp", [])
    site.repo.write("timestamp")
    refused(site, "isn't signed by enough of the keys")


def test_metadata_signed_by_a_strangers_key_is_refused(site: Site) -> None:
    site.client().refresh()
    site.repo.publish()
    site.repo.sign("timestamp", [CryptoSigner.generate_ed25519()])
    site.repo.write("timestamp")
    refused(site, "isn't signed by enough of the keys")


def test_a_bit_flipped_in_signed_metadata_is_refused(site: Site) -> None:
    site.client().refresh()
    site.repo.publish()
    altered = (
        site.repo.path_of("timestamp").read_bytes().replace(b'"version":4}}', b'"version":7}}')
    )
    assert altered != site.repo.path_of("timestamp").read_bytes()
    site.repo.path_of("timestamp").write_bytes(altered)
    refused(site, "isn't signed by enough of the keys")


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "virus-pattern"])
def test_each_expired_role_is_named_with_its_date(site: Site, role: str) -> None:
    expired = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    expired -= datetime.timedelta(days=2)
    _publish_expired(site.repo, role, expired)
    with pytest.raises(ExpiredError) as caught:
        site.client().find(FULL)
    assert f"the feed's {role} metadata expired on {expired:%Y-%m-%d}" in str(caught.value)


def _publish_expired(repo: TufRepo, role: str, expired: datetime.datetime) -> None:
    """Publish with only `role` expired."""
    if role == "root":
        repo.publish_root()
    elif role not in {"snapshot", "timestamp"}:
        repo.targets(role)
    repo.publish()
    repo.roles[role].signed.expires = expired
    repo.sign(role)
    repo.write(role)


def test_roots_are_rotated_across_several_versions(site: Site) -> None:
    site.client().refresh()
    for _ in range(3):
        site.repo.rotate("root")
    site.repo.rotate("targets")
    site.repo.targets()
    site.repo.publish()
    assert site.client().refresh()
    assert site.version("root") == 5
    assert site.client().find(FULL) is not None
    history = sorted(file.name for file in (site.state / "root_history").iterdir())
    assert history == [f"{number}.root.json" for number in range(1, 6)]


def test_a_root_that_skips_a_version_is_refused(site: Site) -> None:
    site.client().refresh()
    site.repo.root.version += 1
    site.repo.publish_root()
    site.repo.path_of("root", 2).write_bytes(site.repo.path_of("root", 3).read_bytes())
    refused(site, "Expected root version 2 instead got version 3")


def test_a_root_the_old_keys_didnt_sign_is_refused(site: Site) -> None:
    site.client().refresh()
    site.repo.rotate("root")
    site.repo.sign("root", site.repo.keys["root"])
    site.repo.write("root")
    refused(site, "root metadata isn't signed by enough")


def test_a_root_key_that_was_rotated_away_signs_no_more(site: Site) -> None:
    old = list(site.repo.keys["root"])
    site.repo.rotate("root")
    site.client().refresh()
    site.repo.root.version += 1
    site.repo.sign("root", old)
    site.repo.write("root")
    refused(site, "root metadata isn't signed by enough")


def test_a_terminating_delegation_ends_the_search(tmp_path: Path) -> None:
    for terminating in (True, False):
        folder = tmp_path / str(terminating)
        repo = TufRepo(folder / "feed")
        repo.delegate("first", ["shared/*"], terminating=terminating)
        repo.delegate("second", ["shared/*"])
        repo.add_target("shared/b", b"only the second has it", role="second")
        repo.publish()
        with Transport() as transport:
            feed = TrustedFeed(
                folder / "state",
                repo.metadata_url,
                repo.targets_url,
                repo.trusted_root,
                transport,
            )
            assert (feed.find("shared/b") is None) is terminating


def test_the_first_delegation_that_lists_a_target_decides(tmp_path: Path) -> None:
    repo = TufRepo(tmp_path / "feed")
    repo.delegate("first", ["shared/*"], terminating=False)
    repo.delegate("second", ["shared/*"])
    wanted = repo.add_target("shared/a", b"the first's", role="first")
    repo.add_target("shared/a", b"the second's, longer", role="second")
    repo.publish()
    with Transport() as transport:
        feed = TrustedFeed(
            tmp_path / "state", repo.metadata_url, repo.targets_url, repo.trusted_root, transport
        )
        assert feed.find("shared/a") == wanted


def test_a_delegation_reaches_only_its_own_paths(site: Site) -> None:
    site.repo.delegate("greedy", ["components/greedy/*/*"])
    site.repo.add_target(FULL, b"not yours", role="greedy")
    site.repo.publish()
    found = site.client().find(FULL)
    assert found is not None
    assert found.length == len(b"pattern 171")


def test_a_role_signed_by_a_key_its_parent_doesnt_name_is_refused(site: Site) -> None:
    site.client().refresh()
    site.repo.targets("virus-pattern")
    site.repo.publish()
    site.repo.sign("virus-pattern", site.repo.keys["releases"])
    site.repo.write("virus-pattern")
    with pytest.raises(TrustError, match="virus-pattern metadata isn't signed by enough"):
        site.client().find(FULL)


def test_a_delegated_role_cant_replace_a_top_level_one(site: Site) -> None:
    content = site.repo.roles["targets"].to_dict()
    role = dict(content["signed"]["delegations"]["roles"][0], name="timestamp")
    content["signed"]["delegations"]["roles"].append(role)
    site.server.faults["targets.json"] = Fault(body=_json(content))
    with pytest.raises(TrustError, match="targets metadata doesn't parse"):
        site.client().refresh()


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[" * 10_000, b'{"signed": {}}', b"\xff\xfe", b'{"signed": 1e999}'],
    ids=["empty", "nothing", "deep", "hollow", "not-utf-8", "infinite"],
)
@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_rubbish_is_refused(site: Site, role: str, body: bytes) -> None:
    site.server.faults[f"{role}.json"] = Fault(body=body)
    with pytest.raises(TrustError, match=f"the feed's {role} metadata doesn't parse"):
        site.client().refresh()


def test_a_trusted_root_that_is_none_is_refused(site: Site) -> None:
    site.repo.trusted_root = b"not a root"
    with pytest.raises(TrustError, match="the trusted root this machine was given"):
        site.client().refresh()


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode()

"""TrustedFeed: what a check costs, what it keeps, and strangers' repositories."""

from __future__ import annotations

import datetime
import errno
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata
from tuf.ngclient import UpdaterConfig

from feed import durable
from feed.errors import ExpiredError, RoomError, TransferError, TrustError
from feed.transport import Transport
from feed.trust import TrustedFeed
from tests.support import tuf_client
from tests.support.feedserver import Fault, FeedServer
from tests.support.tufrepo import TufRepo, holdfast_repo

HOUR = datetime.timedelta(hours=1)
DAY = datetime.timedelta(days=1)
FULL = "components/virus-pattern/171/full"


@dataclass
class Site:
    """A served repository and clients with one state folder."""

    repo: TufRepo
    server: FeedServer
    transport: Transport
    state: Path

    def client(self, **options: Any) -> TrustedFeed:
        url = self.server.url
        return TrustedFeed(
            self.state,
            f"{url}metadata/",
            f"{url}targets/",
            self.repo.trusted_root,
            self.transport,
            **options,
        )

    def asked(self) -> list[str]:
        """The metadata files asked for since the last call."""
        paths = [path.removeprefix("metadata/") for path in self.server.paths]
        self.server.log.clear()
        return paths


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    repo = holdfast_repo(tmp_path / "feed", "virus-pattern")
    repo.add_target(FULL, b"pattern 171", role="virus-pattern")
    repo.add_target("releases/1.json", b"{}", role="releases")
    repo.publish()
    with FeedServer(repo.folder) as server, Transport(proxy="", attempts=1) as transport:
        yield Site(repo, server, transport, tmp_path / "state")


def at(moment: datetime.timedelta) -> Callable[[], datetime.datetime]:
    """A wall clock that is off by `moment`."""
    return lambda: datetime.datetime.now(datetime.UTC) + moment


def test_a_check_that_finds_nothing_new_is_one_conditional_request(site: Site) -> None:
    assert site.client().refresh()
    site.server.log.clear()
    assert not site.client().refresh()
    assert [(entry.path, entry.status, entry.sent) for entry in site.server.log] == [
        ("metadata/timestamp.json", 304, 0)
    ]


def test_without_an_etag_the_date_makes_the_request_conditional(site: Site) -> None:
    site.server.faults["timestamp.json"] = Fault(no_etag=True)
    site.client().refresh()
    site.server.log.clear()
    assert not site.client().refresh()
    assert [entry.status for entry in site.server.log] == [304]


def test_lookups_after_an_idle_check_ask_for_nothing_known(site: Site) -> None:
    first = site.client()
    assert first.find(FULL) is not None
    site.asked()
    second = site.client()
    second.refresh()
    assert second.find(FULL) is not None
    assert second.find("releases/1.json") is not None
    assert site.asked() == ["timestamp.json", "2.releases.json"]


def test_news_read_by_the_idle_check_arent_read_twice(site: Site) -> None:
    site.client().refresh()
    site.repo.publish()
    site.asked()
    assert site.client().refresh()
    assert site.asked() == ["timestamp.json", "2.root.json", "4.snapshot.json"]


def test_a_timestamp_signed_anew_is_no_news(site: Site) -> None:
    site.client().refresh()
    timestamp = site.repo.roles["timestamp"].signed
    timestamp.version += 1
    site.repo.sign("timestamp")
    site.repo.write("timestamp")
    assert not site.client().refresh()


def test_once_a_day_everything_is_asked_for(site: Site) -> None:
    site.client().refresh()
    site.repo.rotate("root")
    site.client().refresh()
    assert version(site, "root") == 1
    assert site.client(now=at(DAY)).refresh()
    assert version(site, "root") == 2


def version(site: Site, role: str) -> int:
    return int(Metadata.from_file(str(site.state / f"{role}.json")).signed.version)


def test_the_idle_check_can_be_switched_off(site: Site) -> None:
    site.client(idle_check=False).refresh()
    assert not (site.state / "last-refresh").exists()
    site.asked()
    site.client(idle_check=False).refresh()
    assert site.asked() == ["2.root.json", "timestamp.json"]


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_source_may_say_in_any_way_that_there_is_no_next_root(site: Site, status: int) -> None:
    site.server.faults["metadata/2.root.json"] = Fault(status=status)
    site.client(idle_check=False).refresh()
    assert site.asked()[0] == "2.root.json"


def test_another_source_is_asked_in_full(site: Site, tmp_path: Path) -> None:
    site.client().refresh()
    with FeedServer(site.repo.folder) as other:
        TrustedFeed(
            site.state, f"{other.url}metadata", "", site.repo.trusted_root, site.transport
        ).refresh()
        assert other.paths == ["metadata/2.root.json", "metadata/timestamp.json"]


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", b'{"source": 1}'])
def test_a_damaged_note_costs_a_full_check(site: Site, damage: bytes) -> None:
    site.client().refresh()
    (site.state / "last-refresh").write_bytes(damage)
    site.asked()
    site.client().refresh()
    assert site.asked() == ["2.root.json", "timestamp.json"]


@pytest.mark.parametrize("name", ["timestamp", "snapshot", "targets"])
def test_damaged_metadata_on_disk_is_fetched_again(site: Site, name: str) -> None:
    site.client().refresh()
    (site.state / f"{name}.json").write_bytes(b"{torn")
    assert site.client().find(FULL) is not None
    assert version(site, name) == site.repo.roles[name].signed.version


def test_a_failed_refresh_ends_the_idle_checks_until_one_succeeds(site: Site) -> None:
    site.client().refresh()
    site.repo.publish()
    site.server.faults["snapshot.json"] = Fault(status=404, times=1)
    with pytest.raises(TransferError):
        site.client().refresh()
    assert site.client().refresh()


def test_endless_news_are_refused_by_the_idle_check_too(site: Site) -> None:
    site.client().refresh()
    site.repo.publish()
    site.server.faults["timestamp.json"] = Fault(endless=True)
    with pytest.raises(TrustError, match="16,384"):
        site.client().refresh()


def test_a_clock_an_hour_ahead_refuses_only_what_expires_within_it(site: Site) -> None:
    site.repo.lifetime = HOUR / 2
    site.repo.publish()
    site.client().refresh()
    with pytest.raises(ExpiredError, match="or the clock is right"):
        site.client(now=at(HOUR)).refresh()
    assert not site.client().refresh()


def test_a_clock_an_hour_behind_changes_nothing(site: Site) -> None:
    assert site.client(now=at(-HOUR)).refresh()
    assert not site.client().refresh()


def test_a_clock_a_day_back_accepts_the_expired_but_never_the_older(site: Site) -> None:
    old = site.repo.freeze()
    site.repo.lifetime = -HOUR
    site.repo.publish()
    assert site.client(now=at(-DAY)).refresh()
    site.repo.thaw(old)
    with pytest.raises(TrustError, match="older than seen before"):
        site.client(now=at(-DAY)).refresh()


def test_a_clock_set_back_makes_the_next_check_a_full_one(site: Site) -> None:
    site.client().refresh()
    site.asked()
    site.client(now=at(-DAY)).refresh()
    assert site.asked() == ["2.root.json", "timestamp.json"]


def test_an_expired_stored_timestamp_is_never_enough(site: Site) -> None:
    site.repo.lifetime = HOUR
    site.repo.publish()
    site.client().refresh()
    site.asked()
    with pytest.raises(ExpiredError):
        site.client(now=at(2 * HOUR)).refresh()
    assert site.asked()[0] == "2.root.json"


def test_metadata_is_kept_under_unversioned_names(site: Site) -> None:
    site.client().find(FULL)
    names = {file.name for file in site.state.glob("*.json")}
    assert names == {
        "root.json",
        "timestamp.json",
        "snapshot.json",
        "targets.json",
        "virus-pattern.json",
    }
    assert not any(file.is_symlink() for file in site.state.iterdir())
    assert stat.S_IMODE((site.state / "timestamp.json").stat().st_mode) == 0o600


def test_every_kept_file_is_written_durably(site: Site) -> None:
    written: set[str] = set()
    durable.set_fault_hook(
        lambda point, where: written.add(Path(where).name) if point == "fsync" else None
    )
    try:
        site.client().find(FULL)
    finally:
        durable.set_fault_hook(None)
    kept = {file.name for file in site.state.rglob("*") if file.is_file()}
    assert kept == written


class PowerCutError(Exception):
    pass


def test_a_power_cut_at_any_point_leaves_metadata_that_refreshes(
    site: Site, tmp_path: Path
) -> None:
    _from_disk(site).find(FULL)
    site.repo.rotate("timestamp")
    site.repo.targets("virus-pattern")
    site.repo.publish()
    trusted = site.state
    for cut in range(200):
        site.state = tmp_path / f"cut-{cut}"
        shutil.copytree(trusted, site.state)
        if not _is_cut_off(site, cut):
            break
        for name in ("root", "timestamp", "snapshot", "targets"):
            file = site.state / f"{name}.json"
            assert not file.exists() or Metadata.from_file(str(file))
        assert _from_disk(site).find(FULL) is not None
        assert version(site, "timestamp") == site.repo.roles["timestamp"].signed.version
    assert cut > 20


def _is_cut_off(site: Site, after: int) -> bool:
    """Whether the power went before the lookup ended, `after` steps from its start."""
    steps = iter(range(after))

    def stop(_point: str, _where: str) -> None:
        if next(steps, None) is None:
            raise PowerCutError

    durable.set_fault_hook(stop)
    try:
        _from_disk(site).find(FULL)
    except PowerCutError:
        return True
    finally:
        durable.set_fault_hook(None)
    return False


def _from_disk(site: Site) -> TrustedFeed:
    repo = site.repo
    return TrustedFeed(
        site.state, repo.metadata_url, repo.targets_url, repo.trusted_root, site.transport
    )


def test_a_full_disk_is_told_as_such(site: Site) -> None:
    def full(point: str, where: str) -> None:
        if point == "fsync" and where.endswith("snapshot.json"):
            raise OSError(errno.ENOSPC, "No space left on device", where)

    durable.set_fault_hook(full)
    try:
        with pytest.raises(RoomError, match="the disk is full"):
            site.client().refresh()
    finally:
        durable.set_fault_hook(None)
    assert site.client().refresh()


def test_an_exported_feed_is_verified_again_offline(site: Site, tmp_path: Path) -> None:
    for _ in range(2):
        site.repo.rotate("root")
    site.repo.publish()
    feed = site.client()
    wanted = feed.find(FULL)
    feed.export(tmp_path / "incoming")
    names = {file.name for file in (tmp_path / "incoming").iterdir()}
    assert names == {
        "1.root.json",
        "2.root.json",
        "3.root.json",
        "timestamp.json",
        "4.snapshot.json",
        "2.targets.json",
        "2.virus-pattern.json",
    }
    site.server.__exit__(None, None, None)
    offline = _offline(site, tmp_path)
    assert offline.refresh()
    assert offline.find(FULL) == wanted
    with pytest.raises(TransferError, match=r"1\.releases\.json|2\.releases\.json"):
        offline.find("releases/1.json")


def _offline(site: Site, tmp_path: Path) -> TrustedFeed:
    return TrustedFeed(
        tmp_path / "stager",
        (tmp_path / "incoming").as_uri(),
        (tmp_path / "incoming").as_uri(),
        site.repo.trusted_root,
        site.transport,
        idle_check=False,
    )


def test_a_compromised_fetcher_cant_replay_an_older_export(site: Site, tmp_path: Path) -> None:
    feed = site.client()
    feed.refresh()
    feed.export(tmp_path / "old")
    site.repo.publish()
    feed.refresh()
    feed.export(tmp_path / "incoming")
    _offline(site, tmp_path).refresh()
    for file in (tmp_path / "old").iterdir():
        (tmp_path / "incoming" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(TrustError, match="older than seen before"):
        _offline(site, tmp_path).refresh()


def test_an_export_after_an_idle_check_is_whole(site: Site, tmp_path: Path) -> None:
    site.client().find(FULL)
    feed = site.client()
    feed.refresh()
    feed.find(FULL)
    feed.export(tmp_path / "incoming")
    assert _offline(site, tmp_path).find(FULL) is not None


def test_a_download_is_found_under_its_target_name(site: Site, tmp_path: Path) -> None:
    feed = site.client()
    path = feed.download(FULL, tmp_path / "out")
    assert path == tmp_path / "out" / FULL
    assert path.read_bytes() == b"pattern 171"
    site.asked()
    assert feed.download(FULL, tmp_path / "out") == path
    assert site.asked() == []


def test_a_cut_download_is_repeated(site: Site, tmp_path: Path) -> None:
    site.server.faults["full"] = Fault(cut_after=3, times=1)
    with Transport(proxy="", attempts=2, sleep=lambda _s: None) as site.transport:
        assert site.client().download(FULL, tmp_path / "out").read_bytes() == b"pattern 171"


def test_a_target_nobody_signs_is_refused(site: Site, tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="no role of the feed signs it"):
        site.client().download("components/virus-pattern/999/full", tmp_path / "out")


@pytest.mark.parametrize("name", ["../up", "/abs", "a//b", "a/./b", "a/..", "a\\b", "c:d", ""])
def test_a_target_name_never_leads_out_of_the_folder(site: Site, tmp_path: Path, name: str) -> None:
    site.repo.targets().targets[name] = site.repo.roles["releases"].signed.targets[
        "releases/1.json"
    ]
    target = site.repo.roles["targets"].signed.targets[name]
    target.path = name
    site.repo.publish()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TrustError, match="not a path below a folder"):
        site.client(idle_check=False).download(target, tmp_path / "out")
    assert {path for path in tmp_path.rglob("*") if "state" not in path.parts} <= set(before)


def test_a_target_of_the_wrong_length_is_refused(site: Site, tmp_path: Path) -> None:
    site.server.faults["full"] = Fault(body=b"short")
    with pytest.raises(TrustError, match="5 bytes came, 11 are signed"):
        site.client().download(FULL, tmp_path / "out")


def test_a_target_with_an_unknown_digest_is_refused(site: Site, tmp_path: Path) -> None:
    target = site.client().find(FULL)
    assert target is not None
    target.hashes = {"blake9": "00"}
    with pytest.raises(TrustError, match="can't be checked here"):
        site.client().download(target, tmp_path / "out")


def foreign(repo: TufRepo, tmp_path: Path, transport: Transport, **options: Any) -> TrustedFeed:
    return TrustedFeed(
        tmp_path / "state",
        repo.metadata_url,
        repo.targets_url,
        repo.trusted_root,
        transport,
        idle_check=False,
        **options,
    )


@pytest.fixture
def transport() -> Iterator[Transport]:
    with Transport(attempts=1) as running:
        yield running


def test_a_repository_without_consistent_snapshots_is_served(
    tmp_path: Path, transport: Transport
) -> None:
    repo = TufRepo(tmp_path / "feed", consistent=False)
    repo.delegate("role", ["d/*"])
    repo.add_target("d/file", b"content", role="role")
    repo.publish()
    feed = foreign(repo, tmp_path, transport)
    assert feed.download("d/file", tmp_path / "out").read_bytes() == b"content"
    feed.export(tmp_path / "export")
    names = {file.name for file in (tmp_path / "export").iterdir()}
    assert names == {"1.root.json", "timestamp.json", "snapshot.json", "targets.json", "role.json"}


def test_targets_without_digests_in_their_names_are_served(
    tmp_path: Path, transport: Transport
) -> None:
    repo = TufRepo(tmp_path / "feed")
    repo.add_target("file", b"content")
    repo.publish()
    repo.target_file("file", b"content").rename(repo.folder / "targets" / "file")
    feed = foreign(repo, tmp_path, transport, config=UpdaterConfig(prefix_targets_with_hash=False))
    assert feed.download("file", tmp_path / "out").read_bytes() == b"content"


@pytest.mark.parametrize(
    "generate",
    [
        CryptoSigner.generate_ed25519,
        CryptoSigner.generate_ecdsa,
        lambda: CryptoSigner.generate_rsa(size=2048),
        lambda: CryptoSigner.generate_rsa(scheme="rsa-pkcs1v15-sha256", size=2048),
    ],
    ids=["ed25519", "ecdsa", "rsa-pss", "rsa-pkcs1"],
)
def test_other_kinds_of_keys_are_served(
    tmp_path: Path, transport: Transport, generate: Callable[[], CryptoSigner]
) -> None:
    repo = TufRepo(tmp_path / "feed")
    signer = generate()
    repo.delegate("role", ["d/*"], signers=[signer])
    for role in ("timestamp", "snapshot", "targets"):
        repo.keys[role].append(signer)
        repo.root.add_key(signer.public_key, role)
        repo.root.roles[role].threshold = 2
    repo.publish_root()
    repo.add_target("d/file", b"content", role="role")
    repo.targets()
    repo.publish()
    feed = foreign(repo, tmp_path, transport)
    assert feed.download("d/file", tmp_path / "out").read_bytes() == b"content"


def test_hash_bins_are_served(tmp_path: Path, transport: Transport) -> None:
    repo = TufRepo(tmp_path / "feed")
    repo.delegate_bins("bin", bit_length=4)
    bins = repo.roles["targets"].signed.delegations.succinct_roles
    for number in range(20):
        name = f"file-{number}"
        repo.add_target(name, name.encode(), role=bins.get_role_for_target(name))
    repo.publish()
    feed = foreign(repo, tmp_path, transport)
    for number in range(20):
        path = feed.download(f"file-{number}", tmp_path / "out")
        assert path.read_bytes() == f"file-{number}".encode()
    assert feed.find("file-20") is None


def test_nested_delegations_are_served(tmp_path: Path, transport: Transport) -> None:
    repo = TufRepo(tmp_path / "feed", hashes=True)
    parent = "targets"
    for depth in range(6):
        repo.delegate(f"level-{depth}", ["deep/*/*"], parent=parent)
        parent = f"level-{depth}"
    repo.add_target("deep/down/file", b"content", role=parent)
    repo.publish()
    feed = foreign(repo, tmp_path, transport)
    assert feed.download("deep/down/file", tmp_path / "out").read_bytes() == b"content"


def test_roles_that_delegate_in_a_circle_end(tmp_path: Path, transport: Transport) -> None:
    repo = TufRepo(tmp_path / "feed")
    repo.delegate("a", ["*"], terminating=False)
    repo.delegate("b", ["*"], parent="a", terminating=False)
    delegations = repo.roles["targets"].signed.delegations
    repo.targets("b").delegations = delegations
    repo.publish()
    assert foreign(repo, tmp_path, transport).find("nothing") is None


@pytest.mark.parametrize("name", ["?", "#", "/role", "../role", ".", "..", "ü", "a b", "%2F"])
def test_unusual_role_names_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    repo = TufRepo(tmp_path / "feed")
    repo.delegate(name, ["d/*"])
    repo.add_target("d/file", b"content", role=name)
    repo.publish()
    with FeedServer(repo.folder) as server, Transport(proxy="", attempts=1) as http:
        server.faults[f"metadata/1.{name}.json"] = Fault(body=repo.path_of(name).read_bytes())
        feed = TrustedFeed(
            tmp_path / "state",
            f"{server.url}metadata",
            f"{server.url}targets",
            repo.trusted_root,
            http,
            idle_check=False,
        )
        assert feed.find("d/file") is not None
    assert (tmp_path / "state" / f"{urllib.parse.quote(name, '')}.json").is_file()


def test_very_big_versions_are_served(tmp_path: Path, transport: Transport) -> None:
    repo = TufRepo(tmp_path / "feed")
    for role in ("timestamp", "snapshot", "targets"):
        repo.roles[role].signed.version = 2**63
    repo.add_target("file", b"content")
    repo.publish()
    feed = foreign(repo, tmp_path, transport)
    assert feed.download("file", tmp_path / "out").read_bytes() == b"content"


def test_several_digests_of_a_target_all_count(tmp_path: Path, transport: Transport) -> None:
    repo = TufRepo(tmp_path / "feed")
    target = repo.add_target("file", b"content")
    target.hashes["sha512"] = hashlib.sha512(b"other").hexdigest()
    repo.publish()
    with pytest.raises(TrustError, match="its sha512 is"):
        foreign(repo, tmp_path, transport).download("file", tmp_path / "out")


def run_client(site: Site, *arguments: str) -> int:
    where = ("--metadata-dir", str(site.state), "--metadata-url", f"{site.server.url}metadata")
    return tuf_client.main([*where, *arguments])


def test_a_foreign_suite_can_drive_the_client(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root.json"
    root.write_bytes(site.repo.trusted_root)
    out = str(tmp_path / "out")
    download = (
        "--target-name",
        FULL,
        "--target-base-url",
        f"{site.server.url}targets",
        "--target-dir",
        out,
        "download",
    )
    assert run_client(site, "init", str(root)) == 0
    assert run_client(site, "refresh") == 0
    assert run_client(site, *download) == 0
    assert (tmp_path / "out" / FULL).read_bytes() == b"pattern 171"
    for file in site.state.glob("*.json"):
        assert json.loads(file.read_bytes())["signed"]["version"] >= 1
    site.repo.sign("timestamp", [])
    site.repo.write("timestamp")
    assert run_client(site, "refresh") == 1
    assert "isn't signed by enough" in capsys.readouterr().err


def test_the_client_runs_as_a_program_with_a_clock_of_its_own(site: Site, tmp_path: Path) -> None:
    root = tmp_path / "root.json"
    root.write_bytes(site.repo.trusted_root)
    run_client(site, "init", str(root))
    command = [
        sys.executable,
        "-m",
        "tests.support.tuf_client",
        "--metadata-dir",
        str(site.state),
        "--metadata-url",
        f"{site.server.url}metadata",
        "refresh",
    ]
    later = (datetime.datetime.now(datetime.UTC) + 40 * DAY).timestamp()
    done = subprocess.run(
        command,
        env=os.environ | {"FAKE_NOW": str(later)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "expired" in done.stderr
    assert subprocess.run(command, check=False).returncode == 0

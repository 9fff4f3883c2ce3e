"""A mirror follows a real release desk: first fulls, then increments, all or nothing."""

from __future__ import annotations

from pathlib import Path

from server.settings import Policy
from tests.support.feedserver import FeedServer
from tests.support.mirrors import PATTERN, MirrorSite, content
from tests.support.vendor import Vendor


def ship(vendor: Vendor, version: int) -> None:
    vendor.ship(f"r{version}", {PATTERN: (str(version), content(version))})


def test_a_first_sync_serves_the_release_whole(vendor: Vendor, tmp_path: Path) -> None:
    site = MirrorSite(tmp_path / "m", vendor.url, vendor.root)
    done = site.sync()
    assert (done.outcome, done.switched) == ("switched", True), done
    assert done.releases == {"global": "r171"}
    assert site.client().whole_release() == "r171"


def test_the_next_release_is_rebuilt_from_its_increment(vendor: Vendor, tmp_path: Path) -> None:
    site = MirrorSite(tmp_path / "m", vendor.url, vendor.root)
    site.sync()
    ship(vendor, 173)
    with FeedServer(vendor.feed) as server:
        done = site.sync(url=server.url)
        assert done.outcome == "switched", done
        assert [path for path in server.paths if "/components/" in path and "full" in path] == []
    assert done.saved_bytes > 25_000
    assert done.fetched_bytes < 20_000
    assert site.client().whole_release() == "r173"


def test_nothing_new_costs_one_conditional_request(vendor: Vendor, tmp_path: Path) -> None:
    with FeedServer(vendor.feed) as server:
        site = MirrorSite(tmp_path / "m", server.url, vendor.root)
        site.sync()
        before = site.served()
        server.log.clear()
        done = site.sync()
        assert (done.outcome, done.switched) == ("unchanged", False)
        assert [(item.path, item.status) for item in server.log] == [
            ("metadata/timestamp.json", 304)
        ]
    assert site.served() == before


def test_a_new_need_is_fetched_though_nothing_is_new(vendor: Vendor, tmp_path: Path) -> None:
    for version in (173, 175):
        ship(vendor, version)
    site = MirrorSite(tmp_path / "m", vendor.url, vendor.root)
    site.sync()
    wanted = f"components/{PATTERN}/175/from-171.delta"
    assert wanted not in site.names()
    done = site.sync({PATTERN: {"171": 3}})
    assert (done.outcome, wanted in site.names()) == ("unchanged", True)


def test_the_served_metadata_is_the_vendors_byte_for_byte(vendor: Vendor, tmp_path: Path) -> None:
    site = MirrorSite(tmp_path / "m", vendor.url, vendor.root)
    site.sync()
    for path in (site.feed / "metadata").iterdir():
        assert path.read_bytes() == (vendor.feed / "metadata" / path.name).read_bytes()


def test_publisher_to_mirror_to_mirror_to_client(vendor: Vendor, tmp_path: Path) -> None:
    needs = {PATTERN: {"171": 2}}
    upper = MirrorSite(tmp_path / "upper", vendor.url, vendor.root)
    upper.sync(needs)
    with FeedServer(upper.feed) as server:
        lower = MirrorSite(tmp_path / "lower", server.url, vendor.root)
        assert lower.sync(needs).outcome == "switched"
        ship(vendor, 173)
        assert upper.sync(needs).outcome == "switched"
        done = lower.sync(needs)
    assert (done.outcome, lower.client().whole_release()) == ("switched", "r173"), done
    assert done.saved_bytes > 25_000
    assert f"components/{PATTERN}/173/from-171.delta" in lower.names()


def test_all_increments_within_the_versions_kept_are_mirrored_when_asked(
    vendor: Vendor, tmp_path: Path
) -> None:
    for version in (173, 175, 177):
        ship(vendor, version)
    site = MirrorSite(tmp_path / "m", vendor.url, vendor.root)
    site.sync(policy=Policy(increments="all", versions_kept=2))
    increments = {name for name in site.names() if name.endswith(".delta")}
    assert f"components/{PATTERN}/177/from-173.delta" in increments
    assert f"components/{PATTERN}/177/from-175.delta" in increments
    assert not any("171" in name for name in increments)

"""What stays, what goes, what it costs, and what has rotted."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.errors import BusyError
from server.mirror.mirror import Mirror
from server.settings import Policy
from tests.server.mirror.conftest import Chain
from tests.support.mirrors import PATTERN, MirrorSite

NEEDS = {PATTERN: {"171": 5, "173": 2}}


def full(version: int) -> str:
    return f"components/{PATTERN}/{version}/full"


def file_of(site: MirrorSite, target: str) -> Path:
    folder, _, name = target.rpartition("/")
    (found,) = (site.feed / "targets" / folder).glob(f"*.{name}")
    return found


def rot(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_what_was_just_served_stays_until_the_next_switch(chain: Chain) -> None:
    policy = Policy(versions_kept=1)
    for version in (173, 175):
        chain.ship(version)
        chain.site.sync(policy=policy)
    # r173 is what 175 falls back to; 171 was served right before.
    assert {full(171), full(173), full(175)} <= chain.site.names()
    chain.ship(177)
    done = chain.site.sync(policy=policy)
    assert {full(173), full(175), full(177)} <= chain.site.names()
    assert full(171) not in chain.site.names()
    assert done.pruned_bytes > 60_000


def test_an_agent_in_the_middle_of_an_update_is_not_left_without_its_files(chain: Chain) -> None:
    client = chain.site.client()
    release = client.release()
    for version in (173,):
        chain.ship(version)
        assert chain.site.sync(policy=Policy(versions_kept=1)).outcome == "switched"
    assert client.whole_release() == release.id == "r171"


def test_fewer_versions_kept_take_less_room_after_the_next_syncs(chain: Chain) -> None:
    for version in (173, 175, 177):
        chain.ship(version)
        chain.site.sync(policy=Policy(increments="all"))
    assert full(171) in chain.site.names()
    done = chain.site.sync(policy=Policy(versions_kept=1))
    assert done.outcome == "unchanged"
    assert full(171) not in chain.site.names()
    assert full(175) in chain.site.names()
    assert chain.site.client().whole_release() == "r177"


def test_old_metadata_goes_and_every_root_stays(chain: Chain) -> None:
    for version in (173, 175, 177):
        chain.ship(version)
        chain.vendor.rotate("timestamp")
        chain.site.sync()
    names = {path.name for path in (chain.site.feed / "metadata").iterdir()}
    assert {"1.root.json", "2.root.json", "3.root.json", "4.root.json"} <= names
    assert len([name for name in names if name.endswith(".snapshot.json")]) == 2
    assert chain.site.client().whole_release() == "r177"


def test_a_mirror_given_a_later_root_serves_the_whole_chain(chain: Chain, tmp_path: Path) -> None:
    chain.vendor.rotate("timestamp")
    later = (chain.vendor.feed / "metadata/2.root.json").read_bytes()
    site = MirrorSite(tmp_path / "n", chain.server.url, later)
    assert site.sync().outcome == "switched"
    site.root = chain.vendor.root
    assert site.client().whole_release() == "r171"
    chain.server.log.clear()
    site.root = later
    site.sync()
    assert chain.server.paths == ["metadata/timestamp.json"]


def test_what_is_no_root_among_the_roots_before_is_left_out(chain: Chain, tmp_path: Path) -> None:
    chain.vendor.rotate("timestamp")
    metadata = chain.vendor.feed / "metadata"
    later = (metadata / "2.root.json").read_bytes()
    (metadata / "1.root.json").write_bytes((metadata / "timestamp.json").read_bytes())
    site = MirrorSite(tmp_path / "n", chain.server.url, later)
    assert site.sync().outcome == "switched"
    assert not (site.feed / "metadata/1.root.json").exists()
    assert site.client().whole_release() == "r171"


def test_a_resigned_timestamp_is_passed_on_without_a_switch(chain: Chain) -> None:
    chain.vendor.refresh()
    done = chain.site.sync()
    assert (done.outcome, done.switched) == ("unchanged", False)
    assert (chain.site.feed / "metadata/timestamp.json").read_bytes() == (
        chain.vendor.feed / "metadata/timestamp.json"
    ).read_bytes()


def test_a_release_that_is_published_and_not_offered_isnt_fetched(chain: Chain) -> None:
    chain.vendor.release("r173", {PATTERN: ("173", b"later")})
    chain.vendor.publish("r173")
    done = chain.site.sync()
    assert (done.outcome, done.switched) == ("switched", True)
    assert full(173) not in chain.site.names()


def test_a_pinned_release_is_kept_and_fetched(chain: Chain) -> None:
    for version in (173, 175, 177):
        chain.ship(version)
    chain.site.sync(policy=Policy(versions_kept=1), pinned=["r171"])
    assert {full(171), full(175), full(177)} <= chain.site.names()


def test_a_withdrawn_release_is_replaced_by_the_one_to_go_back_to(chain: Chain) -> None:
    chain.ship(173)
    chain.site.sync()
    chain.vendor.withdraw(to="r171")
    done = chain.site.sync({PATTERN: {"173": 4}})
    assert done.outcome == "switched"
    client = chain.site.client()
    assert client.plan().fallback == "r171"
    assert full(171) in chain.site.names()


def test_retention_says_who_would_download_fulls(chain: Chain) -> None:
    for version in (173, 175, 177):
        chain.ship(version)
    chain.site.sync(NEEDS)
    table = {choice.versions_kept: choice for choice in chain.site.mirror.retention(NEEDS)}
    assert [table[kept].agents for kept in (1, 2, 3)] == [7, 5, 0]
    assert table[1].disk_bytes < table[3].disk_bytes
    served = sum(path.stat().st_size for path in (chain.site.feed / "targets").rglob("*.*"))
    assert table[14].disk_bytes == pytest.approx(served, rel=0.01)  # plus the plan before


def test_a_rotten_full_is_found_and_rebuilt(chain: Chain) -> None:
    chain.ship(173)
    chain.site.sync(NEEDS)
    sound = chain.site.served()
    rot(file_of(chain.site, full(173)))
    chain.server.log.clear()
    found = chain.site.mirror.scrub()
    done = chain.site.sync(NEEDS)
    assert done.outcome == "unchanged", done
    assert [item.path.endswith(".full") for item in found.damaged] == [True]
    assert "1 of" in found.sentence
    assert "(60,000 bytes)" in found.sentence
    assert chain.site.served() == sound
    assert chain.asked(".full") == []  # from 171 and the increment that is here


@pytest.mark.parametrize("end", [".full.zst", ".delta", "r171.json", "global.json"])
def test_other_rot_is_found_and_refetched(chain: Chain, end: str) -> None:
    chain.ship(173)
    chain.site.sync(NEEDS)
    sound = chain.site.served()
    for path in chain.site.feed.rglob(f"*{end}"):
        rot(path)
    found = chain.site.mirror.scrub()
    assert found.damaged
    done = chain.site.sync(NEEDS)
    assert done.outcome == "unchanged", done
    again = chain.site.mirror.scrub()
    assert again.damaged == ()
    # Of the previous plan, which nobody signs any more, there is no other copy.
    assert sound.keys() - chain.site.served().keys() <= {item.path for item in found.damaged}
    assert chain.site.client().whole_release() == "r173"


def test_rotten_metadata_is_put_back_at_once(chain: Chain) -> None:
    sound = chain.site.served()
    for path in (chain.site.feed / "metadata").iterdir():
        rot(path)
    found = chain.site.mirror.scrub()
    assert all(item.restored for item in found.damaged)
    assert chain.site.served() == sound


def test_a_rotten_base_is_found_when_it_is_built_upon(chain: Chain) -> None:
    rot(file_of(chain.site, full(171)))
    chain.ship(173)
    done = chain.site.sync()
    assert done.outcome == "switched"
    assert [path.endswith(".full") for path in done.damaged] == [True]
    # 171 is what 173 falls back to: it was fetched again, or rebuilt.
    found = chain.site.mirror.scrub()
    assert found.damaged == ()
    assert {full(171), full(173)} <= chain.site.names()


def test_a_file_that_nobody_signs_is_deleted_and_told(chain: Chain) -> None:
    stray = chain.site.feed / "targets/components" / PATTERN / "171/stray"
    stray.write_bytes(b"what is this")
    (chain.site.feed / "metadata/9.stray.json").write_bytes(b"{}")
    found = chain.site.mirror.scrub()
    assert sorted(found.unsigned) == [
        "metadata/9.stray.json",
        f"targets/components/{PATTERN}/171/stray",
    ]
    assert not stray.exists()


def test_a_lost_file_is_fetched_again_though_nothing_is_new(chain: Chain) -> None:
    sound = chain.site.served()
    for path in (chain.site.feed / "targets").rglob("*.*"):
        path.unlink()
    done = chain.site.sync()
    assert done.outcome == "unchanged"
    assert chain.site.served().keys() == sound.keys()
    assert chain.site.client().whole_release() == "r171"


def test_an_unreadable_record_costs_nothing_but_pruning(chain: Chain) -> None:
    chain.site.places.mirror.write_bytes(b"{torn")
    assert chain.site.mirror.known().snapshot == ""
    chain.ship(173)
    assert chain.site.sync(policy=Policy(versions_kept=1)).outcome == "switched"
    assert {full(171), full(173)} <= chain.site.names()


def test_progress_ends_at_what_was_planned(chain: Chain) -> None:
    chain.vendor.ship("r173", {PATTERN: ("173", bytes(range(256)) * 4000)})
    told: list[tuple[int, int]] = []
    chain.site.sync(progress=lambda at: told.append((at.done, at.total)))
    assert told
    assert all(done <= total for done, total in told)
    assert told == sorted(told)


def test_one_run_at_a_time(chain: Chain) -> None:
    chain.vendor.refresh()
    chain.ship(173)

    def again(_progress: object) -> None:
        with pytest.raises(BusyError, match="runs already"):
            chain.site.sync()

    assert chain.site.sync(progress=again).outcome == "switched"


def test_a_restarted_mirror_knows_what_it_served(chain: Chain) -> None:
    other = Mirror(chain.site.places)
    assert other.known().offered() == "r171 (global)"

"""A source that lies, lacks, breaks off or is gone: what was served goes on being served."""

from __future__ import annotations

import contextlib
import datetime
import functools
import http.server
import shutil
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from server.mirror.mirror import Mirror, SourceSpec
from server.settings import Policy
from tests.server.mirror.conftest import Chain
from tests.support.feedserver import Fault
from tests.support.mirrors import PATTERN, MirrorSite, content
from tests.support.vendor import Vendor

FULL = f"components/{PATTERN}/173/full"
INCREMENT = f"components/{PATTERN}/173/from-171.delta"
NEEDS = {PATTERN: {"171": 5}}


def refused(chain: Chain, code: str, *words: str, needs: object = None) -> str:
    """Sync; it must fail with `code`, and r171 stays exactly as it was."""
    before = chain.site.served()
    done = chain.site.sync(needs)  # type: ignore[arg-type]
    assert (done.outcome, done.code, done.switched) == ("failed", code, False), done
    for word in (*words, "r171 (global) goes on being served"):
        assert word in done.sentence, done.sentence
    assert chain.site.served() == before
    assert chain.site.client().whole_release() == "r171"
    return done.sentence


def gone(folder: Path, ends: str) -> None:
    for path in folder.rglob(f"*{ends}"):
        path.unlink()


def test_an_older_feed_is_refused(chain: Chain, tmp_path: Path) -> None:
    old = shutil.copytree(chain.vendor.feed, tmp_path / "old")
    chain.ship(173)
    assert chain.site.sync().outcome == "switched"
    before = chain.site.served()
    done = chain.site.sync(url=old.as_uri())
    assert (done.outcome, done.code) == ("failed", "trust_refused")
    assert "r173 (global) goes on being served" in done.sentence
    assert chain.site.served() == before


def test_an_older_feed_is_refused_though_the_mirrors_memory_is_lost(
    chain: Chain, tmp_path: Path
) -> None:
    old = shutil.copytree(chain.vendor.feed, tmp_path / "old")
    chain.ship(173)
    chain.site.sync()
    shutil.rmtree(chain.site.places.trust)
    chain.site.places.mirror.unlink()
    done = chain.site.sync(url=old.as_uri())
    assert (done.outcome, done.code) == ("failed", "trust_refused"), done
    assert chain.site.client().whole_release() == "r173"


def test_a_stranger_s_feed_is_refused(chain: Chain, tmp_path: Path) -> None:
    stranger = Vendor(tmp_path / "stranger")
    stranger.ship("evil", {PATTERN: ("999", b"evil")})
    before = chain.site.served()
    done = chain.site.sync(url=stranger.url)
    assert (done.outcome, done.code) == ("failed", "trust_refused"), done
    assert chain.site.served() == before


def test_a_release_without_its_full_is_not_switched_to(chain: Chain) -> None:
    chain.ship(173)
    gone(chain.vendor.feed / f"targets/components/{PATTERN}/173", "")
    refused(chain, "source_unreachable", "release r173: virus-pattern 173", "404")


def test_half_the_metadata_is_not_switched_to(chain: Chain) -> None:
    chain.ship(173)
    chain.server.faults[f"2.{PATTERN}.json"] = Fault(status=404)
    refused(chain, "source_unreachable", "404")
    chain.server.faults.clear()
    assert chain.site.sync().outcome == "switched"
    assert chain.site.client().whole_release() == "r173"


def test_a_source_that_serves_nothing_is_told(chain: Chain, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = chain.site.sync(url=(tmp_path / "empty").as_uri())
    assert (done.outcome, done.code) == ("failed", "source_unreachable")
    assert "timestamp.json: no such file" in done.sentence


def test_a_first_sync_from_nothing_says_that_nothing_is_served(
    tmp_path: Path, chain: Chain
) -> None:
    site = MirrorSite(tmp_path / "n", "http://127.0.0.1:9/", chain.vendor.root)
    done = site.sync()
    assert (done.outcome, done.code) == ("failed", "source_unreachable")
    assert done.sentence.endswith("nothing is served yet")


def test_a_broken_increment_sends_the_mirror_to_the_full_in_the_same_run(chain: Chain) -> None:
    chain.ship(173)
    chain.server.faults["from-171.delta"] = Fault(flip_at=40)
    done = chain.site.sync()
    assert (done.outcome, done.saved_bytes) == ("switched", 0), done
    assert chain.asked("from-171.delta")
    assert chain.asked(".full.zst")
    assert chain.site.client().whole_release() == "r173"


def test_a_release_waits_for_the_increments_that_agents_need(chain: Chain) -> None:
    chain.ship(173)
    chain.server.faults["from-171.delta"] = Fault(status=404)
    refused(chain, "increments_lacking", INCREMENT, "120 minutes", needs=NEEDS)
    chain.server.faults.clear()
    assert chain.site.sync(NEEDS).outcome == "switched"
    assert INCREMENT in chain.site.names()


def test_a_release_does_not_wait_for_its_increments_for_ever(chain: Chain) -> None:
    now = 1e9
    chain.site.mirror = Mirror(chain.site.places, clock=lambda: now, room_reserve_bytes=0)
    chain.ship(173)
    chain.server.faults["from-171.delta"] = Fault(body=b"x")
    refused(chain, "increments_lacking", needs=NEEDS)
    now += 3600
    chain.vendor.release("r175", {PATTERN: ("175", content(175))})
    chain.vendor.publish("r175")  # another snapshot doesn't begin the waiting anew
    refused(chain, "increments_lacking", "60 minutes", needs=NEEDS)
    now += 3600
    done = chain.site.sync(NEEDS)
    assert (done.outcome, INCREMENT in done.sentence) == ("switched", True), done
    assert chain.site.client().whole_release() == "r173"
    chain.server.faults.clear()
    done = chain.site.sync(NEEDS)
    assert (done.outcome, INCREMENT in chain.site.names()) == ("unchanged", True), done


def test_a_halt_does_not_wait_for_increments(chain: Chain) -> None:
    chain.ship(173)
    chain.site.sync()
    chain.vendor.ship("r175", {PATTERN: ("175", content(175))})
    chain.server.faults[".delta"] = Fault(status=404)
    done = chain.site.sync(NEEDS)
    assert done.code == "increments_lacking"
    chain.vendor.halt("burns a core")
    done = chain.site.sync(NEEDS)
    assert (done.outcome, done.switched) == ("switched", True), done
    assert chain.site.client().plan().state == "halted"


def test_what_came_before_a_broken_road_is_not_fetched_twice(chain: Chain) -> None:
    chain.vendor.ship(
        "r173",
        {PATTERN: ("173", content(173)), "zz-engine": ("1", content(1, seed=9))},
    )
    for path in chain.vendor.feed.rglob("zz-engine/1/*.full*"):
        chain.server.faults[path.name] = Fault(status=410)
    done = chain.site.sync()
    assert (done.outcome, "release r173: zz-engine 1" in done.sentence) == ("failed", True), done
    assert chain.site.client().whole_release() == "r171"
    chain.server.faults.clear()
    chain.server.log.clear()
    assert chain.site.sync().outcome == "switched"
    assert chain.asked(f"components/{PATTERN}/173/") == []


@pytest.mark.parametrize(
    "fault", [Fault(endless=True), Fault(body=b"x" * 10), Fault(flip_at=100)], ids=str
)
def test_a_full_of_other_bytes_is_refused(chain: Chain, fault: Fault) -> None:
    chain.ship(173)
    for end in ("from-171.delta", ".full", ".full.zst"):
        chain.server.faults[end] = Fault(**vars(fault))
    refused(chain, "trust_refused", "release r173: virus-pattern 173")


def test_metadata_of_another_size_is_refused(chain: Chain) -> None:
    chain.ship(173)
    chain.server.faults[".snapshot.json"] = Fault(endless=True)
    refused(chain, "trust_refused", "snapshot metadata")


def test_links_in_the_served_folder_are_taken_away_and_never_followed(
    chain: Chain, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    (outside / "171").mkdir(parents=True)
    (outside / "secret").write_bytes(b"secret")
    part = chain.site.feed / "targets/components" / PATTERN
    shutil.rmtree(part)
    part.symlink_to(outside)
    (chain.site.feed / "targets/rollout/link").symlink_to(outside / "secret")
    (chain.site.feed / "metadata/timestamp.json").unlink()
    (chain.site.feed / "metadata/timestamp.json").symlink_to(outside / "secret")
    done = chain.site.sync()
    assert done.outcome == "unchanged", done
    assert not any(path.is_symlink() for path in chain.site.feed.rglob("*"))
    assert sorted(path.name for path in outside.rglob("*")) == ["171", "secret"]
    assert (outside / "secret").read_bytes() == b"secret"
    assert chain.site.client().whole_release() == "r171"


def test_the_served_folder_itself_may_be_on_another_disk(chain: Chain, tmp_path: Path) -> None:
    site = MirrorSite(tmp_path / "n", chain.server.url, chain.vendor.root)
    (tmp_path / "large").mkdir()
    site.feed.symlink_to(tmp_path / "large")
    assert site.sync().outcome == "switched"
    assert site.sync(policy=Policy(increments="all")).outcome == "unchanged"
    assert site.client().whole_release() == "r171"


def test_an_authority_that_is_no_pem_file_is_told(chain: Chain, tmp_path: Path) -> None:
    done = chain.site.sync(authority=str(tmp_path / "none.pem"))
    assert (done.outcome, "none.pem" in done.sentence) == ("failed", True)


def test_an_expired_feed_is_told_and_the_old_release_stays(chain: Chain) -> None:
    chain.ship(173)
    chain.vendor.now_offset = datetime.timedelta(days=-400)
    chain.vendor.refresh()
    refused(chain, "trust_expired", "expired")


def test_a_source_with_its_own_authority(vendor: Vendor, tmp_path: Path) -> None:
    authority = trustme.CA()
    pem = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(pem))
    with tls_door(vendor.feed, authority) as url:
        site = MirrorSite(tmp_path / "m", url, vendor.root)
        done = site.sync()
        assert (done.outcome, "certificate" in done.sentence.lower()) == ("failed", True), done
        assert site.sync(authority=str(pem)).outcome == "switched"
    assert site.client().whole_release() == "r171"


def test_the_sources_proxy_is_used_for_everything(chain: Chain, tmp_path: Path) -> None:
    site = MirrorSite(tmp_path / "n", "http://feed.invalid/", chain.vendor.root)
    spec = SourceSpec(url=site.url, proxy=chain.server.url)
    chain.server.log.clear()
    done = site.mirror.sync(spec, site.root)
    # The test's server answers with what is at the path of the URL that it is asked for.
    assert done.outcome == "switched", done
    assert chain.server.paths


@contextlib.contextmanager
def tls_door(folder: Path, authority: trustme.CA) -> Iterator[str]:
    """A static server over TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_args: object) -> None:
        return

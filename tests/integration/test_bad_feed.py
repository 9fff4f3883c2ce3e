"""A feed that is attacked, broken or careless, and a whole agent that follows it."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from feed import delta, manifest
from tests.support import careless, machines
from tests.support.feedserver import Fault, FeedServer
from tests.support.machines import PATTERN
from tests.support.vendor import Vendor

DELTA = "from-171.delta"


# Metadata.


def unsigned(vendor: Vendor, _folder: Path) -> None:
    path = vendor.feed / "metadata" / "timestamp.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"signatures": []}))


def signed_by_a_stranger(vendor: Vendor, folder: Path) -> None:
    stranger = Vendor(folder / "stranger")
    stranger.ship("r999", machines.components(999))
    shutil.copy(stranger.feed / "metadata" / "timestamp.json", vendor.feed / "metadata")


def mixed(vendor: Vendor, _folder: Path) -> None:
    metadata = vendor.feed / "metadata"
    older, newest = sorted(metadata.glob("*.snapshot.json"), key=_version)[-2:]
    shutil.copy(older, newest)


def unparsable(vendor: Vendor, _folder: Path) -> None:
    (vendor.feed / "metadata" / "timestamp.json").write_text('{"signed": ')


def _version(path: Path) -> int:
    return int(path.name.split(".")[0])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (unsigned, ("timestamp", "isn't signed by enough of the keys")),
        (signed_by_a_stranger, ("timestamp", "isn't signed by enough of the keys")),
        (mixed, ("snapshot", "another version than the one due")),
        (unparsable, ("timestamp", "doesn't parse")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_metadata_the_vendor_did_not_sign_so_is_refused_and_good_metadata_follows(
    tmp_path: Path, spoil: Callable[[Vendor, Path], None], words: tuple[str, ...]
) -> None:
    vendor = machines.vendor(tmp_path, upto="r173")
    good = shutil.copytree(vendor.feed / "metadata", tmp_path / "good")
    endpoint = machines.installed(tmp_path, vendor.url)
    spoil(vendor, tmp_path)
    with machines.up(endpoint):
        machines.refused(endpoint, "trust_refused", *words, "what is installed stays")
        machines.untouched(endpoint)
        shutil.copytree(good, vendor.feed / "metadata", dirs_exist_ok=True)
        machines.updated(endpoint, "r173")


def test_expired_metadata_stops_updates_until_the_vendor_signs_anew(tmp_path: Path) -> None:
    vendor = machines.vendor(tmp_path, upto="r173")
    vendor.now_offset = timedelta(days=-30)
    vendor.refresh()
    endpoint = machines.installed(tmp_path, vendor.url)
    with machines.up(endpoint):
        sentence = machines.refused(endpoint, "trust_expired", "timestamp metadata expired on")
        assert "protection goes on with what is installed" in sentence
        machines.untouched(endpoint)
        assert endpoint.ctl("status").returncode == 1  # late, and not at risk
        vendor.now_offset = timedelta()
        vendor.refresh()
        machines.updated(endpoint, "r173")


def test_a_replayed_timestamp_is_refused(tmp_path: Path) -> None:
    vendor = machines.vendor(tmp_path, upto="r173")
    timestamp = vendor.feed / "metadata" / "timestamp.json"
    newest = timestamp.read_bytes()
    endpoint = machines.installed(tmp_path, vendor.url, release="r173")
    older = machines.vendor(tmp_path / "earlier", upto="r171")
    shutil.copy(older.feed / "metadata" / "timestamp.json", timestamp)
    with machines.up(endpoint):
        machines.refused(endpoint, "trust_refused", "timestamp", "older than seen before")
        machines.untouched(endpoint, "r173")
        timestamp.write_bytes(newest)
        vendor.ship("r175", machines.components(175))
        machines.updated(endpoint, "r175")


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (Fault(drip_s=0.2), "source_unreachable", ("timestamp.json", "below 256 bytes/s")),
        (Fault(hang=True), "source_unreachable", ("timestamp.json",)),
        (Fault(endless=True), "trust_refused", ("timestamp", "sends more than")),
    ],
    ids=["drips", "says nothing", "never ends"],
)
def test_an_endless_answer_is_cut_in_bounded_time(
    tmp_path: Path, fault: Fault, code: str, words: tuple[str, ...]
) -> None:
    vendor = machines.vendor(tmp_path, upto="r173")
    with FeedServer(vendor.feed) as server:
        endpoint = machines.installed(tmp_path, server.url)
        text = endpoint.config.read_text().replace("read_timeout_s = 3", "read_timeout_s = 2")
        endpoint.config.write_text(text.replace("attempts = 2", "attempts = 1"))
        server.faults["timestamp.json"] = fault
        with machines.up(endpoint):
            began = time.monotonic()
            machines.refused(endpoint, code, *words)
            assert time.monotonic() - began < 15
            assert max(request.sent for request in server.log) < 64 << 20
            machines.untouched(endpoint)
            server.faults.clear()
            machines.updated(endpoint, "r173")


def test_the_next_source_is_asked_when_the_first_one_is_attacked(tmp_path: Path) -> None:
    vendor = machines.vendor(tmp_path, upto="r173")
    attacked = Vendor(shutil.copytree(vendor.folder, tmp_path / "attacked"))
    unsigned(attacked, tmp_path)
    endpoint = machines.installed(tmp_path, vendor.url)
    text = endpoint.config.read_text()
    endpoint.config.write_text(
        text.replace("sources = [", f'sources = [{{ url = "{attacked.url}" }}, ')
    )
    with machines.up(endpoint):
        machines.updated(endpoint, "r173")
        assert endpoint.status()["check"]["last"]["source"] == vendor.url


# Payloads.


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (machines.flip_bit, ("SHA-256", "is signed")),
        (longer, ("60,004 bytes", "60,000")),
    ],
    ids=["digest", "length"],
)
def test_a_target_of_another_digest_or_length_is_refused(
    tmp_path: Path, spoil: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    vendor = machines.vendor(tmp_path, upto="r173")
    good = shutil.copytree(vendor.feed, tmp_path / "good")
    machines.flip_bit(machines.delta_of(vendor))
    spoil(machines.full_of(vendor, "173"))
    endpoint = machines.installed(tmp_path, vendor.url)
    with machines.up(endpoint):
        machines.refused(endpoint, "trust_refused", "virus-pattern/173/full", *words, "discarded")
        machines.untouched(endpoint)
        line = endpoint.history()[-1]
        assert (line["outcome"], line["reason"]) == ("failed", "trust_refused")
        shutil.copytree(good, vendor.feed, dirs_exist_ok=True)
        machines.updated(endpoint, "r173")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("spoil", [machines.flip_bit, truncated, longer, Path.unlink])
def test_a_spoilt_incremental_becomes_a_full_in_the_same_run(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    vendor = machines.vendor(tmp_path, upto="r173")
    spoil(machines.delta_of(vendor))
    endpoint = machines.installed(tmp_path, vendor.url)
    with machines.up(endpoint):
        line = machines.updated(endpoint, "r173")
    assert line["wire_bytes"] >= len(machines.pattern(173))
    assert len(endpoint.history()) == 2


def test_an_incremental_spoilt_on_the_road_becomes_a_full_in_the_same_run(tmp_path: Path) -> None:
    vendor = machines.vendor(tmp_path, upto="r173")
    with FeedServer(vendor.feed) as server:
        server.faults[DELTA] = Fault(flip_at=10)
        endpoint = machines.installed(tmp_path, server.url)
        with machines.up(endpoint):
            line = machines.updated(endpoint, "r173")
    travelled = machines.delta_of(vendor).stat().st_size + len(machines.pattern(173))
    assert line["wire_bytes"] == travelled


def test_an_incremental_cut_on_the_road_is_resumed(tmp_path: Path) -> None:
    vendor = machines.vendor(tmp_path, upto="r173")
    with FeedServer(vendor.feed) as server:
        server.faults[DELTA] = Fault(cut_after=10, times=1)
        endpoint = machines.installed(tmp_path, server.url)
        with machines.up(endpoint):
            line = machines.updated(endpoint, "r173")
    assert line["wire_bytes"] == machines.delta_of(vendor).stat().st_size


def _sign_incremental(vendor: Vendor, folder: Path, made: bytes) -> int:
    """Replace the incremental to 173 by one that makes `made`, signed as if it made 173."""
    base, new, out = folder / "base", folder / "made", folder / "delta"
    base.write_bytes(machines.pattern(171))
    new.write_bytes(made)
    codec = delta.create(base, new, out)
    result = machines.pattern(173)
    path = manifest.increment_path(PATTERN, old="171", new="173")
    custom: dict[str, str | int] = {
        "base_digest": hashlib.sha256(base.read_bytes()).hexdigest(),
        "result_digest": hashlib.sha256(result).hexdigest(),
        "result_length": len(result),
        "format": codec,
    }
    careless.sign(vendor, PATTERN, path, out.read_bytes(), custom)
    return out.stat().st_size


@pytest.mark.parametrize(
    "made",
    [machines.pattern(173) + bytes(32 << 20), machines.pattern(999)],
    ids=["inflates past its signed length", "makes something else"],
)
def test_a_signed_incremental_that_lies_becomes_a_full_in_the_same_run(
    tmp_path: Path, made: bytes
) -> None:
    vendor = machines.vendor(tmp_path, upto="r173")
    travelled = _sign_incremental(vendor, tmp_path, made) + len(machines.pattern(173))
    endpoint = machines.installed(tmp_path, vendor.url)
    with machines.up(endpoint):
        line = machines.updated(endpoint, "r173")
    assert len(endpoint.history()) == 2
    assert '"going_full"' in endpoint.log.read_text()
    assert line["wire_bytes"] == travelled


# Archives.


def test_a_good_archive_is_taken_after_a_bad_one(tmp_path: Path) -> None:
    vendor = machines.vendor(tmp_path)
    bad = careless.tar_of(careless.member("ok"), careless.member("../escaped"))
    careless.ship_tree(vendor, "r172", bad, based_on="r171")
    endpoint = machines.installed(tmp_path, vendor.url)
    with machines.up(endpoint):
        machines.refused(endpoint, "manifest_refused", "component scan-engine 9.1", "'../escaped'")
        machines.untouched(endpoint)
        assert not endpoint.status()["slots"]["b"]["sealed"]
        line = endpoint.history()[-1]
        assert (line["outcome"], line["release"]) == ("failed", "r172")
        vendor.ship("r173", machines.components(173), only=True)
        machines.updated(endpoint, "r173")


# Manifests.


def _first(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["components"][0]
    return found


_BAD_MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], object], tuple[str, ...]]] = {
    "kind": (lambda it: _first(it).update(kind="firmware"), ("firmware", "kind")),
    "size": (lambda it: _first(it).update(length=-1), ("length -1", "cleanup-template")),
    "twice": (lambda it: it["components"].append(_first(it)), ("cleanup-template", "twice")),
    "version": (lambda it: _first(it).update(version="1.x"), ("1.x", "cleanup-template")),
}


@pytest.mark.parametrize(("spoil", "words"), _BAD_MANIFESTS.values(), ids=_BAD_MANIFESTS.keys())
def test_a_signed_manifest_that_says_nothing_usable_is_refused(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], object], words: tuple[str, ...]
) -> None:
    vendor = machines.vendor(tmp_path)
    document = careless.manifest_of(vendor, "r171") | {"id": "r172"}
    spoil(document)
    careless.ship_manifest(vendor, document)
    endpoint = machines.installed(tmp_path, vendor.url)
    with machines.up(endpoint):
        machines.refused(endpoint, "manifest_refused", "release r172", *words)
        machines.untouched(endpoint)

"""A fetcher that hands over something it shouldn't, and the real stager that is given it.

The handover is fetched for real, then tampered with; the active slot is held
against its seal each time, and the spare slot may not be sealed.
"""

from __future__ import annotations

import os
import shutil
import signal
import tarfile
from pathlib import Path

import pytest

from agent.channel import NeedsFull, Staged, StageRefused
from agent.slots import seal as seals
from tests.support import careless, machines
from tests.support.feedserver import Fault, FeedServer
from tests.support.handovers import Handover, host_of
from tests.support.sabotage import plant, uproot
from tests.support.vendor import Vendor

DELTA = "components/virus-pattern/173/from-171.delta"
FULL = "components/virus-pattern/173/full"
MANIFEST = "releases/r173.json"
PLAN = "rollout/global.json"


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    return machines.vendor(tmp_path, upto="r173")


@pytest.fixture
def handover(tmp_path: Path, vendor: Vendor) -> Handover:
    return Handover(machines.installed(tmp_path, vendor.url))


@pytest.fixture
def whole(tmp_path: Path, vendor: Vendor) -> Handover:
    """The same with a full payload."""
    machines.delta_of(vendor).unlink()
    return Handover(machines.installed(tmp_path, vendor.url))


def refused(handover: Handover, code: str, *words: str) -> None:
    """Nothing is staged, what runs is untouched, and an untampered handover still works."""
    result = handover.stage()
    assert isinstance(result, StageRefused), result
    assert result.code == code
    assert [word for word in words if word not in result.sentence] == [], result.sentence
    assert not (handover.places.slot("b") / seals.SEAL_NAME).exists()
    assert not handover.places.staging.exists()
    machines.untouched(handover.endpoint)


def test_an_honest_handover_is_staged(handover: Handover) -> None:
    result = handover.stage_apart()
    assert isinstance(result, Staged)
    assert result.release == "r173"
    assert seals.verify(handover.places.slot("b"), seals.read(handover.places.slot("b"))[0]) == []
    machines.untouched(handover.endpoint)


# Things that aren't files.


@pytest.mark.parametrize("path", [DELTA, MANIFEST, PLAN])
def test_a_link_to_a_file_elsewhere_is_not_followed(handover: Handover, path: str) -> None:
    place = handover.target(path)
    elsewhere = handover.folder / "elsewhere"
    place.rename(elsewhere)  # the very bytes that were signed
    place.symlink_to(elsewhere)
    refused(handover, "trust_refused", path, "no usable")


def test_a_linked_folder_is_not_followed(handover: Handover) -> None:
    targets = handover.folder / "targets"
    targets.rename(handover.folder / "elsewhere")
    targets.symlink_to(handover.folder / "elsewhere")
    refused(handover, "trust_refused", "no usable")


def test_a_linked_metadata_folder_is_not_followed(handover: Handover) -> None:
    metadata = handover.folder / "metadata"
    metadata.rename(handover.folder / "elsewhere")
    metadata.symlink_to(handover.folder / "elsewhere")
    refused(handover, "trust_refused", "no usable metadata/")


def test_a_linked_attempt_folder_is_not_followed(handover: Handover, tmp_path: Path) -> None:
    handover.folder.rename(tmp_path / "elsewhere")
    handover.folder.symlink_to(tmp_path / "elsewhere")
    refused(handover, "trust_refused", "no usable")


@pytest.mark.parametrize("path", [DELTA, MANIFEST, PLAN])
def test_a_fifo_is_refused_at_once(handover: Handover, path: str) -> None:
    handover.target(path).unlink()
    os.mkfifo(handover.target(path))
    refused(handover, "trust_refused", path, "no regular file")


def test_a_fifo_among_the_metadata_is_refused_at_once(handover: Handover) -> None:
    os.mkfifo(handover.folder / "metadata" / "9.releases.json")
    refused(handover, "trust_refused", "metadata/9.releases.json", "no regular file")


# Other bytes than were signed.


@pytest.mark.parametrize("path", [DELTA, MANIFEST, PLAN])
def test_altered_bytes_are_refused(handover: Handover, path: str) -> None:
    machines.flip_bit(handover.target(path))
    refused(handover, "trust_refused", path, "isn't what was signed")


def test_an_altered_full_is_refused(whole: Handover) -> None:
    machines.flip_bit(whole.target(FULL))
    refused(whole, "trust_refused", FULL, "signed are 60,000")


def test_a_full_that_goes_on_is_refused(whole: Handover) -> None:
    with whole.target(FULL).open("ab") as file:
        file.truncate(1 << 30)
    refused(whole, "trust_refused", FULL, "signed are 60,000")


def test_a_signed_file_in_another_ones_place_is_refused(whole: Handover, vendor: Vendor) -> None:
    shutil.copy(machines.full_of(vendor, "171"), whole.target(FULL))
    refused(whole, "trust_refused", FULL, "isn't what was signed")


def test_altered_metadata_is_refused(handover: Handover) -> None:
    (path,) = (handover.folder / "metadata").glob("*.releases.json")
    machines.flip_bit(path, at=200)
    refused(handover, "trust_refused", "releases")


# Signed, and not for this machine or not for now.


def test_another_regions_plan_is_refused(tmp_path: Path) -> None:
    vendor = Vendor(tmp_path / "vendor", regions=("global", "japan"))
    vendor.ship("r171", machines.components(171))
    endpoint = machines.bare(tmp_path, vendor.url)
    endpoint.layout.trust_root.write_bytes(vendor.root)
    with machines.up(endpoint):
        machines.updated(endpoint, "r171")
    vendor.release("r173", machines.components(173))
    vendor.publish("r173")
    vendor.offer("r173", "japan")
    ours = endpoint.config.read_text()
    endpoint.config.write_text(f'region = "japan"\n{ours}')
    handover = Handover(endpoint)  # fetched as a machine in Japan would
    endpoint.config.write_text(ours)
    handover.host = host_of(endpoint)
    shutil.copy(handover.target("rollout/japan.json"), handover.target(PLAN))
    refused(handover, "trust_refused", PLAN, "isn't what was signed")


def test_a_release_that_the_plan_does_not_offer_is_refused(tmp_path: Path) -> None:
    vendor = machines.vendor(tmp_path, upto="r173")
    handover = Handover(machines.installed(tmp_path, vendor.url))
    vendor.release("r175", machines.components(175))
    vendor.publish("r175")
    (unoffered,) = (vendor.feed / "targets" / "releases").glob("*.r175.json")
    shutil.copy(unoffered, handover.target("releases/r175.json"))
    handover.target(MANIFEST).unlink()
    refused(handover, "trust_refused", MANIFEST, "no usable")


def test_a_halted_release_is_not_staged_though_it_was_fetched(
    handover: Handover, vendor: Vendor
) -> None:
    vendor.halt("burns a core")
    shutil.rmtree(handover.folder / "metadata")
    shutil.copytree(vendor.feed / "metadata", handover.folder / "metadata")
    plans = (vendor.feed / "targets" / "rollout").iterdir()
    newest = max(plans, key=lambda path: path.stat().st_mtime_ns)
    shutil.copy(newest, handover.target(PLAN))
    refused(handover, "rollout_halted", "burns a core")


def test_an_older_plan_is_refused_once_a_newer_one_was_seen(
    tmp_path: Path, handover: Handover, vendor: Vendor
) -> None:
    replay = shutil.copytree(handover.folder, tmp_path / "replay")
    vendor.ship("r175", machines.components(175))
    with machines.up(handover.endpoint):
        machines.updated(handover.endpoint, "r175")
    again = Handover(handover.endpoint, fetch=False)
    shutil.copytree(replay, again.folder)
    result = again.stage()
    assert isinstance(result, StageRefused)
    assert result.code == "trust_refused"
    assert "older than seen before" in result.sentence
    machines.untouched(handover.endpoint, "r175")


# Garbage, too much, too little.


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"roads": {"virus-pattern": ["175", "173"]}}',
        b"x" * (2 << 20),
    ],
    ids=["empty", "bytes", "deep", "another road", "long"],
)
def test_a_garbled_hint_costs_a_full_download_and_nothing_else(
    handover: Handover, garbage: bytes
) -> None:
    (handover.folder / "handover.json").write_bytes(garbage)
    result = handover.stage()
    assert isinstance(result, NeedsFull)
    assert result.components == ("virus-pattern",)
    assert not (handover.places.slot("b") / seals.SEAL_NAME).exists()
    machines.untouched(handover.endpoint)


def test_a_garbled_hint_does_not_matter_to_a_full(whole: Handover) -> None:
    (whole.folder / "handover.json").write_bytes(b"garbage")
    assert isinstance(whole.stage(), Staged)
    machines.untouched(whole.endpoint)


def test_ten_thousand_metadata_files_are_refused(handover: Handover) -> None:
    for number in range(10_000):
        (handover.folder / "metadata" / f"{number}.more.json").touch()
    refused(handover, "trust_refused", "metadata files; the limit is 600")


def test_a_metadata_file_of_a_gigabyte_is_refused(handover: Handover) -> None:
    with (handover.folder / "metadata" / "9.more.json").open("wb") as file:
        file.truncate(1 << 30)
    refused(handover, "trust_refused", "metadata/9.more.json is over 8,388,608 bytes")


@pytest.mark.parametrize(
    "piece",
    [
        "metadata",
        "metadata/timestamp.json",
        "handover.json",
        f"targets/{MANIFEST}",
        f"targets/{PLAN}",
        f"targets/{DELTA}",
        ".",
    ],
)
def test_a_missing_piece_is_named(handover: Handover, piece: str) -> None:
    path = handover.folder / piece
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    word = {".": "metadata", "metadata/timestamp.json": "timestamp"}.get(
        piece, piece.rsplit("/", maxsplit=1)[-1]
    )
    result = handover.stage()
    assert isinstance(result, StageRefused)
    assert word in result.sentence
    machines.untouched(handover.endpoint)


# Archives that a careless vendor signed.


_BAD_TREES = {
    "dot-dot": ([careless.member("../escaped")], "'../escaped'"),
    "dot-dot inside": ([careless.member("a/../../escaped")], "'a/../../escaped'"),
    "absolute": ([careless.member("/tmp/holdfast-escaped")], "'/tmp/holdfast-escaped'"),
    "link up": (
        [careless.member("out", kind=tarfile.SYMTYPE, link="../../../../escaped")],
        "doesn't stay in the tree",
    ),
    "absolute link": (
        [careless.member("out", kind=tarfile.SYMTYPE, link="/etc/passwd")],
        "doesn't stay in the tree",
    ),
    "through a link": (
        [careless.member("a", kind=tarfile.SYMTYPE, link="b"), careless.member("a/escaped")],
        "is not a folder listed before it",
    ),
    "hard link": (
        [careless.member("out", kind=tarfile.LNKTYPE, link="/etc/passwd")],
        "'out' is a hard link",
    ),
    "character device": ([careless.member("null", kind=tarfile.CHRTYPE)], "'null' is a"),
    "block device": ([careless.member("disk", kind=tarfile.BLKTYPE)], "'disk' is a"),
    "fifo": ([careless.member("pipe", kind=tarfile.FIFOTYPE)], "'pipe' is a"),
    "twice": ([careless.member("a"), careless.member("a")], "'a' is listed twice"),
    "case": ([careless.member("Rules"), careless.member("rules")], "'rules' collides with"),
}


@pytest.mark.parametrize(("members", "words"), _BAD_TREES.values(), ids=_BAD_TREES.keys())
def test_an_archive_that_would_leave_its_slot_is_refused(
    tmp_path: Path, members: list[tarfile.TarInfo], words: str
) -> None:
    vendor = machines.vendor(tmp_path)
    tar = careless.tar_of(careless.member("fine"), *members)
    careless.ship_tree(vendor, "r172", tar, based_on="r171")
    handover = Handover(machines.installed(tmp_path, vendor.url))
    refused(handover, "manifest_refused", "component scan-engine 9.1", words, "nothing was sealed")
    assert not Path("/tmp/holdfast-escaped").exists()
    assert [path for path in tmp_path.rglob("*") if "escaped" in path.name] == []


# The fetcher's processes, beside a whole agent.


_TAMPER = """
from agent.fetcher import handover
_run = handover.Fetch.run

def _tampering(self):
    _run(self)
    for path in (self._folder / "targets" / "components").rglob("from-*.delta"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)

handover.Fetch.run = _tampering
"""


def test_an_agent_refuses_what_its_fetcher_altered(tmp_path: Path, vendor: Vendor) -> None:
    endpoint = machines.installed(tmp_path, vendor.url)
    plant(endpoint, "worker", _TAMPER)
    with machines.up(endpoint):
        machines.refused(endpoint, "trust_refused", DELTA, "isn't what was signed")
        machines.untouched(endpoint)
        assert endpoint.history()[-1]["reason"] == "trust_refused"
        assert list(endpoint.layout.incoming.iterdir()) == []
        uproot(endpoint, "worker")
        machines.updated(endpoint, "r173")


_CLAIM = """
from agent.fetcher import cycle, main
from agent import channel
import msgspec
_send = channel.send

def _lying(stream, word):
    if isinstance(word, channel.HandedOver):
        word = msgspec.structs.replace(word, digest={digest!r})
    _send(stream, word)

channel.send = _lying
"""


def test_a_fetcher_cannot_pass_the_prior_release_off_as_the_new_one(
    tmp_path: Path, vendor: Vendor
) -> None:
    endpoint = machines.installed(tmp_path, vendor.url, release="r173")
    vendor.ship("r175", machines.components(175))
    prior = seals.read(
        endpoint.layout.slot("b" if Handover(endpoint, fetch=False).record.active == "a" else "a")
    )[1]
    assert prior.release == "r171"
    plant(endpoint, "worker", _CLAIM.format(digest=prior.digest))
    with machines.up(endpoint):
        machines.updated(endpoint, "r175")


def test_a_fetcher_that_talks_nonsense_is_replaced(tmp_path: Path, vendor: Vendor) -> None:
    endpoint = machines.installed(tmp_path, vendor.url)
    plant(endpoint, "fetcher", 'print(\'{"type":"staged"}\', flush=True)')
    with endpoint.running():
        endpoint.wait_for(lambda _: "fetcher_not_understood" in endpoint.log.read_text())
        uproot(endpoint, "fetcher")
        endpoint.wait_for(machines.settled)
        machines.untouched(endpoint)
        machines.updated(endpoint, "r173")


def test_a_fetcher_that_floods_the_channel_is_replaced(tmp_path: Path, vendor: Vendor) -> None:
    endpoint = machines.installed(tmp_path, vendor.url)
    plant(endpoint, "fetcher", "import sys; sys.stdout.write('x' * (8 << 20)); sys.stdout.flush()")
    with endpoint.running():
        endpoint.wait_for(lambda _: "child_output_refused" in endpoint.log.read_text())
        uproot(endpoint, "fetcher")
        endpoint.wait_for(machines.settled)
        machines.untouched(endpoint)
        machines.updated(endpoint, "r173")
    assert endpoint.log.stat().st_size < 100_000


def test_a_fetcher_killed_in_the_middle_of_a_download_is_started_again(
    tmp_path: Path, vendor: Vendor
) -> None:
    machines.delta_of(vendor).unlink()
    with FeedServer(vendor.feed) as server:
        endpoint = machines.installed(tmp_path, server.url)
        server.faults["173/" + machines.full_of(vendor, "173").name] = Fault(hang=True, times=1)
        with machines.up(endpoint):
            begun = endpoint.ctl("update", "--no-wait")
            assert begun.returncode == 0, begun.stderr
            endpoint.wait_for(lambda status: status["state"]["name"] == "downloading")
            os.kill(endpoint.status()["fetcher"]["pid"], signal.SIGKILL)
            status = endpoint.wait_for(lambda status: status["state"]["name"] == "failed")
            assert status["state"]["reason"] == "fetcher_lost"
            assert "it is started again" in status["check"]["last_error"]["sentence"]
            assert endpoint.history()[-1]["reason"] == "fetcher_lost"
            machines.untouched(endpoint)
            endpoint.wait_for(machines.settled)
            machines.updated(endpoint, "r173")


_IMPATIENT = """
import agent.guardian.fetching as fetching
fetching.FetcherLink.__init__.__kwdefaults__["silence_max_s"] = 8.0
"""


@pytest.mark.parametrize("which", ["fetcher", "worker"])
def test_a_fetcher_that_hangs_is_killed_and_started_again(
    tmp_path: Path, vendor: Vendor, which: str
) -> None:
    endpoint = machines.installed(tmp_path, vendor.url)
    plant(endpoint, "guardian", _IMPATIENT)
    if which == "worker":
        plant(endpoint, "worker", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)")
    with machines.up(endpoint):
        if which == "fetcher":
            os.kill(endpoint.status()["fetcher"]["pid"], signal.SIGSTOP)
        done = endpoint.ctl("update")
        assert done.returncode == 1
        status = endpoint.status()
        assert status["state"]["reason"] == "fetcher_lost"
        assert '"fetcher_hangs"' in endpoint.log.read_text()
        machines.untouched(endpoint)
        uproot(endpoint, "worker")
        endpoint.wait_for(machines.settled)
        machines.updated(endpoint, "r173")

"""A vendor publishes and a client follows: real keys, real files, the agent's own trust code."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from feed import delta, durable, manifest, rollout, tree
from feed.download import Downloader
from feed.errors import TrustError
from feed.manifest import Release
from feed.rollout import RolloutState
from feed.transport import Transport
from feed.trust import TrustedFeed
from publisher import serve
from tests.support.feedserver import FeedServer
from tests.support.vendor import Vendor

BASE = random.Random(1).randbytes(30_000)


def pattern(number: int) -> bytes:
    """A pattern that grows a little with each number, and that doesn't compress."""
    return BASE + b"".join(random.Random(step).randbytes(40) for step in range(number))


class Client:
    """A machine that trusts the vendor's first root, or the one it was given."""

    def __init__(self, vendor: Vendor, folder: Path, *, root: bytes | None = None) -> None:
        self._folder = folder
        self._url = vendor.url
        self._root = root or vendor.root

    def ask(self, question: Callable[[TrustedFeed], Any]) -> Any:
        with Transport(attempts=1) as transport:
            feed = TrustedFeed(
                self._folder / "trust",
                f"{self._url}/metadata",
                f"{self._url}/targets",
                self._root,
                transport,
                idle_check=False,
            )
            feed.refresh()
            return question(feed)

    def read(self, path: str) -> bytes:
        found: bytes = self.ask(lambda feed: feed.download(path, self._folder / "got").read_bytes())
        return found

    def plan(self, region: str = "global") -> rollout.RolloutPlan:
        return rollout.parse(self.read(manifest.rollout_path(region)), region=region)

    def release(self, release_id: str) -> Release:
        path = manifest.release_path(release_id)
        return manifest.parse(self.read(path), expected_id=release_id)

    def sees(self, path: str) -> bool:
        return self.ask(lambda feed: feed.find(path)) is not None


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    made = Vendor(tmp_path / "vendor")
    made.ship("r171", {"virus-pattern": ("171", pattern(171))})
    return made


@pytest.fixture
def client(vendor: Vendor, tmp_path: Path) -> Client:
    return Client(vendor, tmp_path / "client")


def test_a_new_feed_is_valid_and_empty(tmp_path: Path) -> None:
    client = Client(Vendor(tmp_path / "vendor"), tmp_path / "client")
    assert not client.sees(manifest.rollout_path("global"))


def test_what_is_prepared_is_seen_once_it_is_published(vendor: Vendor, client: Client) -> None:
    vendor.release("r173", {"virus-pattern": ("173", pattern(173))})
    assert not client.sees(manifest.release_path("r173"))
    vendor.publish()
    found = client.release("r173").component("virus-pattern")
    assert found is not None
    assert client.read(manifest.payload_path("virus-pattern", "173")) == pattern(173)
    assert client.plan().release == "r171"
    vendor.offer("r173")
    assert (client.plan().release, client.plan().fallback) == ("r173", "r171")


def test_an_incremental_rebuilds_the_release_bit_for_bit(
    vendor: Vendor, client: Client, tmp_path: Path
) -> None:
    vendor.ship("r173", {"virus-pattern": ("173", pattern(173))})
    path = manifest.increment_path("virus-pattern", old="171", new="173")
    custom = client.ask(lambda feed: feed.find(path)).custom
    increment = manifest.parse_increment(custom, path=path)
    base, road, out = (tmp_path / name for name in ("base", "road", "out"))
    base.write_bytes(client.read(manifest.payload_path("virus-pattern", "171")))
    road.write_bytes(client.read(path))
    assert road.stat().st_size < len(pattern(173)) / 50
    with base.open("rb") as old, road.open("rb") as made, out.open("wb") as result:
        digest = delta.apply(
            old, made, result, format=increment.format, limit=increment.result_length
        )
    assert digest == increment.result_digest
    assert out.read_bytes() == pattern(173)


def test_a_compressed_copy_arrives_as_the_content(vendor: Vendor, tmp_path: Path) -> None:
    text = b"rule burns { condition: true }\n" * 5_000
    vendor.ship("r2", {"rules": ("1", text)})
    client = Client(vendor, tmp_path / "client")
    path = manifest.payload_path("rules", "1")
    target = client.ask(lambda feed: feed.find(path))
    with FeedServer(vendor.feed) as server, Transport(attempts=1) as transport:
        downloader = Downloader(transport, tmp_path / "cache", f"{server.url}/targets")
        travelled = downloader.fetch(
            path,
            length=target.length,
            digest=target.hashes["sha256"],
            destination=tmp_path / "got",
            compressed=True,
        )
    assert (tmp_path / "got").read_bytes() == text
    assert travelled < len(text) / 50


def test_a_tree_arrives_as_it_was(vendor: Vendor, client: Client, tmp_path: Path) -> None:
    source = tmp_path / "engine"
    (source / "bin").mkdir(parents=True)
    (source / "bin" / "scan").write_text("scan")
    (source / "bin" / "scan").chmod(0o755)
    vendor.ship("r2", {"engine": ("1.0", source)}, kinds={"engine": "engine"})
    packed = tmp_path / "packed"
    packed.write_bytes(client.read(manifest.payload_path("engine", "1.0")))
    with packed.open("rb") as tar:
        tree.unpack(tar, tmp_path / "out", limit=1 << 20)
    assert (tmp_path / "out" / "bin" / "scan").read_text() == "scan"
    assert (tmp_path / "out" / "bin" / "scan").stat().st_mode & 0o100


def test_exactly_the_last_fourteen_releases_have_incrementals(
    vendor: Vendor, client: Client
) -> None:
    numbers = list(range(171, 171 + 2 * 16, 2))
    for number in numbers[1:]:
        vendor.release(f"r{number}", {"virus-pattern": (str(number), pattern(number))})
        vendor.publish()
    newest = numbers[-1]
    found = client.release(f"r{newest}").component("virus-pattern")
    assert found is not None
    expected = [str(number) for number in reversed(numbers[1:-1])]
    assert len(expected) == 14
    assert list(found.predecessors) == expected

    def reachable(old: int, new: int) -> bool:
        path = manifest.increment_path("virus-pattern", old=str(old), new=str(new))
        return client.sees(path)

    assert reachable(numbers[1], newest)
    assert reachable(numbers[1], numbers[2])
    assert not reachable(numbers[0], newest)
    assert not reachable(numbers[0], numbers[1])
    assert client.read(manifest.payload_path("virus-pattern", "171")) == pattern(171)
    assert client.release("r171").id == "r171"


def test_a_halt_and_its_reason_reach_the_client(vendor: Vendor, client: Client) -> None:
    vendor.halt("burns a core")
    assert client.plan().state is RolloutState.HALTED
    assert client.plan().reason == "burns a core"
    vendor.resume()
    assert client.plan().state is RolloutState.ROLLING


def test_a_return_to_an_older_release_is_a_newer_signature(vendor: Vendor, client: Client) -> None:
    vendor.ship("r173", {"virus-pattern": ("173", pattern(173))})
    assert client.plan().release == "r173"
    vendor.withdraw(to="r171", reason="burns a core")
    plan = client.plan()
    assert plan.state is RolloutState.WITHDRAWN
    assert rollout.target(plan, active="r173", host_id="h", now=0.0) == "r171"
    assert client.read(manifest.payload_path("virus-pattern", "171")) == pattern(171)


def test_a_lost_timestamp_key_is_replaced_and_old_clients_follow(
    vendor: Vendor, client: Client, tmp_path: Path
) -> None:
    assert client.plan().release == "r171"
    vendor.key_file("timestamp").unlink()
    done = vendor.rotate("timestamp", lost=True)
    assert set(done.signed) == {"root", "timestamp"}
    vendor.ship("r173", {"virus-pattern": ("173", pattern(173))})
    assert client.plan().release == "r173"
    fresh = Client(vendor, tmp_path / "fresh")
    assert fresh.plan().release == "r173"


def test_a_stolen_timestamp_key_is_worth_nothing_after_its_replacement(
    vendor: Vendor, client: Client, tmp_path: Path
) -> None:
    client.plan()
    stolen = tmp_path / "stolen"
    shutil.copytree(vendor.folder, stolen)
    vendor.rotate("timestamp")
    assert client.plan().release == "r171"
    thief = Vendor(stolen)
    thief.publish()
    shutil.copy(stolen / "feed/metadata/timestamp.json", vendor.feed / "metadata/timestamp.json")
    with pytest.raises(TrustError):
        client.plan()


ROLES = ("targets", "snapshot", "timestamp", "releases", "rollout", "virus-pattern")


# A lost only root key can't be replaced: that is what a threshold is for.
@pytest.mark.parametrize(
    ("role", "lost"), [("root", False), *itertools.product(ROLES, (False, True))]
)
def test_every_key_can_be_replaced(
    vendor: Vendor, client: Client, role: str, lost: bool, tmp_path: Path
) -> None:
    client.plan()
    old = vendor.key_file(role)
    if lost:
        old.unlink()
    vendor.rotate(role, lost=lost)
    assert not old.exists()
    for follower in (client, Client(vendor, tmp_path / "fresh")):
        assert follower.plan().release == "r171"
        assert follower.read(manifest.payload_path("virus-pattern", "171")) == pattern(171)
    vendor.ship("r173", {"virus-pattern": ("173", pattern(173))})
    assert client.plan().release == "r173"


def test_clients_follow_root_across_several_rotations(
    vendor: Vendor, client: Client, tmp_path: Path
) -> None:
    client.plan()
    vendor.rotate("root")
    second = (vendor.feed / "metadata" / "2.root.json").read_bytes()
    vendor.rotate("root")
    vendor.ship("r173", {"virus-pattern": ("173", pattern(173))})
    assert client.plan().release == "r173"
    assert Client(vendor, tmp_path / "later", root=second).plan().release == "r173"


def test_a_lost_root_key_of_three_is_replaced_by_the_other_two(tmp_path: Path) -> None:
    vendor = Vendor(tmp_path / "vendor", root_keys=3, root_threshold=2)
    client = Client(vendor, tmp_path / "client")
    client.sees("x")
    first, *_ = sorted((vendor.folder / "keys").glob("root-*.pem"))
    keyid = first.stem.removeprefix("root-")
    first.unlink()
    vendor.rotate("root", lost=True, keyid=keyid)
    vendor.ship("r1", {"virus-pattern": ("1", b"one")})
    assert client.plan().release == "r1"


def _kill_at(point: int, action: Callable[[], object]) -> bool:
    """Run `action` in a child that is killed at its `point`-th fault point; True if it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a worker of pytest has threads
        child = os.fork()
    if child == 0:
        counter = itertools.count(1)

        def hook(_point: str, _where: str) -> None:
            if next(counter) == point:
                os.kill(os.getpid(), signal.SIGKILL)

        durable.set_fault_hook(hook)
        try:
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _walk(
    vendor: Vendor, tmp_path: Path, action: Callable[[Vendor], object]
) -> list[tuple[Vendor, Client]]:
    """A copy of the vendor for each point at which `action` can be killed, and was."""
    killed = []
    for point in itertools.count(1):
        copy = Vendor(Path(shutil.copytree(vendor.folder, tmp_path / f"vendor-{point}")))
        if not _kill_at(point, lambda copy=copy: action(copy)):  # type: ignore[misc]
            return killed
        killed.append((copy, Client(copy, tmp_path / f"client-{point}")))
    raise AssertionError


def test_a_publish_killed_anywhere_leaves_a_valid_feed_and_can_be_repeated(
    vendor: Vendor, tmp_path: Path
) -> None:
    vendor.release("r173", {"virus-pattern": ("173", pattern(173)), "cleanup": ("1", b"x" * 1000)})
    walked = _walk(vendor, tmp_path, Vendor.publish)
    assert len(walked) > 50
    states = set()
    for copy, client in walked:
        is_out = client.sees(manifest.release_path("r173"))
        states.add(is_out)
        if is_out:
            assert client.read(manifest.payload_path("cleanup", "1")) == b"x" * 1000
        assert client.read(manifest.payload_path("virus-pattern", "171")) == pattern(171)
        copy.publish()
        assert client.release("r173").component("cleanup") is not None
        assert client.read(manifest.payload_path("virus-pattern", "173")) == pattern(173)
        assert list((copy.folder / "staging").iterdir()) == []
    assert states == {False, True}


@pytest.mark.parametrize("role", ["timestamp", "targets", "rollout"])
def test_a_key_exchange_killed_anywhere_leaves_a_valid_feed(
    vendor: Vendor, tmp_path: Path, role: str
) -> None:
    walked = _walk(vendor, tmp_path, lambda copy: copy.rotate(role))
    assert len(walked) > 20
    for copy, client in walked:
        assert client.plan().release == "r171"
        copy.publish()
        copy.rotate(role)
        assert client.plan().release == "r171"


def test_a_lost_key_exchange_killed_anywhere_is_ended_by_the_heartbeat(
    vendor: Vendor, tmp_path: Path
) -> None:
    def lose(copy: Vendor) -> None:
        copy.rotate("timestamp", lost=True)

    for copy, client in _walk(vendor, tmp_path, lose):
        copy.publish()
        assert client.plan().release == "r171"


def test_a_halt_killed_anywhere_leaves_a_valid_feed_and_can_be_repeated(
    vendor: Vendor, tmp_path: Path
) -> None:
    for copy, client in _walk(vendor, tmp_path, Vendor.halt):
        if client.plan().state is not RolloutState.HALTED:
            copy.halt("again")
        assert client.plan().state is RolloutState.HALTED


def test_the_trial_server_answers_range_and_not_modified(vendor: Vendor) -> None:
    transport = httpx.ASGITransport(serve.app(vendor.feed))

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=transport, base_url="http://feed") as http:
            whole = await http.get("/metadata/timestamp.json")
            etag = {"If-None-Match": whole.headers["etag"]}
            return [
                whole,
                await http.get("/metadata/timestamp.json", headers={"Range": "bytes=1-3"}),
                await http.get("/metadata/timestamp.json", headers=etag),
                await http.get("/%2e%2e/keys/keys.toml"),
            ]

    whole, part, again, outside = anyio.run(ask)
    assert [item.status_code for item in (whole, part, again, outside)] == [200, 206, 304, 404]
    assert part.content == whole.content[1:4]

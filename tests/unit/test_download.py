"""feed.download over real HTTP: resume, faults, and compressed forms that lie."""

from __future__ import annotations

import errno
import hashlib
import io
import random
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feed import decompress, durable
from feed.download import Downloader, compressed_limit
from feed.errors import RebuildError, RoomError, TransferError, TrustError
from feed.partial import Partial
from feed.source import Incoming
from feed.transport import Transport
from feed.zstd import CompressionParameter, ZstdCompressor
from tests.support.feedserver import Fault, FeedServer

PATH = "components/virus-pattern/171/full"
CONTENT = random.Random(171).randbytes(400_000) + bytes(600_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = f"{DIGEST}.full"


def pack(data: bytes) -> bytes:
    return ZstdCompressor().compress(data, ZstdCompressor.FLUSH_FRAME)


@dataclass
class Road:
    """A served target, and one machine that wants it."""

    server: FeedServer
    transport: Transport
    cache: Path
    destination: Path
    told: list[int] = field(default_factory=list)

    def fetch(self, *, compressed: bool = False, length: int = len(CONTENT)) -> int:
        downloader = Downloader(self.transport, self.cache, f"{self.server.url}targets")
        return downloader.fetch(
            PATH,
            length=length,
            digest=DIGEST,
            destination=self.destination,
            compressed=compressed,
            progress=self.told.append,
        )

    def break_off_at(self, size: int, *, compressed: bool = False) -> None:
        """Let a call fail after `size` bytes, and mend the road."""
        self.server.faults["full.zst" if compressed else "full"] = Fault(cut_after=size)
        patient, self.transport = self.transport, Transport(proxy="", attempts=1)
        with self.transport, pytest.raises(TransferError):
            self.fetch(compressed=compressed)
        self.transport = patient
        self.server.faults.clear()
        self.server.log.clear()

    @property
    def folder(self) -> Path:
        """Where the server keeps the target."""
        return self.server.folder / "targets" / "components" / "virus-pattern" / "171"

    def left_over(self) -> list[str]:
        return sorted(path.name for path in self.cache.iterdir())


@pytest.fixture
def road(tmp_path: Path) -> Iterator[Road]:
    folder = tmp_path / "feed" / "targets" / "components" / "virus-pattern" / "171"
    folder.mkdir(parents=True)
    (folder / NAME).write_bytes(CONTENT)
    (folder / f"{NAME}.zst").write_bytes(pack(CONTENT))
    with (
        FeedServer(tmp_path / "feed") as server,
        Transport(proxy="", attempts=2, sleep=lambda _s: None) as transport,
    ):
        yield Road(server, transport, tmp_path / "cache", tmp_path / "out" / "full")


def test_a_target_arrives_whole_and_leaves_no_trace(road: Road) -> None:
    assert road.fetch() == len(CONTENT)
    assert road.destination.read_bytes() == CONTENT
    assert road.left_over() == []
    assert road.server.paths == [f"targets/components/virus-pattern/171/{NAME}"]


def test_progress_rises_to_the_length(road: Road) -> None:
    road.fetch()
    assert road.told == sorted(road.told)
    assert road.told[-1] == len(CONTENT)


def test_a_broken_download_goes_on_in_the_same_call(road: Road) -> None:
    road.server.faults["full"] = Fault(cut_after=300_000, times=1)
    assert road.fetch() == len(CONTENT)
    assert road.destination.read_bytes() == CONTENT
    assert [entry.status for entry in road.server.log] == [200, 206]


def test_a_road_that_breaks_often_is_travelled_all_the_same(road: Road) -> None:
    road.server.faults["full"] = Fault(cut_after=200_000, times=4)
    assert road.fetch() == len(CONTENT)
    assert len(road.server.log) == 5


def test_a_broken_download_goes_on_in_the_next_call(road: Road) -> None:
    road.break_off_at(300_000)
    assert not road.destination.exists()
    before = (road.cache / f"{DIGEST}.part").stat().st_size
    assert before >= 300_000
    assert road.fetch() == len(CONTENT) - before
    assert road.destination.read_bytes() == CONTENT
    asked = road.server.log[0].headers
    assert asked["range"] == f"bytes={before}-"
    assert asked["if-range"].startswith('"')


def test_another_source_goes_on_where_the_first_stopped(road: Road) -> None:
    road.break_off_at(300_000)
    with FeedServer(road.server.folder) as other:
        road.server = other
        assert road.fetch() < len(CONTENT)
    assert "if-range" not in other.log[0].headers
    assert road.destination.read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(road: Road) -> None:
    road.break_off_at(300_000)
    road.server.faults["full"] = Fault(no_range=True)
    assert road.fetch() == len(CONTENT)
    assert road.destination.read_bytes() == CONTENT


def test_a_server_without_etags_is_resumed_too(road: Road) -> None:
    road.server.faults["full"] = Fault(cut_after=300_000, no_etag=True, times=1)
    assert road.fetch() == len(CONTENT)
    assert road.destination.read_bytes() == CONTENT


def test_an_altered_partial_is_thrown_away_and_fetched_anew(road: Road) -> None:
    road.break_off_at(300_000)
    partial = road.cache / f"{DIGEST}.part"
    partial.write_bytes(bytes(partial.stat().st_size))
    road.fetch()
    assert road.destination.read_bytes() == CONTENT
    assert road.left_over() == []


def test_a_partial_longer_than_signed_is_thrown_away(road: Road) -> None:
    road.cache.mkdir()
    (road.cache / f"{DIGEST}.part").write_bytes(bytes(len(CONTENT) + 1))
    assert road.fetch() == len(CONTENT)
    assert road.destination.read_bytes() == CONTENT


def test_a_partial_that_is_complete_travels_no_more(road: Road) -> None:
    road.cache.mkdir()
    (road.cache / f"{DIGEST}.part").write_bytes(CONTENT)
    assert road.fetch() == 0
    assert road.destination.read_bytes() == CONTENT
    assert road.server.log == []


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (CONTENT[:-1], "the source has 999,999 bytes, 1,000,000 are signed"),
        (CONTENT + b"x", r"announces 1,000,001 bytes.* 1,000,000 bytes are signed"),
        (CONTENT[:-1] + b"x", f"{DIGEST} is signed; discarded"),
    ],
    ids=["shorter", "longer", "other"],
)
def test_other_bytes_than_signed_never_arrive(road: Road, body: bytes, match: str) -> None:
    road.destination.parent.mkdir()
    road.destination.write_bytes(b"what was there before")
    road.server.faults["full"] = Fault(body=body)
    with pytest.raises(TrustError, match=match):
        road.fetch()
    assert road.destination.read_bytes() == b"what was there before"
    assert road.left_over() == []


def test_a_flipped_bit_is_refused(road: Road) -> None:
    road.server.faults["full"] = Fault(flip_at=700_000)
    with pytest.raises(TrustError, match="is signed; discarded"):
        road.fetch()
    assert not road.destination.exists()


def test_an_endless_target_is_cut_at_the_signed_length(road: Road) -> None:
    road.server.faults["full"] = Fault(endless=True)
    with pytest.raises(TrustError, match="sends more than"):
        road.fetch()
    assert road.left_over() == []


def test_a_target_that_keeps_ending_early_is_a_broken_road(road: Road) -> None:
    (road.folder / NAME).write_bytes(CONTENT[:-5])
    road.server.faults["full"] = Fault(no_range=True)
    with pytest.raises(TrustError, match="999,995 bytes"):
        road.fetch()


def test_an_empty_target_needs_no_road(road: Road) -> None:
    downloader = Downloader(road.transport, road.cache, f"{road.server.url}targets")
    digest = hashlib.sha256(b"").hexdigest()
    assert downloader.fetch("empty", length=0, digest=digest, destination=road.destination) == 0
    assert road.destination.read_bytes() == b""


@pytest.mark.parametrize("digest", ["", "../../x", DIGEST.upper(), f"{DIGEST}\n"])
def test_a_digest_that_is_none_names_no_file(road: Road, digest: str) -> None:
    downloader = Downloader(road.transport, road.cache, f"{road.server.url}targets")
    with pytest.raises(TrustError, match="signed without a SHA-256"):
        downloader.fetch(PATH, length=1, digest=digest, destination=road.destination)
    assert not road.cache.exists()


def test_a_source_whose_file_is_shorter_than_the_partial_is_found_out(road: Road) -> None:
    road.break_off_at(300_000)
    (road.folder / NAME).write_bytes(CONTENT[:10])
    with pytest.raises(TrustError, match="the source has 10 bytes, 1,000,000 are signed"):
        road.fetch()
    assert road.left_over() == []


def test_plain_names_are_used_where_the_feed_has_them(road: Road) -> None:
    (road.folder / "full").write_bytes(CONTENT)
    url = f"{road.server.url}targets/"
    downloader = Downloader(road.transport, road.cache, url, hash_prefixed=False)
    downloader.fetch(PATH, length=len(CONTENT), digest=DIGEST, destination=road.destination)
    assert road.server.paths == [f"targets/{PATH}"]


def test_a_file_source_is_resumed_like_any_other(road: Road) -> None:
    road.break_off_at(300_000)
    url = (road.server.folder / "targets").as_uri()
    moved = Downloader(road.transport, road.cache, url).fetch(
        PATH, length=len(CONTENT), digest=DIGEST, destination=road.destination
    )
    assert moved < len(CONTENT)
    assert road.destination.read_bytes() == CONTENT


def test_the_compressed_form_saves_the_road(road: Road) -> None:
    moved = road.fetch(compressed=True)
    assert moved == (road.folder / f"{NAME}.zst").stat().st_size < len(CONTENT) // 2
    assert road.destination.read_bytes() == CONTENT
    assert road.left_over() == []


def test_the_compressed_form_is_kept_where_it_is_wanted(road: Road, tmp_path: Path) -> None:
    kept = tmp_path / "kept.zst"
    fetch = Downloader(road.transport, road.cache, f"{road.server.url}targets").fetch
    wanted = {"length": len(CONTENT), "digest": DIGEST, "destination": road.destination}
    fetch(PATH, **wanted, compressed=True, compressed_to=kept)  # type: ignore[arg-type]
    assert kept.read_bytes() == pack(CONTENT)
    assert road.left_over() == []
    kept.unlink()
    road.server.faults["full.zst"] = Fault(body=pack(b"a lie"))
    fetch(PATH, **wanted, compressed=True, compressed_to=kept)  # type: ignore[arg-type]
    assert road.destination.read_bytes() == CONTENT
    assert not kept.exists()


def test_a_compressed_download_goes_on_in_the_next_call(road: Road) -> None:
    road.break_off_at(200_000, compressed=True)
    assert road.left_over() == [f"{DIGEST}.zst.part", f"{DIGEST}.zst.part.from"]
    road.fetch(compressed=True)
    assert road.server.log[0].status == 206
    assert road.destination.read_bytes() == CONTENT


def test_a_compressed_partial_of_another_source_is_started_over(road: Road) -> None:
    road.break_off_at(200_000, compressed=True)
    with FeedServer(road.server.folder) as other:
        road.server = other
        road.fetch(compressed=True)
    assert [entry.status for entry in other.log] == [200]
    assert road.destination.read_bytes() == CONTENT


def test_a_compressed_form_made_anew_meanwhile_is_started_over(road: Road) -> None:
    road.break_off_at(200_000, compressed=True)
    again = ZstdCompressor(options={CompressionParameter.compression_level: 1})
    packed = again.compress(CONTENT, ZstdCompressor.FLUSH_FRAME)
    (road.folder / f"{NAME}.zst").write_bytes(packed)
    assert road.fetch(compressed=True) == len(packed)
    assert road.destination.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not zstd at all",
        pack(CONTENT)[:-1],
        pack(CONTENT[:-1]),
        pack(CONTENT + b"x"),
        pack(CONTENT[:-1] + b"x"),
        pack(CONTENT) + b"trailing",
        pack(bytes(100_000_000)),
        bytes(len(CONTENT) + 100_000),
    ],
    ids=["empty", "no-zstd", "cut", "short", "long", "other", "trailing", "bomb", "bigger"],
)
def test_a_bad_compressed_form_costs_only_its_bytes(road: Road, body: bytes) -> None:
    road.server.faults["full.zst"] = Fault(body=body)
    moved = road.fetch(compressed=True)
    assert moved <= len(CONTENT) + len(body)
    assert road.destination.read_bytes() == CONTENT
    assert road.left_over() == []
    assert sorted(path.name for path in road.destination.parent.iterdir()) == ["full"]


@pytest.mark.parametrize("status", [403, 404, 410, 500])
def test_a_missing_compressed_form_is_no_trouble(road: Road, status: int) -> None:
    road.server.faults["full.zst"] = Fault(status=status)
    assert road.fetch(compressed=True) == len(CONTENT)


def test_a_source_that_asks_for_a_pause_isnt_asked_for_the_plain_one(road: Road) -> None:
    road.server.faults["full.zst"] = Fault(status=429, headers={"Retry-After": "900"})
    with pytest.raises(TransferError) as caught:
        road.fetch(compressed=True)
    assert caught.value.retry_after_s == 900
    assert len(road.server.log) == 1


def test_a_full_disk_leaves_only_what_can_go_on(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Partial.take

    def full_after_a_while(self: Partial, incoming: Incoming) -> Iterator[int]:
        for size in real(self, incoming):
            if size > 300_000:
                raise OSError(errno.ENOSPC, "No space left on device", str(self.path))
            yield size

    monkeypatch.setattr(Partial, "take", full_after_a_while)
    with pytest.raises(RoomError, match=r"the disk is full at .*\.part"):
        road.fetch()
    monkeypatch.undo()
    assert road.left_over() == [f"{DIGEST}.part", f"{DIGEST}.part.from"]
    assert road.fetch() < len(CONTENT)
    assert road.destination.read_bytes() == CONTENT


def test_a_full_disk_while_decoding_leaves_no_half_file(road: Road) -> None:
    def full(point: str, where: str) -> None:
        if point == "fsync":
            raise OSError(errno.ENOSPC, "No space left on device", where)

    durable.set_fault_hook(full)
    try:
        with pytest.raises(RoomError):
            road.fetch(compressed=True)
    finally:
        durable.set_fault_hook(None)
    assert list(road.destination.parent.iterdir()) == []
    assert road.left_over() == [f"{DIGEST}.zst.part", f"{DIGEST}.zst.part.from"]
    assert road.fetch(compressed=True) == 0
    assert road.destination.read_bytes() == CONTENT


def test_another_file_system_gets_a_verified_copy(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = durable.rename

    def across(source: Path, target: Path, *, flush: bool) -> None:
        if source.suffix == ".part":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(source, target, flush=flush)

    monkeypatch.setattr(durable, "rename", across)
    road.fetch()
    assert road.destination.read_bytes() == CONTENT
    assert road.left_over() == []


def test_a_link_in_the_cache_is_not_followed(road: Road, tmp_path: Path) -> None:
    road.cache.mkdir()
    precious = tmp_path / "precious"
    precious.write_bytes(b"")
    (road.cache / f"{DIGEST}.part").symlink_to(precious)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        road.fetch()
    assert precious.read_bytes() == b""


def test_memory_stays_bounded_whatever_the_size(road: Road) -> None:
    content = bytes(24_000_000)
    digest = hashlib.sha256(content).hexdigest()
    (road.folder / f"{digest}.full").write_bytes(content)
    (road.folder / f"{digest}.full.zst").write_bytes(pack(content))
    downloader = Downloader(road.transport, road.cache, f"{road.server.url}targets")
    for compressed in (False, True):
        tracemalloc.start()
        downloader.fetch(
            PATH,
            length=len(content),
            digest=digest,
            destination=road.destination,
            compressed=compressed,
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8_000_000


def test_partials_nobody_wants_are_swept(road: Road) -> None:
    road.break_off_at(300_000)
    downloader = Downloader(road.transport, road.cache, "http://unused")
    (road.cache / f"{'0' * 64}.zst.part").write_bytes(b"x")
    assert [path.name for path in downloader.sweep({DIGEST})] == [f"{'0' * 64}.zst.part"]
    assert len(road.left_over()) == 2
    downloader.sweep(set())
    assert road.left_over() == []


@given(st.lists(st.binary(max_size=3000), max_size=4), st.integers(0, 200))
def test_any_number_of_frames_decodes_to_their_sum(parts: list[bytes], extra: int) -> None:
    content = b"".join(parts)
    packed = io.BytesIO(b"".join(pack(part) for part in parts))
    out = io.BytesIO()
    digest = decompress.decode(packed, out, limit=len(content) + extra)
    assert out.getvalue() == content
    assert digest == hashlib.sha256(content).hexdigest()


@given(st.binary(min_size=1, max_size=5000), st.data())
def test_a_cut_frame_never_passes(content: bytes, data: st.DataObject) -> None:
    packed = pack(content)
    cut = data.draw(st.integers(1, len(packed) - 1))
    with pytest.raises(RebuildError):
        decompress.decode(io.BytesIO(packed[:cut]), io.BytesIO(), limit=len(content))


def test_a_frame_that_wants_a_huge_window_is_refused() -> None:
    options = {CompressionParameter.window_log: 28}
    packed = ZstdCompressor(options=options).compress(b"small", ZstdCompressor.FLUSH_FRAME)
    streamed = ZstdCompressor(options=options)
    packed = streamed.compress(bytes(10)) + streamed.flush()
    with pytest.raises(RebuildError, match="doesn't decode"):
        decompress.decode(io.BytesIO(packed), io.BytesIO(), limit=1 << 30)


@given(st.binary(max_size=100_000))
def test_the_compressed_limit_never_refuses_an_honest_form(content: bytes) -> None:
    assert len(pack(content)) <= compressed_limit(len(content))

"""What an update may cost a machine: bytes of the road, work, memory; a whole agent each time."""

from __future__ import annotations

import random
from pathlib import Path

from agent.channel import NeedsFull, Staged
from feed import decompress
from feed.zstd import CompressionParameter, ZstdCompressor
from tests.support import machines
from tests.support.endpoint import Endpoint
from tests.support.feedserver import FeedServer
from tests.support.handovers import Handover
from tests.support.machines import PATTERN
from tests.support.vendor import Vendor

FULL_BYTES = len(machines.pattern(173))


def limit(endpoint: Endpoint, **values: int) -> None:
    """Set keys of [download]."""
    lines = "".join(f"{key} = {value}\n" for key, value in values.items())
    text = endpoint.config.read_text()
    endpoint.config.write_text(text.replace("[download]\n", f"[download]\n{lines}"))


def test_a_release_over_the_byte_limit_isnt_begun_and_is_taken_once_it_may_be(
    tmp_path: Path,
) -> None:
    vendor = machines.vendor(tmp_path, upto="r173")
    needed = machines.delta_of(vendor).stat().st_size
    with FeedServer(vendor.feed) as server:
        endpoint = machines.installed(tmp_path, server.url)
        text = endpoint.config.read_text()
        limit(endpoint, fetch_bytes_max=needed - 1)
        with machines.up(endpoint):
            machines.refused(
                endpoint,
                "download_limit",
                f"release r173 needs {needed:,} bytes, {needed - 1:,} may be fetched in a run; ",
                "nothing was fetched, what is installed stays, and every check looks again",
                f"fetch_bytes_max = {needed} or more under [download] (0: no limit)",
                "restart agentd, agentctl update",
            )
            looked = endpoint.ctl("check")
            assert looked.returncode == 1
            assert f"release r173 needs {needed:,} bytes" in looked.stderr
            assert endpoint.status()["standing"]["word"] == "late"
            assert len(endpoint.history()) == 1
            machines.untouched(endpoint)
        assert not any("/components/" in path for path in server.paths)
        endpoint.config.write_text(text)
        limit(endpoint, fetch_bytes_max=needed)
        with machines.up(endpoint):
            assert machines.updated(endpoint, "r173")["wire_bytes"] == needed


def test_a_spoilt_incremental_doesnt_become_a_full_over_the_limit(tmp_path: Path) -> None:
    vendor = machines.vendor(tmp_path, upto="r173")
    gone = machines.delta_of(vendor).stat().st_size
    machines.flip_bit(machines.delta_of(vendor))
    endpoint = machines.installed(tmp_path, vendor.url)
    limit(endpoint, fetch_bytes_max=FULL_BYTES + gone - 1)
    with machines.up(endpoint):
        said = machines.refused(endpoint, "download_limit", f"{gone:,} were fetched in vain")
        assert f"needs {FULL_BYTES + gone:,} bytes" in said
        machines.untouched(endpoint)


def test_a_rebuild_that_failed_doesnt_go_full_over_the_limit(tmp_path: Path) -> None:
    vendor = machines.vendor(tmp_path, upto="r173")
    endpoint = machines.installed(tmp_path, vendor.url)
    gone = machines.delta_of(vendor).stat().st_size
    limit(endpoint, fetch_bytes_max=FULL_BYTES + gone - 1)
    base = endpoint.layout.current / PATTERN / f"{PATTERN}.dat"
    with machines.up(endpoint):
        base.chmod(0o644)
        machines.flip_bit(base)
        said = machines.refused(endpoint, "download_limit", f"beside the {gone:,} that were")
        assert f"fetch_bytes_max = {FULL_BYTES + gone} or more" in said


def test_without_incrementals_allowed_everything_comes_in_full(tmp_path: Path) -> None:
    vendor = machines.vendor(tmp_path, upto="r173")
    for number, limits in enumerate(({"chain_links_max": 0}, {"rebuild_bytes_max": 1})):
        folder = tmp_path / str(number)
        endpoint = machines.installed(folder, vendor.url)
        limit(endpoint, **limits)
        with machines.up(endpoint):
            assert machines.updated(endpoint, "r173")["wire_bytes"] == FULL_BYTES


def test_the_stager_rebuilds_no_more_than_is_allowed_whatever_it_is_handed(tmp_path: Path) -> None:
    vendor = machines.vendor(tmp_path, upto="r173")
    endpoint = machines.installed(tmp_path, vendor.url)
    handed = Handover(endpoint)
    text = endpoint.config.read_text()
    for limits in ({"chain_links_max": 0}, {"rebuild_bytes_max": FULL_BYTES - 1}):
        endpoint.config.write_text(text)
        limit(endpoint, **limits)
        answer = handed.stage_apart()
        assert isinstance(answer, NeedsFull)
        assert answer.components == (PATTERN,)
    endpoint.config.write_text(text)
    limit(endpoint, chain_links_max=1, rebuild_bytes_max=FULL_BYTES)
    assert isinstance(handed.stage_apart(), Staged)


def test_a_compressed_copy_that_wants_too_much_memory_becomes_the_plain_full_in_the_same_run(
    tmp_path: Path,
) -> None:
    vendor = Vendor(tmp_path / "vendor")
    content = random.Random(4).randbytes(100_000) + bytes(400_000)
    vendor.ship("first", {PATTERN: ("1", content)})
    (copy,) = vendor.feed.glob("targets/components/*/1/*.full.zst")
    options = {CompressionParameter.window_log: decompress.WINDOW_LOG_MAX + 1}
    packer = ZstdCompressor(options=options)
    copy.write_bytes(packer.compress(content) + packer.flush())
    endpoint = Endpoint(
        tmp_path / "endpoint",
        url=vendor.url,
        root=vendor.root,
        health=machines.HEALTH,
        at_start=False,
    )
    with machines.up(endpoint):
        assert endpoint.ctl("update").returncode == 0
        (line,) = endpoint.history()
    assert (endpoint.layout.current / PATTERN / f"{PATTERN}.dat").read_bytes() == content
    assert line["outcome"] == "committed"
    assert line["wire_bytes"] == copy.stat().st_size + len(content)

"""The feed's files over HTTP, without a network: what is served, and what isn't."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.web.asgi import Message
from server.web.files import FeedFiles, Opened, wanted

DIGEST = "a" * 64
FULL = f"targets/components/virus-pattern/171/{DIGEST}.full"
CONTENT = bytes(range(256)) * 40


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    folder = tmp_path / "feed"
    for name, content in {
        "metadata/timestamp.json": b"{}",
        "metadata/1.root.json": b"{1}",
        FULL: CONTENT,
        f"{FULL}.zst": b"small",
        "root.key": b"secret",
        "targets/.tmp-x": b"half",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def asked(feed: Path, path: str, *, method: str = "GET", **headers: str) -> Answer:
    answer = Answer()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            answer.body += message["body"]

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    given = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    scope = {"type": "http", "method": method, "path": f"/feed/{path}", "headers": given}
    asyncio.run(FeedFiles(feed)(scope, receive, send))
    return answer


def test_a_file_is_served_whole_with_its_digest_as_its_tag(feed: Path) -> None:
    answer = asked(feed, FULL)
    assert (answer.status, answer.body) == (200, CONTENT)
    assert answer.headers["etag"] == f'"{DIGEST}"'
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["content-length"] == str(len(CONTENT))


def test_only_the_timestamp_is_asked_for_again(feed: Path) -> None:
    assert asked(feed, "metadata/timestamp.json").headers["cache-control"] == "no-cache"
    assert "immutable" in asked(feed, "metadata/1.root.json").headers["cache-control"]


def test_head_says_what_get_would_and_sends_nothing(feed: Path) -> None:
    head, get = asked(feed, FULL, method="HEAD"), asked(feed, FULL)
    assert (head.status, head.headers, head.body) == (200, get.headers, b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_refused(feed: Path, method: str) -> None:
    answer = asked(feed, FULL, method=method)
    assert answer.status == 405
    assert answer.headers["allow"] == "GET, HEAD"


def test_a_known_version_is_not_sent_again(feed: Path) -> None:
    tag = asked(feed, "metadata/timestamp.json").headers["etag"]
    for said in (tag, f'"x", {tag}', f"W/{tag}", "*"):
        answer = asked(feed, "metadata/timestamp.json", if_none_match=said)
        assert (answer.status, answer.body) == (304, b"")
        assert answer.headers["etag"] == tag


def test_a_replaced_timestamp_has_another_tag(feed: Path) -> None:
    path = feed / "metadata" / "timestamp.json"
    before = asked(feed, "metadata/timestamp.json").headers["etag"]
    new = path.with_name("new")
    new.write_bytes(b"[]")
    new.replace(path)
    after = asked(feed, "metadata/timestamp.json", if_none_match=before)
    assert (after.status, after.body) == (200, b"[]")


def test_a_compressed_copy_has_a_tag_of_its_own(feed: Path) -> None:
    first = asked(feed, f"{FULL}.zst").headers["etag"]
    assert DIGEST not in first
    (feed / f"{FULL}.zst").write_bytes(b"smaller")
    assert asked(feed, f"{FULL}.zst").headers["etag"] != first


def test_a_range_is_served_as_that_part(feed: Path) -> None:
    answer = asked(feed, FULL, range="bytes=100-199")
    assert (answer.status, answer.body) == (206, CONTENT[100:200])
    assert answer.headers["content-range"] == f"bytes 100-199/{len(CONTENT)}"
    assert asked(feed, FULL, range="bytes=-7").body == CONTENT[-7:]
    assert asked(feed, FULL, range="bytes=10200-").body == CONTENT[10200:]
    assert asked(feed, FULL, range="bytes=10200-99999999").body == CONTENT[10200:]


def test_a_range_past_the_end_is_refused(feed: Path) -> None:
    for said in (f"bytes={len(CONTENT)}-", "bytes=-0"):
        answer = asked(feed, FULL, range=said)
        assert answer.status == 416
        assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"


def test_a_range_of_another_version_gets_the_whole_file(feed: Path) -> None:
    tag = f'"{DIGEST}"'
    assert asked(feed, FULL, range="bytes=0-9", if_range=tag).status == 206
    for said in ('"other"', f"W/{tag}", "Sun, 22 Nov 2026 02:42:13 GMT"):
        answer = asked(feed, FULL, range="bytes=0-9", if_range=said)
        assert (answer.status, answer.body) == (200, CONTENT)


@given(st.text(max_size=30), st.integers(0, 1000))
def test_whatever_a_range_says_the_part_is_inside_the_file(text: str, size: int) -> None:
    for asked_for in (text, f"bytes={text}"):
        part = wanted(asked_for, None, Opened(0, size, '"x"'))
        if part is not None:
            assert 0 <= part.start <= part.start + part.length <= size
            assert part.is_whole == (part.length == size and part.start == 0) or part.length > 0


@pytest.mark.parametrize(
    "path",
    [
        "",
        "metadata",
        "metadata/",
        "metadata/none.json",
        "root.key",
        "targets/../root.key",
        "targets/components/../../root.key",
        "targets//components",
        "/metadata/timestamp.json",
        "metadata/timestamp.json/",
        "metadata/timestamp.json/x",
        "targets/.tmp-x",
        "targets/components",
        "targets/components/virus-pattern",
        "targets\\..\\root.key",
        "targets/..\\root.key",
        "metadata/time\0stamp.json",
        "metadata/" + "x" * 300,
        "metadata/" + "x/" * 100,
        "metadata/\udcff",
        "../feed/metadata/timestamp.json",
    ],
)
def test_everything_else_is_not_there(feed: Path, path: str) -> None:
    assert asked(feed, path).status == 404


def test_no_link_is_followed(feed: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    (feed / "targets" / "folder").symlink_to(secret)
    (feed / "targets" / "file").symlink_to(secret / "key")
    (feed / "targets" / "within").symlink_to(feed / FULL)
    for path in ("targets/folder/key", "targets/file", "targets/within"):
        assert asked(feed, path).status == 404


def test_a_linked_metadata_folder_is_not_followed(tmp_path: Path, feed: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "metadata").symlink_to(feed / "metadata")
    assert asked(other, "metadata/timestamp.json").status == 404


def test_what_is_no_file_is_not_there_and_does_not_block(feed: Path) -> None:
    os.mkfifo(feed / "targets" / "pipe")
    assert asked(feed, "targets/pipe").status == 404


def test_a_folder_that_is_not_there_yet_holds_nothing(tmp_path: Path) -> None:
    assert asked(tmp_path / "none", "metadata/timestamp.json").status == 404
    assert not FeedFiles(tmp_path / "none").is_there

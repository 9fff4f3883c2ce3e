"""What the processes say to each other: one line a message, bounded, or refused."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import channel
from agent.channel import (
    Begin,
    Checked,
    CycleFailed,
    Due,
    HandedOver,
    Host,
    Installed,
    LineBuffer,
    NeedsFull,
    Order,
    Progress,
    Reach,
    Reached,
    Result,
    Scheduled,
    StageRefused,
    Word,
)
from agent.errors import ControlError

TEXT = st.text(max_size=40)
COUNT = st.integers(0, 1 << 60)
MOMENT = st.floats(0, 1e10)
WORDS: st.SearchStrategy[Any] = st.one_of(
    st.builds(Due, trigger=TEXT),
    st.builds(Scheduled, next_check=MOMENT),
    st.builds(Progress, release=TEXT, done=COUNT, total=COUNT),
    st.builds(Checked, attempt=TEXT, source=TEXT, decision=TEXT, sentence=TEXT, fetch_bytes=COUNT),
    st.builds(
        HandedOver,
        attempt=TEXT,
        source=TEXT,
        release=TEXT,
        digest=TEXT,
        decision=TEXT,
        wire_bytes=COUNT,
        full_bytes=COUNT,
    ),
    st.builds(CycleFailed, attempt=TEXT, source=TEXT, code=TEXT, sentence=TEXT),
    st.builds(Reached, ok=st.booleans(), detail=TEXT),
)


@given(WORDS)
def test_a_word_is_one_line_and_comes_back_as_it_was(word: Any) -> None:
    stream = io.BytesIO()
    channel.send(stream, word)
    line = stream.getvalue()
    assert line.count(b"\n") == 1
    assert channel.decode(line, Word) == word


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_nothing_else_happens(data: bytes) -> None:
    for kind in (Word, Order, Result):
        with pytest.raises(ControlError):
            channel.decode(data, kind)


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b'{"type":"due"}',
        b'{"type":"unheard_of"}',
        b'{"type":"due","trigger":1}',
        b'{"type":"due","trigger":"\xff"}',
        b'{"type":"scheduled","next_check":1e400}',
        b'{"type":"scheduled","next_check":1e300}',
        b'{"type":"scheduled","next_check":-1}',
        b'{"type":"progress","release":"r","done":-1,"total":1}',
        b'{"type":"progress","release":"r","done":1,"total":%d}' % 10**30,
        b'{"type":"begin","attempt":"1","trigger":"t","download":true}',
    ],
)
def test_words_that_no_fetcher_says_are_refused(line: bytes) -> None:
    with pytest.raises(ControlError, match="not a message"):
        channel.decode(line, Word)


def test_a_message_past_the_limit_is_refused_unread() -> None:
    with pytest.raises(ControlError, match="1,048,577 bytes"):
        channel.decode(b"x" * (channel.LINE_BYTES_MAX + 1), Word)


@given(st.lists(st.binary(max_size=60).filter(lambda line: b"\n" not in line)), st.data())
def test_lines_come_out_whole_however_the_bytes_arrive(
    lines: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    buffer = LineBuffer()
    found: list[bytes] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += buffer.feed(stream[:size])
        stream = stream[size:]
    assert found == [line for line in lines if line]


@given(st.integers(1, 100), st.integers(0, 200), st.booleans())
def test_a_line_outgrows_the_limit_by_its_first_byte_too_many(
    limit: int, length: int, ended: bool
) -> None:
    data = b"x" * length + (b"\n" if ended else b"")
    buffer = LineBuffer(limit)
    if length > limit:
        with pytest.raises(ControlError, match=f"over {limit} bytes"):
            buffer.feed(data)
    else:
        assert buffer.feed(data) == ([b"x" * length] if ended and length else [])


def test_what_outgrew_the_limit_isnt_kept() -> None:
    buffer = LineBuffer(10)
    for _ in range(3):
        with pytest.raises(ControlError):
            buffer.feed(b"x" * 1000)
    assert buffer.feed(b"short\n") == [b"short"]


def test_orders_say_what_the_host_runs() -> None:
    host = Host(
        host_id="h",
        region="global",
        platform="linux",
        agent_version="0.1.0",
        active_release="r1",
        installed={"pattern": Installed(version="1", digest="d" * 64, length=3)},
        quarantine=(),
    )
    assert host.digests == {"pattern": "d" * 64}
    order = Begin(attempt="1", trigger="t", download=True, host=host)
    assert channel.decode(channel.encode(order), Order) == order
    assert channel.decode(channel.encode(Reach()), Order) == Reach()


def test_a_slot_without_content_or_with_problems_isnt_intact() -> None:
    fields: dict[str, Any] = {"slot": "a", "known": "s" * 64}
    assert not channel.SlotReport(**fields, content=None).intact
    content = channel.SlotContent(release="r", digest="d", seal="s")
    assert channel.SlotReport(**fields, content=content).intact
    assert not channel.SlotReport(**fields, content=content, problems=("x is missing",)).intact


def test_results_are_told_apart_by_their_names() -> None:
    for made in (NeedsFull(components=("a",), sentence="s"), StageRefused(code="c", sentence="s")):
        assert channel.decode(msgspec.json.encode(made), Result) == made

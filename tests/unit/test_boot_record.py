"""The boot record: whole, or an error; never a half truth."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import RecordError
from agent.slots import record
from agent.slots.record import Attempt, BootRecord, Phase, SlotContent
from feed import durable

A = SlotContent(release="r171", digest="1" * 64, seal="2" * 64)
B = SlotContent(release="r173", digest="3" * 64, seal="4" * 64)
ATTEMPT = Attempt(
    id="0001",
    release="r173",
    from_release="r171",
    changed={"pattern": "5" * 64},
    trigger="schedule",
    flipped_at=1.5,
)
TRIAL = BootRecord(
    phase=Phase.TRIAL,
    active="b",
    slots={"a": A, "b": B},
    tries_left=3,
    healthy_s=12.5,
    boot_id="boot",
    attempt=ATTEMPT,
)
DATA = record.serialize(TRIAL)


def forged(text: str) -> bytes:
    """A file with a right checksum over whatever record."""
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return f'{{"checksum":"{checksum}","record":{text}}}'.encode()


def test_what_is_stored_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "boot.json"
    for made in (BootRecord(), TRIAL):
        record.store(path, made)
        assert record.load(path) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_missing_file_is_a_fresh_machine(tmp_path: Path) -> None:
    found = record.load(tmp_path / "boot.json")
    assert (found.active, found.phase, found.content) == (None, Phase.COMMITTED, None)


def test_content_and_spare_follow_the_active_slot() -> None:
    assert (TRIAL.content, TRIAL.spare) == (B, "a")
    back = msgspec.structs.replace(TRIAL, active="a")
    assert (back.content, back.spare) == (A, "b")


def test_a_record_torn_at_any_byte_is_an_error() -> None:
    for length in range(len(DATA) - 1):  # without its last line feed it is still whole
        with pytest.raises(RecordError, match=r"boot\.json: "):
            record.parse(DATA[:length], where="boot.json")


def test_a_record_whose_blocks_were_never_written_is_an_error() -> None:
    for length in range(0, len(DATA), 16):
        torn = DATA[:length] + bytes(len(DATA) - length)
        with pytest.raises(RecordError):
            record.parse(torn, where="boot.json")


@given(st.integers(0, len(DATA) * 8 - 1))
def test_a_flipped_bit_is_an_error(at: int) -> None:
    flipped = bytearray(DATA)
    flipped[at // 8] ^= 1 << at % 8
    with pytest.raises(RecordError):
        record.parse(bytes(flipped), where="boot.json")


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode) | st.just(DATA[::-1]))
def test_a_foreign_file_is_an_error(data: bytes) -> None:
    with pytest.raises(RecordError):
        record.parse(data, where="boot.json")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[" * 100_000,
        b'{"schema":1,"phase":"committed"}',
        json.dumps({"checksum": "0" * 64, "record": {}}).encode(),
        DATA + DATA,
        forged('{"phase":"idle"}'),
        forged('{"active":"c"}'),
        forged('{"slots":{"c":{"release":"r","digest":"","seal":""}}}'),
        forged('{"tries_left":"3"}'),
        forged("[]"),
        forged("null"),
    ],
)
def test_what_isnt_a_boot_record_is_an_error(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "boot.json"
    path.write_bytes(data)
    with pytest.raises(RecordError, match=r"boot\.json"):
        record.load(path)


def test_an_endless_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "boot.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RecordError, match="the limit is 262,144"):
        record.load(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": 2}, "schema 2, this version reads 1"),
        ({"slots": {"a": A}}, "slot b is active and empty"),
        ({"attempt": None}, "phase trial without an attempt"),
        ({"phase": Phase.REVERTING, "attempt": None}, "phase reverting without an attempt"),
        ({"active": None}, "phase trial without an active slot"),
        ({"phase": Phase.KEEPING, "active": None}, "phase keeping without an active slot"),
        ({"tries_left": -1}, "negative tries"),
        ({"healthy_s": -0.5}, "negative tries or seconds"),
    ],
)
def test_a_record_that_contradicts_itself_is_an_error(
    changes: dict[str, object], said: str
) -> None:
    made = msgspec.structs.replace(TRIAL, **changes)
    with pytest.raises(RecordError, match=said):
        record.parse(record.serialize(made), where="boot.json")


def test_reverting_a_first_install_leaves_no_slot_active() -> None:
    made = msgspec.structs.replace(TRIAL, phase=Phase.REVERTING, active=None)
    assert record.parse(record.serialize(made), where="boot.json") == made


def test_an_interrupted_store_leaves_the_previous_record(tmp_path: Path) -> None:
    path = tmp_path / "boot.json"
    record.store(path, BootRecord())

    def cut(point: str, _where: str) -> None:
        if point == "rename":
            raise OSError(28, "No space left on device")

    durable.set_fault_hook(cut)
    try:
        with pytest.raises(OSError, match="No space left"):
            record.store(path, TRIAL)
    finally:
        durable.set_fault_hook(None)
    assert record.load(path) == BootRecord()


def test_an_unreadable_record_is_kept_for_people(tmp_path: Path) -> None:
    path = tmp_path / "boot.json"
    path.write_bytes(b"torn")
    kept = record.set_aside(path)
    assert kept.read_bytes() == b"torn"
    assert not path.exists()

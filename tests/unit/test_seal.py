"""Seals: a slot is exactly what its seal says, or the difference is named."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import SlotError
from agent.slots import seal as seals
from agent.slots.seal import Seal
from feed import durable
from feed.manifest import Activation, Component, Form, HealthPolicy, Kind


def component(name: str, *, form: Form = Form.FILE) -> Component:
    return Component(
        name=name,
        kind=Kind.PATTERN,
        version="173",
        form=form,
        filename="rules.yar" if form is Form.FILE else "",
        length=9,
        digest=hashlib.sha256(name.encode()).hexdigest(),
    )


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    """A slot with a file, a tree and a link in it, not sealed yet."""
    place = tmp_path / "a"
    (place / "pattern").mkdir(parents=True)
    (place / "pattern" / "rules.yar").write_bytes(b"rule a {}")
    (place / "pattern" / "rules.yar").chmod(0o444)
    (place / "engine" / "lib").mkdir(parents=True)
    (place / "engine" / "lib" / "core.so").write_bytes(b"\x7fELF")
    (place / "engine" / "lib" / "core.so").chmod(0o555)
    (place / "engine" / "lib64").symlink_to("lib")
    return place


def sealed(slot: Path) -> Seal:
    made = Seal(
        schema=seals.SCHEMA,
        release="r173",
        components=(component("pattern"), component("engine", form=Form.TREE)),
        activation=Activation(),
        health=HealthPolicy(),
        files=seals.scan(slot),
    )
    seals.write(slot, made)
    return made


def damage(slot: Path, change: Callable[[], object]) -> list[tuple[str, str, str]]:
    made = sealed(slot)
    assert seals.verify(slot, made) == []
    change()
    return [(item.path, item.component, item.problem) for item in seals.verify(slot, made)]


def test_a_seal_is_read_back_and_its_digest_is_what_the_record_keeps(slot: Path) -> None:
    made = sealed(slot)
    found, content = seals.read(slot)
    assert found == made
    assert content.release == "r173"
    assert content.digest == made.digest
    assert content.seal == hashlib.sha256((slot / seals.SEAL_NAME).read_bytes()).hexdigest()
    assert set(made.files) == {"pattern/rules.yar", "engine/lib/core.so", "engine/lib64"}


def test_an_altered_file_of_the_same_size_is_found(slot: Path) -> None:
    file = slot / "pattern" / "rules.yar"

    def alter() -> None:
        file.unlink()
        file.write_bytes(b"rule b {}")
        file.chmod(0o444)

    found = damage(slot, alter)
    assert [item[:2] for item in found] == [("pattern/rules.yar", "pattern")]
    assert "has digest" in found[0][2]


def test_a_file_of_another_size_is_found_with_the_numbers(slot: Path) -> None:
    file = slot / "pattern" / "rules.yar"
    file.chmod(0o644)
    found = damage(slot, lambda: file.write_bytes(b"rule"))
    assert found == [("pattern/rules.yar", "pattern", "is 4 bytes, the seal says 9")]


def test_a_missing_file_is_found(slot: Path) -> None:
    found = damage(slot, (slot / "engine" / "lib" / "core.so").unlink)
    assert found == [("engine/lib/core.so", "engine", "is missing")]


def test_an_added_file_is_found(slot: Path) -> None:
    found = damage(slot, (slot / "engine" / "lib" / "extra.so").touch)
    assert found == [("engine/lib/extra.so", "engine", "is not part of the release")]


def test_a_changed_mode_is_found(slot: Path) -> None:
    found = damage(slot, lambda: (slot / "engine" / "lib" / "core.so").chmod(0o4555))
    assert found == [("engine/lib/core.so", "engine", "has mode 4555, the seal says 555")]


def test_a_link_that_points_elsewhere_is_found(slot: Path) -> None:
    link = slot / "engine" / "lib64"

    def swap() -> None:
        link.unlink()
        link.symlink_to("/tmp")

    assert damage(slot, swap) == [("engine/lib64", "engine", "links to /tmp, the seal says lib")]


def test_a_file_swapped_for_a_link_to_its_copy_is_found(slot: Path, tmp_path: Path) -> None:
    file = slot / "pattern" / "rules.yar"

    def swap() -> None:
        file.rename(tmp_path / "copy")
        file.symlink_to(tmp_path / "copy")

    found = damage(slot, swap)
    assert [item[0] for item in found] == ["pattern/rules.yar"]
    assert "the seal says None" in found[0][2]


def test_a_folder_swapped_for_a_link_to_its_copy_is_found(slot: Path, tmp_path: Path) -> None:
    def swap() -> None:
        (slot / "pattern").rename(tmp_path / "copy")
        (slot / "pattern").symlink_to(tmp_path / "copy")

    assert ("pattern", "pattern", "is not part of the release") in damage(slot, swap)


def test_a_link_swapped_for_what_it_names_is_found(slot: Path) -> None:
    link = slot / "engine" / "lib64"

    def swap() -> None:
        link.unlink()
        link.write_bytes(b"")

    found = damage(slot, swap)
    assert found == [("engine/lib64", "engine", "links to None, the seal says lib")]


def test_a_fifo_in_a_files_place_is_found_without_opening_it(slot: Path) -> None:
    file = slot / "pattern" / "rules.yar"

    def swap() -> None:
        file.unlink()
        os.mkfifo(file)

    found = damage(slot, swap)
    assert found[0][0] == "pattern/rules.yar"
    assert "is neither a file nor a link" in found[0][2]


def test_what_an_interrupted_seal_left_is_no_damage(slot: Path) -> None:
    left = slot / f"{durable.TEMP_PREFIX}{seals.SEAL_NAME}.123"
    assert damage(slot, left.touch) == []


def test_a_file_cant_hide_behind_a_temporary_name(slot: Path) -> None:
    hidden = slot / "engine" / f"{durable.TEMP_PREFIX}plugin.so"
    assert damage(slot, hidden.touch) == [
        ("engine/.tmp-plugin.so", "engine", "is not part of the release")
    ]


def test_every_difference_is_named(slot: Path) -> None:
    def change() -> None:
        (slot / "pattern" / "rules.yar").unlink()
        (slot / "extra").touch()
        (slot / "engine" / "lib64").unlink()

    assert [item[0] for item in damage(slot, change)] == [
        "engine/lib64",
        "pattern/rules.yar",
        "extra",
    ]


def test_an_edited_seal_has_another_digest_than_the_record_keeps(slot: Path) -> None:
    kept = seals.write(slot, sealed(slot)).seal
    path = slot / seals.SEAL_NAME
    data = path.read_bytes().replace(b'"size":9', b'"size":8')
    path.chmod(0o644)
    path.write_bytes(data)
    assert seals.read(slot)[1].seal != kept


def test_a_slot_without_a_seal_is_not_complete(slot: Path) -> None:
    with pytest.raises(SlotError, match=r"slot a is not sealed \(.*release\.json is missing\)"):
        seals.read(slot)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"null", b"[" * 100_000, b"\xff", b'{"schema":2}', bytes(100)]
)
def test_a_seal_that_doesnt_parse_is_a_slot_error(data: bytes, slot: Path) -> None:
    (slot / seals.SEAL_NAME).write_bytes(data)
    with pytest.raises(SlotError, match=r"slot a: the seal .*release\.json can't be read"):
        seals.read(slot)


def test_a_seal_torn_at_any_byte_is_a_slot_error(slot: Path) -> None:
    sealed(slot)
    path = slot / seals.SEAL_NAME
    data = path.read_bytes()
    path.chmod(0o644)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(SlotError):
            seals.read(slot)


def test_a_seal_of_a_later_schema_is_refused(slot: Path) -> None:
    sealed(slot)
    path = slot / seals.SEAL_NAME
    data = path.read_bytes().replace(b'"schema":1', b'"schema":2')
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(SlotError, match="schema 2, this version reads 1"):
        seals.read(slot)


def test_an_endless_seal_is_refused(slot: Path) -> None:
    with (slot / seals.SEAL_NAME).open("wb") as file:
        file.truncate(seals.SEAL_BYTES_MAX + 1)
    with pytest.raises(SlotError, match="over 67,108,864 bytes"):
        seals.read(slot)


def test_a_seal_that_names_files_outside_its_slot_is_refused(slot: Path) -> None:
    sealed(slot)
    path = slot / seals.SEAL_NAME
    path.chmod(0o644)
    data = path.read_bytes()
    for name in (b"../b/x", b"/etc/passwd", b"a/../../x", b""):
        path.write_bytes(data.replace(b"pattern/rules.yar", name))
        with pytest.raises(SlotError, match="is no path inside the slot"):
            seals.read(slot)


def test_a_device_is_never_sealed(slot: Path) -> None:
    os.mkfifo(slot / "pipe")
    with pytest.raises(SlotError, match="pipe is neither a file nor a link"):
        seals.scan(slot)

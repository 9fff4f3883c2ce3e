"""Settings: what a trial edits comes back byte for byte."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import SettingsTarget
from agent.errors import ActivationError
from agent.guardian import settings
from agent.layout import Layout
from agent.slots.seal import SCHEMA, Seal
from feed import durable
from feed.manifest import Activation, Component, Form, HealthPolicy, Kind

HAND_MADE = (
    b"# scanner, edited by hand \xe9\r\n\r\n[scan]\r\ndepth=3\r\n; note = kept\r\n"
    b"  threads =  4 # all of them\r\ndepth = 5\r\nbroken line\x0cwith a form feed\r\nlast = 1"
)


class Machine:
    """A state folder with a sealed slot of settings, and their targets."""

    def __init__(self, folder: Path) -> None:
        self.layout = Layout(folder, folder / "run", folder / "root.json")
        self.slot = folder / "slots" / "a"
        self.target = folder / "scanner.conf"
        self.names: list[str] = []
        self.targets: list[SettingsTarget] = []

    def ship(self, values: Any, *, name: str = "scan-settings", target: Path | None = None) -> None:
        """Put a settings component into the slot; bytes go as they are."""
        folder = self.slot / name
        folder.mkdir(parents=True, exist_ok=True)
        data = values if isinstance(values, bytes) else json.dumps(values).encode()
        (folder / "values.json").write_bytes(data)
        if name not in self.names:
            self.names.append(name)
            file = str(target or self.target)
            self.targets.append(SettingsTarget(component=name, file=file))

    def apply(self, attempt: str = "1") -> None:
        targets = tuple(self.targets)
        settings.apply(self.layout, self.slot, self._seal(), targets, owner=attempt)

    def obstacle(self) -> str:
        return settings.obstacle(self._seal(), tuple(self.targets))

    def _seal(self) -> Seal:
        components = (
            *(self._component(name, Kind.SETTINGS) for name in self.names),
            self._component("virus-pattern", Kind.PATTERN),
        )
        return Seal(
            schema=SCHEMA,
            release="r",
            components=components,
            activation=Activation(),
            health=HealthPolicy(),
            files={},
        )

    @staticmethod
    def _component(name: str, kind: Kind) -> Component:
        return Component(
            name=name,
            kind=kind,
            version="1",
            form=Form.FILE,
            filename="values.json",
            length=1,
            digest="d" * 64,
        )

    def revert(self, attempt: str = "1") -> None:
        settings.revert(self.layout, owner=attempt)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_values_are_set_where_they_stand_and_the_rest_stays(machine: Machine) -> None:
    machine.target.write_bytes(HAND_MADE)
    machine.ship({"depth": 9, "threads": None, "new": "yes", "note": "mine"})
    machine.apply()
    assert machine.target.read_bytes() == (
        b"# scanner, edited by hand \xe9\r\n\r\n[scan]\r\ndepth = 9\r\n; note = kept\r\n"
        b"broken line\x0cwith a form feed\r\nlast = 1\r\nnew = yes\r\nnote = mine\r\n"
    )


def test_a_revert_brings_every_byte_and_the_mode_back(machine: Machine) -> None:
    machine.target.write_bytes(HAND_MADE)
    machine.target.chmod(0o640)
    machine.ship({"depth": 9})
    machine.apply()
    assert machine.target.read_bytes() != HAND_MADE
    assert stat.S_IMODE(machine.target.stat().st_mode) == 0o640
    machine.target.chmod(0o600)
    machine.revert()
    assert machine.target.read_bytes() == HAND_MADE
    assert stat.S_IMODE(machine.target.stat().st_mode) == 0o640


@given(st.binary(max_size=200), st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)))
def test_any_target_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, before: bytes, values: dict[str, int]
) -> None:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    machine.target.write_bytes(before)
    machine.ship(values)
    machine.apply()
    machine.apply()
    machine.revert()
    assert machine.target.read_bytes() == before


def test_a_target_that_didnt_exist_is_taken_away_again(machine: Machine) -> None:
    machine.ship({"depth": 9})
    machine.apply()
    assert machine.target.read_text() == "depth = 9\n"
    machine.revert()
    assert not machine.target.exists()
    machine.revert()


def test_applying_twice_keeps_what_was_there_before_the_first(machine: Machine) -> None:
    machine.target.write_text("depth = 1\n")
    machine.ship({"depth": 2})
    machine.apply()
    machine.apply()
    machine.revert()
    assert machine.target.read_text() == "depth = 1\n"


def test_another_attempt_undoes_nothing(machine: Machine) -> None:
    machine.target.write_text("depth = 1\n")
    machine.ship({"depth": 2})
    machine.apply("1")
    machine.revert("2")
    assert machine.target.read_text() == "depth = 2\n"
    machine.ship({"depth": 3})
    machine.apply("2")
    machine.revert("2")
    assert machine.target.read_text() == "depth = 2\n"


def test_what_is_settled_is_undone_no_more(machine: Machine) -> None:
    machine.ship({"depth": 2})
    machine.apply()
    settings.forget(machine.layout)
    settings.forget(machine.layout)
    machine.revert()
    assert machine.target.read_text() == "depth = 2\n"


def test_several_components_are_undone_together(machine: Machine, tmp_path: Path) -> None:
    other = tmp_path / "other.conf"
    machine.ship({"a": 1})
    machine.ship({"b": 1}, name="more-settings", target=other)
    machine.apply()
    assert (machine.target.read_text(), other.read_text()) == ("a = 1\n", "b = 1\n")
    machine.revert()
    assert not machine.target.exists()
    assert not other.exists()


def test_two_components_may_share_a_file(machine: Machine) -> None:
    machine.target.write_text("a = 0\n")
    machine.ship({"a": 1})
    machine.ship({"b": 1}, name="more-settings")
    machine.apply()
    assert machine.target.read_text() == "a = 1\nb = 1\n"
    machine.revert()
    assert machine.target.read_text() == "a = 0\n"


def test_a_release_without_settings_touches_nothing(machine: Machine) -> None:
    machine.apply()
    assert not machine.layout.settings_undo.exists()


def test_a_bad_payload_is_refused_before_the_first_edit(machine: Machine, tmp_path: Path) -> None:
    machine.target.write_text("a = 0\n")
    machine.ship({"a": 1})
    machine.ship(b"{", name="more-settings", target=tmp_path / "other.conf")
    with pytest.raises(ActivationError, match="not a flat JSON object"):
        machine.apply()
    assert machine.target.read_text() == "a = 0\n"


def test_a_component_without_a_target_names_the_missing_configuration(machine: Machine) -> None:
    machine.ship({"a": 1})
    machine.targets.clear()
    with pytest.raises(ActivationError, match=r"add \[\[settings\]\] component = 'scan-settings'"):
        machine.apply()


def test_a_target_too_large_to_undo_isnt_edited(machine: Machine) -> None:
    with machine.target.open("wb") as file:
        file.truncate(settings.TARGET_BYTES_MAX + 1)
    machine.ship({"a": 1})
    with pytest.raises(ActivationError, match="the limit is 4,194,304"):
        machine.apply()
    assert machine.target.stat().st_size == settings.TARGET_BYTES_MAX + 1


@pytest.mark.parametrize(
    ("value", "spelt"),
    [("text", "text"), ("", ""), (3, "3"), (-1.5, "-1.5"), (True, "true"), (False, "false")],
)
def test_values_are_spelt_as_people_write_them(value: settings.Value, spelt: str) -> None:
    assert settings.merged("", {"key": value}) == f"key = {spelt}\n"


def test_null_removes_every_line_of_its_key() -> None:
    assert settings.merged("a=1\nb=2\na = 3\n", {"a": None, "c": None}) == "b=2\n"


HOSTILE = ["", " ", " a", "a ", "a=b", "#a", "a#", "a\nb", "a\rb", "a\x00", "a\x0b", "a\x85b"]


@pytest.mark.parametrize("key", [*HOSTILE, "a\u2028b", "a\u2029b", "\x7f"])
def test_a_key_that_could_become_another_line_is_refused(key: str) -> None:
    with pytest.raises(ActivationError, match="can't be a setting's name"):
        settings.parse(json.dumps({key: 1}).encode(), where="values")


@pytest.mark.parametrize("value", ["a\nroot = 1", "a\r", "\x00", "a\u2028root = 1", "a\x0c"])
def test_a_value_that_could_become_another_line_is_refused(value: str) -> None:
    with pytest.raises(ActivationError, match="isn't one line of text"):
        settings.parse(json.dumps({"key": value}).encode(), where="values")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"a": [1]}',
        b'{"a": {"b": 1}}',
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b'{"a": 1e400}',
        b'{"a":' + b"[" * 100_000,
    ],
)
def test_a_payload_that_isnt_flat_is_refused(data: bytes) -> None:
    with pytest.raises(ActivationError, match="values: not a flat JSON object"):
        settings.parse(data, where="values")


def test_an_endless_payload_is_refused() -> None:
    with pytest.raises(ActivationError, match="the limit is 1,048,576"):
        settings.parse(b" " * (settings.PAYLOAD_BYTES_MAX + 1), where="values")


TEXT = st.text(max_size=30)


@given(
    st.text(alphabet="ab=# \t\r\n\x0c\u2028\xe9", max_size=60),
    st.dictionaries(TEXT, TEXT | st.integers() | st.booleans() | st.none(), max_size=5),
)
def test_what_is_merged_reads_back_and_nothing_else_has_changed(
    text: str, values: dict[str, settings.Value]
) -> None:
    try:
        accepted = settings.parse(json.dumps(values).encode(), where="values")
    except ActivationError:
        return
    assert accepted == values
    merged = settings.merged(text, accepted)
    assert settings.merged(merged, accepted) == merged
    found = read(merged)
    for key, value in accepted.items():
        assert found.get(key, []) == ([] if value is None else [settings._spelt(value).strip()])
    others = {key: held for key, held in read(text).items() if key not in accepted}
    assert {key: held for key, held in found.items() if key not in accepted} == others


def read(text: str) -> dict[str, list[str]]:
    """What an engine reads: the last word on how lines are split is LF."""
    found: dict[str, list[str]] = {}
    for line in re.split("\n", text):
        key, mark, value = line.partition("=")
        if mark and not key.strip().startswith("#"):
            found.setdefault(key.strip(), []).append(value.strip())
    return found


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"torn {",
        b'{"owner":"1","previous":[{"file":"/x","content":"not base64!","mode":420}]}',
        b"[" * 100_000,
    ],
)
def test_an_unreadable_undo_is_kept_for_people_and_the_revert_goes_on(
    machine: Machine, content: bytes
) -> None:
    machine.layout.settings_undo.write_bytes(content)
    machine.revert()
    assert not machine.layout.settings_undo.exists()
    kept = machine.layout.settings_undo.with_name("settings-undo.json.unreadable")
    assert kept.read_bytes() == content


def test_a_full_disk_leaves_the_target_and_the_undo_whole(machine: Machine) -> None:
    machine.target.write_text("a = 0\n")
    machine.ship({"a": 1})

    def full(point: str, where: str) -> None:
        if point == "fsync" and where.endswith("scanner.conf"):
            raise OSError(28, "No space left on device", where)

    durable.set_fault_hook(full)
    try:
        with pytest.raises(OSError, match="No space left"):
            machine.apply()
    finally:
        durable.set_fault_hook(None)
    assert machine.target.read_text() == "a = 0\n"
    machine.revert()
    assert machine.target.read_text() == "a = 0\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_an_obstacle_is_told_before_anything_is_edited(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.targets.append(SettingsTarget(component="unused", file="/nonexistent/x.conf"))
    machine.ship({"depth": 5})
    assert machine.obstacle() == ""
    machine.ship({"depth": 5}, name="more", target=tmp_path / "missing" / "x.conf")
    assert "its folder is missing" in machine.obstacle()
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)
    assert f"ReadWritePaths={tmp_path}" in machine.obstacle()


def test_an_engine_of_another_user_still_owns_its_file_afterwards(machine: Machine) -> None:
    """What root writes is root's: with mode 0640 the engine couldn't read it any more."""
    machine.target.write_bytes(b"depth = 1\n")
    machine.target.chmod(0o640)
    os.chown(machine.target, 65534, 65534)
    machine.ship({"depth": 9})
    machine.apply()
    found = machine.target.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65534, 65534, 0o640)
    os.chown(machine.target, 0, 0)
    machine.revert()
    found = machine.target.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65534, 65534, 0o640)


@pytest.mark.parametrize("other", ["link", "fifo", "folder"])
def test_a_target_that_is_no_file_is_neither_read_nor_replaced(
    machine: Machine, tmp_path: Path, other: str
) -> None:
    """The engine's user could point a link at a file that only root may read."""
    secret = tmp_path / "shadow"
    secret.write_bytes(b"root = secret\n")
    if other == "link":
        machine.target.symlink_to(secret)
    elif other == "fifo":
        os.mkfifo(machine.target)
    else:
        machine.target.mkdir()
    machine.ship({"depth": 9})
    with pytest.raises(ActivationError, match="name the file itself"):
        machine.apply()
    assert secret.read_bytes() == b"root = secret\n"
    assert not machine.layout.settings_undo.exists()

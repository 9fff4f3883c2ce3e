"""Settings in the registry: what a trial writes comes back, type and bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import config
from agent.config import SettingsTarget
from agent.errors import ActivationError, ConfigError
from agent.guardian import settings
from agent.host.registry import Key, Raw
from agent.layout import Layout
from agent.slots.seal import SCHEMA, Seal
from feed.manifest import Activation, Component, Form, HealthPolicy, Kind

TOP = Key("HKLM", "SOFTWARE\\Engine")


class Memory:
    """A registry that behaves; `fails` makes the next write fail."""

    def __init__(self) -> None:
        self.values: dict[tuple[Key, str], Raw] = {}
        self.keys: set[Key] = {Key("HKLM", "SOFTWARE")}
        self.fails = 0

    def read(self, key: Key, name: str) -> Raw | None:
        return self.values.get((key, name))

    def write(self, key: Key, name: str, value: Raw) -> None:
        if self.fails:
            self.fails -= 1
            raise PermissionError(13, "access denied", str(key))
        self.keys |= {key, *key.parents()}
        self.values[key, name] = value

    def delete(self, key: Key, name: str) -> None:
        self.values.pop((key, name), None)

    def exists(self, key: Key) -> bool:
        return key in self.keys

    def delete_empty(self, key: Key) -> None:
        used = {held for held, _ in self.values} | {
            up for item in self.keys for up in item.parents()
        }
        if key not in used:
            self.keys.discard(key)

    def state(self) -> tuple[dict[tuple[Key, str], Raw], set[Key]]:
        return dict(self.values), set(self.keys)


class Machine:
    """A state folder with a slot whose one component goes to the registry."""

    def __init__(self, folder: Path) -> None:
        self.layout = Layout(folder, folder / "run", folder / "root.json")
        self.slot = folder / "slots" / "a"
        self.registry = Memory()

    def apply(self, values: object, *, owner: str = "1", registry: bool = True) -> None:
        payload = self.slot / "cleanup"
        payload.mkdir(parents=True, exist_ok=True)
        (payload / "values.json").write_text(json.dumps(values))
        component = Component(
            name="cleanup", kind=Kind.SETTINGS, version="1", form=Form.FILE,
            filename="values.json", length=1, digest="d" * 64,
        )  # fmt: skip
        seal = Seal(
            schema=SCHEMA, release="r", components=(component,), activation=Activation(),
            health=HealthPolicy(), files={},
        )  # fmt: skip
        target = SettingsTarget(component="cleanup", registry=str(TOP))
        settings.apply(
            self.layout, self.slot, seal, (target,), owner=owner,
            registry=self.registry if registry else None,
        )  # fmt: skip

    def revert(self, owner: str = "1") -> None:
        settings.revert(self.layout, owner=owner, registry=self.registry)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


RAWS = st.builds(Raw, st.integers(0, 12), st.binary(max_size=20))
NAMES = st.sampled_from(["Depth", "Scan\\Depth", "Scan\\Deep\\Level"])
VALUES = st.none() | st.booleans() | st.integers(0, 1 << 40) | st.text("ab%", max_size=5)


@given(st.dictionaries(NAMES, RAWS), st.dictionaries(NAMES, VALUES))
def test_any_values_and_keys_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, before: dict[str, Raw], values: dict[str, object]
) -> None:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    for name, raw in before.items():
        path, _, value = f"{TOP}\\{name}".rpartition("\\")
        machine.registry.write(Key("HKLM", path.removeprefix("HKLM\\")), value, raw)
    known = machine.registry.state()
    machine.apply(values)
    machine.apply(values)
    machine.revert()
    machine.revert()
    assert machine.registry.state() == known


def test_values_are_written_below_the_key(machine: Machine) -> None:
    machine.registry.write(TOP, "Gone", Raw(1, b"x\0"))
    machine.apply({"Depth": 3, "Scan\\On": True, "Gone": None})
    assert machine.registry.values == {
        (TOP, "Depth"): Raw(4, b"\3\0\0\0"),
        (Key("HKLM", "SOFTWARE\\Engine\\Scan"), "On"): Raw(4, b"\1\0\0\0"),
    }


def test_a_key_that_somebody_else_uses_meanwhile_stays(machine: Machine) -> None:
    machine.apply({"Scan\\On": True})
    theirs = (Key("HKLM", "SOFTWARE\\Engine\\Scan"), "Theirs")
    machine.registry.write(*theirs, Raw(1, b""))
    machine.revert()
    assert machine.registry.values == {theirs: Raw(1, b"")}


def test_a_value_that_fits_nothing_is_refused_before_anything_is_written(machine: Machine) -> None:
    with pytest.raises(ActivationError, match="isn't a number the registry holds"):
        machine.apply({"Depth": 3, "Level": -1})
    assert machine.registry.values == {}
    assert not machine.layout.settings_undo.exists()


def test_a_write_that_fails_halfway_is_undone(machine: Machine) -> None:
    machine.registry.write(TOP, "Depth", Raw(4, b"\1\0\0\0"))
    known = machine.registry.state()
    machine.registry.fails = 1
    with pytest.raises(PermissionError):
        machine.apply({"Depth": 3, "Level": 4})
    machine.revert()
    assert machine.registry.state() == known


def test_what_couldnt_be_put_back_is_tried_again(machine: Machine) -> None:
    machine.registry.write(TOP, "Depth", Raw(4, b"\1\0\0\0"))
    known = machine.registry.state()
    machine.apply({"Depth": 3})
    machine.registry.fails = 1
    with pytest.raises(PermissionError):
        machine.revert()
    machine.revert()
    assert machine.registry.state() == known


def test_another_release_undoes_nothing(machine: Machine) -> None:
    machine.apply({"Depth": 3})
    machine.revert("2")
    assert machine.registry.values == {(TOP, "Depth"): Raw(4, b"\3\0\0\0")}


def test_without_a_registry_the_release_is_refused(machine: Machine) -> None:
    with pytest.raises(ActivationError, match="this isn't Windows"):
        machine.apply({"Depth": 3}, registry=False)


@pytest.mark.parametrize("target", ["", 'file = "x"\nregistry = "HKLM\\\\X"'])
def test_a_target_is_a_file_or_a_key(target: str) -> None:
    text = f'sources = [{{ url = "file:///x" }}]\n[[settings]]\ncomponent = "c"\n{target}\n'
    with pytest.raises(ConfigError, match="exactly one of file, registry"):
        config.parse(text.encode(), where="test")

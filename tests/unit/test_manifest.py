"""Manifests: what is signed is still checked whole, and read back as it was written."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feed import manifest
from feed.errors import ManifestError
from feed.manifest import (
    Activation,
    Compatibility,
    Component,
    Form,
    HealthPolicy,
    Kind,
    Release,
)

DIGEST = "ab" * 32


def component(**changes: Any) -> Component:
    made = Component(
        name="virus-pattern",
        kind=Kind.PATTERN,
        version="173",
        form=Form.FILE,
        filename="rules.yar",
        length=10,
        digest=DIGEST,
        predecessors=("171",),
    )
    return msgspec.structs.replace(made, **changes)


def release(*components: Component, **changes: Any) -> Release:
    made = Release(
        schema=manifest.SCHEMA,
        id="r173",
        created="2026-01-01T00:00:00Z",
        components=components or (component(),),
    )
    return msgspec.structs.replace(made, **changes)


def edited(path: str, value: object) -> bytes:
    """A good manifest with one field changed; path is dotted, numbers index."""
    data = json.loads(manifest.serialize(release()))
    *parents, last = path.split(".")
    place = data
    for key in parents:
        place = place[int(key) if key.isdigit() else key]
    place[last] = value
    return json.dumps(data).encode()


def refusal(data: bytes, *, expected_id: str = "r173") -> str:
    with pytest.raises(ManifestError) as caught:
        manifest.parse(data, expected_id=expected_id)
    assert str(caught.value).startswith(f"release {expected_id}: ")
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("schema", 2, "schema 2, this version reads 1"),
        ("schema", "1", "schema"),
        ("id", "r174", "calls itself 'r174'"),
        ("components", [], "0 components, expected 1 to 256"),
        ("components", {}, "Expected `array`"),
        ("components", None, "Expected `array`"),
        ("components.0.kind", "rootkit", "Invalid enum value 'rootkit'"),
        ("components.0.form", "tarball", "Invalid enum value 'tarball'"),
        ("components.0.length", -1, "length -1, expected 0 to 17,179,869,184"),
        ("components.0.length", 1 << 60, "length 1152921504606846976"),
        ("components.0.length", 1.5, "Expected `int`, got `float`"),
        ("components.0.length", True, "Expected `int`, got `bool`"),
        ("components.0.version", "v173", "version 'v173' doesn't parse"),
        ("components.0.version", "../1", "doesn't parse"),
        ("components.0.predecessors", ["x"], "version 'x' doesn't parse"),
        ("components.0.predecessors", [str(n) for n in range(15)], "15 predecessors, at most 14"),
        ("components.0.digest", DIGEST.upper(), "is not 64 lowercase hex digits"),
        ("components.0.digest", DIGEST[:-1], "is not 64 lowercase hex digits"),
        ("components.0.digest", DIGEST + "\n", "is not 64 lowercase hex digits"),
        ("components.0.name", "../up", "a name is a-z"),
        ("components.0.name", "Virus", "a name is a-z"),
        ("components.0.name", "", "a name is a-z"),
        ("components.0.name", "n" * 64, "a name is a-z"),
        ("components.0.filename", "", "doesn't fit a file"),
        ("components.0.filename", "a/b", "doesn't fit a file"),
        ("components.0.filename", "..", "doesn't fit a file"),
        ("components.0.form", "tree", "doesn't fit a tree"),
        ("compatibility", {"os": "linux"}, "Expected `array`"),
        ("compatibility", {"agent_min": "one"}, "version 'one' doesn't parse"),
        ("health", {"window_s": -1}, "health.window_s is -1.0, expected zero or more"),
        ("health", {"window_s": 0}, "health.window_s is 0, expected more than zero"),
        ("health", {"baseline_s": 1e9}, "expected at most 31,622,400 seconds"),
        ("health", {"tries": "three"}, "Expected `int"),
        ("health", {"cpu_factor": 1e300}, "health.cpu_factor"),
    ],
)
def test_an_unusable_field_is_refused_by_name(path: str, value: object, said: str) -> None:
    assert said in refusal(edited(path, value))


@pytest.mark.parametrize("role", sorted(manifest.RESERVED_ROLES))
def test_a_component_cant_take_the_name_of_a_role(role: str) -> None:
    assert "no role's name" in refusal(edited("components.0.name", role))


@pytest.mark.parametrize(
    "name", ["con", "NUL.yar", "aux.tar.gz", "com1", "LPT9.x", "a.", "-a", ".a"]
)
def test_a_file_name_that_windows_cant_hold_is_refused(name: str) -> None:
    assert "doesn't fit a file" in refusal(edited("components.0.filename", name))


@pytest.mark.parametrize("name", ["rules.yar", "console.dat", "a", "com10", "_x", "A-1.b_c"])
def test_a_plain_file_name_is_taken(name: str) -> None:
    assert manifest.is_filename(name)


def test_a_component_listed_twice_is_refused() -> None:
    twice = manifest.serialize(release(component(), component(version="175")))
    assert "component 'virus-pattern' is listed twice" in refusal(twice)


def test_a_manifest_under_another_id_is_refused() -> None:
    data = manifest.serialize(release())
    assert "calls itself 'r173'" in refusal(data, expected_id="r175")


@pytest.mark.parametrize("identity", ["", "../r", "a/b", ".r", "a" * 65, "a b", "r\n"])
def test_an_id_that_is_no_file_name_is_refused_even_when_it_is_expected(identity: str) -> None:
    assert not manifest.is_release_id(identity)
    with pytest.raises(ManifestError, match="calls itself"):
        manifest.parse(manifest.serialize(release(id=identity)), expected_id=identity)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"null", b"[]", b'"r173"', b"\xff\xfe", b'{"schema":1', b"[" * 100_000,
        b'{"schema":' * 50_000, b'{"id":"\xed\xa0\x80"}', b"NaN", bytes(1000),
    ],
)  # fmt: skip
def test_what_isnt_a_manifest_is_refused(data: bytes) -> None:
    assert "doesn't parse" in refusal(data)


def test_an_oversized_manifest_is_refused_unread() -> None:
    data = manifest.serialize(release()) + b" " * manifest.MANIFEST_BYTES_MAX
    assert "the limit is 1,048,576" in refusal(data)


def test_too_many_components_are_refused() -> None:
    many = [component(name=f"c{number}") for number in range(manifest.COMPONENTS_MAX + 1)]
    assert "257 components" in refusal(manifest.serialize(release(*many)))


def test_fields_of_a_later_version_are_passed_over() -> None:
    assert manifest.parse(edited("colour", "blue"), expected_id="r173") == release()


versions = st.lists(st.integers(0, 999), min_size=1, max_size=4).map(
    lambda parts: ".".join(map(str, parts))
)
components = st.builds(
    Component,
    name=st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True).filter(
        manifest.is_component_name
    ),
    kind=st.sampled_from(Kind),
    version=versions,
    form=st.just(Form.FILE),
    filename=st.sampled_from(["rules.yar", "engine", "a.b.c"]),
    length=st.integers(0, manifest.COMPONENT_BYTES_MAX),
    digest=st.binary(min_size=32, max_size=32).map(bytes.hex),
    predecessors=st.lists(versions, max_size=14).map(tuple),
)
seconds = st.none() | st.floats(0.001, manifest.PERIOD_MAX_S)
releases = st.builds(
    Release,
    schema=st.just(manifest.SCHEMA),
    id=st.just("r173"),
    created=st.text(st.characters(codec="utf-8"), max_size=20),
    components=st.lists(components, min_size=1, max_size=5, unique_by=lambda item: item.name).map(
        tuple
    ),
    compatibility=st.builds(
        Compatibility, os=st.lists(st.sampled_from(["linux", "win32"])).map(tuple)
    ),
    activation=st.builds(Activation, hooks=st.none() | st.lists(st.text(max_size=5)).map(tuple)),
    health=st.builds(HealthPolicy, warmup_s=seconds, cpu_factor=seconds, window_s=seconds),
)


@given(releases)
def test_what_is_written_is_read_back_and_written_the_same(made: Release) -> None:
    data = manifest.serialize(made)
    found = manifest.parse(data, expected_id="r173")
    assert found == made
    assert manifest.serialize(found) == data


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(
    path=st.sampled_from(
        ["schema", "id", "created", "components", "compatibility", "activation", "health"]
        + [f"components.0.{field}" for field in Component.__struct_fields__]
    ),
    value=json_values,
)
def test_any_value_in_any_field_parses_or_is_a_manifest_error(path: str, value: object) -> None:
    try:
        manifest.parse(edited(path, value), expected_id="r173")
    except ManifestError:
        return


@given(st.binary(max_size=300))
def test_any_bytes_are_a_manifest_error(data: bytes) -> None:
    with pytest.raises(ManifestError):
        manifest.parse(data, expected_id="r173")


def test_the_digest_of_a_release_is_of_its_contents_alone() -> None:
    one = release(component(name="a"), component(name="b", digest="cd" * 32))
    other = release(
        component(name="b", digest="cd" * 32, version="9"), component(name="a"), id="x", created=""
    )
    swapped = release(component(name="b"), component(name="a", digest="cd" * 32))
    assert one.digest == other.digest
    assert one.digest != swapped.digest


def test_a_component_is_found_by_its_name() -> None:
    made = release()
    assert made.component("virus-pattern") == made.components[0]
    assert made.component("engine") is None


def test_paths_in_the_feed_are_spelled_here() -> None:
    assert manifest.payload_path("p", "173") == "components/p/173/full"
    assert manifest.increment_path("p", old="171", new="173") == "components/p/173/from-171.delta"
    assert manifest.release_path("r173") == "releases/r173.json"
    assert manifest.rollout_path("global") == "rollout/global.json"


GOOD = {
    "base_digest": DIGEST,
    "result_digest": DIGEST,
    "result_length": 5,
    "format": "bsdiff4",
}


def test_an_incrementals_promise_is_read() -> None:
    found = manifest.parse_increment(GOOD, path="p")
    assert (found.result_length, found.format) == (5, "bsdiff4")


@pytest.mark.parametrize(
    "custom",
    [
        None,
        [],
        {},
        GOOD | {"base_digest": "xx"},
        GOOD | {"result_digest": DIGEST[:-2] + "ZZ"},
        GOOD | {"result_length": -1},
        GOOD | {"result_length": 1 << 50},
        GOOD | {"result_length": "5"},
        GOOD | {"format": None},
    ],
)
def test_an_unusable_promise_is_refused_with_its_path(custom: object) -> None:
    with pytest.raises(ManifestError, match=r"^components/p/1/from-0\.delta: "):
        manifest.parse_increment(custom, path="components/p/1/from-0.delta")

"""Which component is for whom: in a manifest, on a host, and on the release desk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from feed import manifest, rollout
from feed.errors import ManifestError
from feed.manifest import Component, Form, Kind, Release
from feed.rollout import Decision, RolloutPlan, RolloutState
from publisher.errors import RefusedError
from publisher.settings import ComponentInput, ReleaseInput
from tests.support.vendor import Vendor

DIGEST = "0" * 64


def component(name: str, **audience: str) -> Component:
    return Component(
        name=name, kind=Kind.PATTERN, version="171", form=Form.FILE, filename="f", length=1,
        digest=DIGEST, audience=audience or UNSET,
    )  # fmt: skip


def release(*components: Component, **traits: str) -> Release:
    return Release(
        schema=1, id="r1", created="", components=components, default_traits=traits or UNSET
    )


BOTH = release(
    component("engine"),
    component("virus-pattern", scan="conventional"),
    component("smart-scan-pattern", scan="smart"),
    scan="conventional",
)


def names(found: Release) -> list[str]:
    return [item.name for item in found.components]


def test_a_smart_scan_machine_gets_the_smart_pattern_and_a_conventional_one_the_other() -> None:
    assert names(BOTH.for_host({"scan": "smart"})) == ["engine", "smart-scan-pattern"]
    assert names(BOTH.for_host({"scan": "conventional"})) == ["engine", "virus-pattern"]
    assert names(BOTH.for_host({})) == ["engine", "virus-pattern"]
    assert names(BOTH.for_host({"scan": "another"})) == ["engine"]


@given(traits=st.dictionaries(st.sampled_from(["scan", "site"]), st.sampled_from(["smart", "x"])))
def test_nobody_ever_gets_both(traits: dict[str, str]) -> None:
    assert len({"virus-pattern", "smart-scan-pattern"} & set(names(BOTH.for_host(traits)))) <= 1


def test_every_entry_of_an_audience_must_fit() -> None:
    found = release(component("a", scan="smart", site="lab"), component("b"))
    assert names(found.for_host({"scan": "smart"})) == ["b"]
    assert names(found.for_host({"scan": "smart", "site": "lab"})) == ["a", "b"]


def test_a_manifest_without_audiences_has_the_bytes_it_always_had() -> None:
    data = manifest.serialize(release(component("a")))
    assert b"audience" not in data
    assert b"default_traits" not in data
    assert manifest.serialize(manifest.parse(data, expected_id="r1")) == data
    whole = manifest.serialize(BOTH)
    assert manifest.parse(whole, expected_id="r1") == BOTH


@pytest.mark.parametrize(
    "traits", [{"": "x"}, {"scan": "A B"}, {"scan": "x" * 64}, {str(n): "x" for n in range(17)}]
)
def test_traits_that_no_machine_could_have_are_refused(traits: dict[str, str]) -> None:
    for found in (release(component("a", **traits)), release(component("a"), **traits)):
        with pytest.raises(ManifestError, match=r"traits|audience"):
            manifest.parse(manifest.serialize(found), expected_id="r1")


def test_a_release_without_anything_for_a_machine_isnt_offered_to_it() -> None:
    plan = RolloutPlan(
        schema=1, region="global", state=RolloutState.ROLLING, release="r1", decided=""
    )
    offer = rollout.decide(
        plan, release(component("a", scan="smart")).for_host({}), host_id="h", platform="linux",
        agent_version="1", active_id=None, active={}, quarantine=(), now=0.0,
    )  # fmt: skip
    assert offer.decision is Decision.INCOMPATIBLE
    assert "traits" in offer.sentence


def given_component(name: str, tmp_path: Path, version: str, **more: object) -> ComponentInput:
    path = tmp_path / f"{name}-{version}"
    path.write_bytes(f"{name} {version}".encode())
    return ComponentInput(
        name=name, kind=Kind.PATTERN, version=version, path=str(path), filename="f", **more  # type: ignore[arg-type]
    )  # fmt: skip


def prepared(vendor: Vendor, release_id: str, wanted: ReleaseInput) -> Release:
    from publisher import home
    from publisher import release as desk

    staged = desk.prepare(home.look(vendor.folder, clock=vendor.now), release_id, wanted)
    vendor.publish(release_id)
    return staged.release


def test_an_audience_is_carried_over_until_it_is_said_anew(tmp_path: Path) -> None:
    vendor = Vendor(tmp_path / "vendor")
    smart = given_component("smart", tmp_path, "171", audience={"scan": "smart"})
    with pytest.raises(RefusedError, match="--default-trait scan=VALUE"):
        prepared(vendor, "r1", ReleaseInput(components=(smart,)))
    virus = given_component("virus", tmp_path, "171", audience={"scan": "conventional"})
    first = ReleaseInput(components=(smart, virus), default_traits={"scan": "conventional"})
    assert names(prepared(vendor, "r1", first).for_host({})) == ["virus"]
    again = prepared(
        vendor, "r2", ReleaseInput(components=(given_component("smart", tmp_path, "173"),))
    )
    assert names(again.for_host({"scan": "smart"})) == ["smart"]
    assert names(again.for_host({})) == ["virus"]
    everybody = given_component("smart", tmp_path, "175", audience={})
    assert names(prepared(vendor, "r3", ReleaseInput(components=(everybody,))).for_host({})) == [
        "smart",
        "virus",
    ]


def test_the_command_says_for_whom(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from publisher.cli import cli

    vendor = Vendor(tmp_path / "vendor")
    (tmp_path / "f").write_bytes(b"content")
    arguments = ["--home", str(vendor.folder), "release", "r1", "--json"]
    for name in ("smart", "virus"):
        arguments += ["--component", f"{name}:pattern:171={tmp_path / 'f'}"]
    audiences = ["--audience", "smart:scan=smart", "--audience", "virus:scan=conventional"]
    done = CliRunner().invoke(cli, [*arguments, *audiences, "--default-trait", "scan=conventional"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)["release"]
    assert [item["audience"]["scan"] for item in told["components"]] == ["smart", "conventional"]
    for wrong in (["--audience", "x:scan=smart"], ["--default-trait", "scan"]):
        assert CliRunner().invoke(cli, [*arguments, *wrong]).exit_code == 2

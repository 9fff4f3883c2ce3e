"""Smart scan or conventional: one pattern of the two, and over to the other by configuration."""

from __future__ import annotations

from pathlib import Path

import msgspec

from publisher import home
from publisher import release as desk
from publisher.settings import ComponentInput, ReleaseInput
from tests.support.endpoint import Endpoint
from tests.support.vendor import Vendor

SCAN = {"virus-pattern": "conventional", "smart-scan-pattern": "smart"}


def ship(vendor: Vendor, number: int) -> None:
    """A release of both patterns and an engine that is everybody's."""
    folder = vendor.folder.parent / f"content-{number}"
    folder.mkdir()
    components = []
    for name in (*SCAN, "engine"):
        path = folder / f"{name}.dat"
        path.write_bytes(f"{name} {number} ".encode() * 300)
        scan = SCAN.get(name)
        components.append(
            ComponentInput(
                name=name,
                kind=msgspec.convert("pattern", type=desk.manifest.Kind),
                version=str(number),
                path=str(path),
                audience={"scan": scan} if scan else None,
            )
        )
    wanted = ReleaseInput(components=tuple(components), default_traits={"scan": "conventional"})
    desk.prepare(home.look(vendor.folder, clock=vendor.now), f"r{number}", wanted)
    vendor.publish(f"r{number}")
    vendor.offer(f"r{number}")


def held(endpoint: Endpoint) -> set[str]:
    """What is on the disk below the current link."""
    return {path.name for path in endpoint.layout.current.iterdir() if path.is_dir()}


def test_a_machine_has_one_of_the_two_patterns_and_moves_over_by_its_trait(tmp_path: Path) -> None:
    vendor = Vendor(tmp_path / "vendor")
    ship(vendor, 171)
    endpoint = Endpoint(tmp_path / "m", url=vendor.url, root=vendor.root)
    with endpoint.running():
        endpoint.wait_for_release("r171")
        assert held(endpoint) == {"engine", "virus-pattern"}
        assert endpoint.status()["traits"] == {}
    endpoint.configure(vendor.url, extra='[traits]\nscan = "smart"\n')
    with endpoint.running():
        endpoint.wait_for(lambda _: held(endpoint) == {"engine", "smart-scan-pattern"})
        status = endpoint.wait_for_release("r171")
        assert status["traits"] == {"scan": "smart"}
        assert endpoint.slot_problems() == []
        ship(vendor, 173)
        assert endpoint.ctl("update").returncode == 0
        assert endpoint.status()["release"] == "r173"
        assert held(endpoint) == {"engine", "smart-scan-pattern"}
        assert endpoint.ctl("check").stdout.startswith("runs r173")
    history = endpoint.history()
    assert [item["outcome"] for item in history] == ["committed"] * 3
    assert (history[1]["from_release"], history[1]["release"]) == ("r171", "r171")
    endpoint.configure(vendor.url)
    with endpoint.running():
        endpoint.wait_for(lambda _: held(endpoint) == {"engine", "virus-pattern"})
        endpoint.wait_for_release("r173")

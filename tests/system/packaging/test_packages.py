"""What is in the packages, and that anybody can build the same ones."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.support import packages
from tests.unit.test_requirements import pins

NEEDED = ("dpkg-deb", "rpmbuild", "rpm")


def listed(*command: str | Path) -> list[str]:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def files_of_deb(package: Path) -> set[str]:
    """The files of a .deb, without folders and without what is Debian's own."""
    lines = [line.split(None, 5) for line in listed("dpkg-deb", "--contents", package)]
    names = {line[5].split(" -> ")[0].removeprefix(".") for line in lines}
    return {name for name in names if not name.endswith("/")}


@pytest.mark.system(*NEEDED)
@pytest.mark.timeout(600)
def test_a_build_elsewhere_under_another_umask_gives_the_same_bytes(
    dist: Path, tmp_path: Path
) -> None:
    checkout = packages.copied(tmp_path / "elsewhere" / "sources")
    out = tmp_path / "out"
    environment = {"TZ": "Asia/Tokyo", "LC_ALL": "C", "HOME": str(tmp_path), "PYTHONHASHSEED": "7"}
    packages.build(checkout, out, "rpm", "deb", umask=0o077, **environment)
    assert sums(out) == sums(dist)


def sums(folder: Path) -> dict[str, str]:
    return {it.name: hashlib.sha256(it.read_bytes()).hexdigest() for it in folder.iterdir()}


@pytest.mark.system(*NEEDED, "lintian")
@pytest.mark.timeout(300)
def test_lintian_finds_no_error(debian: Path) -> None:
    done = subprocess.run(
        ["lintian", "--fail-on", "error", "--tag-display-limit", "0", str(debian)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == ""


@pytest.mark.system(*NEEDED)
@pytest.mark.timeout(300)
def test_both_packages_hold_the_same_program(debian: Path, fedora: Path) -> None:
    of_deb = {name for name in files_of_deb(debian) if name.startswith("/opt/")}
    of_rpm = {name for name in listed("rpm", "-qlp", fedora) if name.startswith("/opt/")}
    assert of_deb <= of_rpm
    assert {f"/opt/holdfast/bin/{name}" for name in ("agentd", "agentctl", "python3")} <= of_deb


@pytest.mark.system(*NEEDED)
@pytest.mark.timeout(300)
def test_nothing_of_the_vendors_tools_is_installed_on_endpoints(debian: Path) -> None:
    inside = files_of_deb(debian)
    assert [name for name in inside if "publisher" in name] == []
    assert [name for name in inside if name.endswith((".pyc", "direct_url.json"))] == []


@pytest.mark.system(*NEEDED)
@pytest.mark.timeout(300)
def test_every_unit_of_the_agent_is_installed(debian: Path, fedora: Path) -> None:
    units = {path.name for path in (packages.ROOT / "service/systemd").glob("holdfast-*.service")}
    wanted = units - {"holdfast-serverd.service"}
    of_deb = {Path(it).name for it in files_of_deb(debian) if it.startswith("/lib/systemd/system/")}
    of_rpm = {Path(it).name for it in listed("rpm", "-qlp", fedora) if "/systemd/system/" in it}
    assert wanted <= of_deb
    assert wanted <= of_rpm


def bills(dist: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(dist.glob("*.cdx.json"))]


@pytest.mark.system(*NEEDED)
@pytest.mark.timeout(300)
def test_each_package_has_a_bill_of_materials_that_fits_the_schema(dist: Path) -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert len(bills(dist)) == 2
    for bill in dist.glob("*.cdx.json"):
        assert validator.validate_str(bill.read_text()) is None
        package = bill.with_name(bill.name.removesuffix(".cdx.json"))
        (said,) = json.loads(bill.read_text())["metadata"]["component"]["hashes"]
        assert said["content"] == hashlib.sha256(package.read_bytes()).hexdigest()


@pytest.mark.system(*NEEDED)
@pytest.mark.timeout(300)
def test_the_bill_lists_what_the_lock_pins_with_the_locks_digests(dist: Path) -> None:
    lock = packages.ROOT / "requirements" / "agent.txt"
    for bill in bills(dist):
        components = bill["components"]
        listed = {it["name"]: it["version"] for it in components}
        assert listed == {name: pin for name, pin in pins(lock).items() if name != "pywin32"}
        assert all(it["hashes"][0]["content"] in lock.read_text() for it in components)
        assert all("licenses" in it for it in components)


@pytest.mark.system(*NEEDED)
@pytest.mark.timeout(300)
def test_sha256sum_accepts_what_was_built(dist: Path) -> None:
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=dist, check=False)
    assert done.returncode == 0

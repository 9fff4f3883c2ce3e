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

from tests.support import packages, rootfs
from tests.support.packages import Product
from tests.unit.test_requirements import pins

from builder.scripts import lifecycle  # isort: skip - packages has put it on the path

NEEDED = ("dpkg-deb", "rpmbuild", "rpm")


def listed(*command: str | Path) -> list[str]:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def files_of(product: Product, kind: str, dist: Path) -> set[str]:
    """The files of a package; of a .deb without folders."""
    package = packages.package_of(product, kind, dist)
    if kind == "rpm":
        return set(listed("rpm", "-qlp", package))
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
def test_lintian_finds_no_error(dist: Path) -> None:
    found = map(str, sorted(dist.glob("*.deb")))
    done = subprocess.run(
        ["lintian", "--fail-on", "error", "--tag-display-limit", "0", *found],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == ""


@pytest.mark.system(*NEEDED)
@pytest.mark.timeout(300)
def test_both_kinds_hold_the_same_program(dist: Path, product: Product) -> None:
    of_deb = {name for name in files_of(product, "deb", dist) if name.startswith("/opt/")}
    of_rpm = {name for name in files_of(product, "rpm", dist) if name.startswith("/opt/")}
    assert of_deb <= of_rpm
    assert {f"/{product.program}/bin/{name}" for name in (*product.commands, "python3")} <= of_deb


@pytest.mark.system(*NEEDED)
@pytest.mark.timeout(300)
def test_both_kinds_run_the_same_functions(dist: Path, product: Product) -> None:
    functions = lifecycle(product)
    folder = packages.package_of(product, "deb", dist)
    scripts = listed("rpm", "-qp", "--scripts", packages.package_of(product, "rpm", dist))
    assert "\n".join(scripts).count(functions.strip()) == 4
    for name in ("preinst", "postinst", "prerm", "postrm"):
        assert functions in "\n".join(listed("dpkg-deb", "--info", folder, name))


@pytest.mark.system(*NEEDED)
@pytest.mark.timeout(300)
def test_every_file_of_a_products_parts_is_installed(dist: Path, product: Product) -> None:
    """Modules, and what they read: pages, migrations, tables."""
    modules = product.modules(rootfs.PYTHON)
    wanted = {
        f"/{modules}/{path.relative_to(packages.ROOT)}"
        for part in product.parts
        for path in (packages.ROOT / part).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted - files_of(product, "deb", dist) == set()


@pytest.mark.system(*NEEDED)
@pytest.mark.timeout(300)
def test_nothing_of_other_programs_is_installed(dist: Path, product: Product) -> None:
    inside = files_of(product, "deb", dist)
    others = {"agent", "publisher", "server", "service"} - set(product.parts)
    modules = Path("/", product.modules(rootfs.PYTHON))
    tops = {Path(it).relative_to(modules).parts[0] for it in inside if modules in Path(it).parents}
    assert tops & others == set()
    assert f"/{product.program}/bin/publisher" not in inside
    assert [name for name in inside if name.endswith((".pyc", "direct_url.json"))] == []


@pytest.mark.system(*NEEDED)
@pytest.mark.timeout(300)
def test_the_units_the_settings_and_the_pages_are_installed(dist: Path, product: Product) -> None:
    of_deb, of_rpm = (files_of(product, kind, dist) for kind in ("deb", "rpm"))
    for name in product.units:
        assert f"/lib/systemd/system/{name}" in of_deb
        assert f"/usr/lib/systemd/system/{name}" in of_rpm
    for name in product.manual:
        assert f"/usr/share/man/man{name[-1]}/{name}.gz" in of_deb
        assert f"/usr/share/man/man{name[-1]}/{name}" in of_rpm
    for place in (product.pages / path.name for path in product.documents):
        assert {f"/{place}"} <= of_deb & of_rpm
    settings = [f"/etc/holdfast/{product.settings}"]
    assert listed("dpkg-deb", "--info", packages.package_of(product, "deb", dist), "conffiles") == (
        settings
    )
    assert listed("rpm", "-qcp", packages.package_of(product, "rpm", dist)) == settings


@pytest.mark.system(*NEEDED)
@pytest.mark.timeout(300)
def test_no_file_is_in_both_products_packages(dist: Path) -> None:
    """rpm lists folders too; those that both have are the system's, or the settings'."""
    agent, server = packages.AGENT, packages.SERVER
    assert files_of(agent, "deb", dist) & files_of(server, "deb", dist) == set()
    assert files_of(agent, "rpm", dist) & files_of(server, "rpm", dist) == {"/etc/holdfast"}


def bills(dist: Path, package: str = "*") -> list[dict[str, Any]]:
    found = sorted(dist.glob(f"{package}[_-][0-9]*.cdx.json"))
    return [json.loads(path.read_text()) for path in found]


@pytest.mark.system(*NEEDED)
@pytest.mark.timeout(300)
def test_each_package_has_a_bill_of_materials_that_fits_the_schema(dist: Path) -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert len(bills(dist)) == 4
    for bill in dist.glob("*.cdx.json"):
        assert validator.validate_str(bill.read_text()) is None
        package = bill.with_name(bill.name.removesuffix(".cdx.json"))
        component = json.loads(bill.read_text())["metadata"]["component"]
        assert package.name.startswith((f"{component['name']}_0", f"{component['name']}-0"))
        (said,) = component["hashes"]
        assert said["content"] == hashlib.sha256(package.read_bytes()).hexdigest()


@pytest.mark.system(*NEEDED)
@pytest.mark.timeout(300)
def test_the_bill_lists_what_the_lock_pins_with_the_locks_digests(
    dist: Path, product: Product
) -> None:
    lock = product.lock
    elsewhere = {"colorama", "pywin32", "tzdata"}  # on Windows
    for bill in bills(dist, product.package):
        components = bill["components"]
        listed = {it["name"]: it["version"] for it in components}
        assert listed == {name: pin for name, pin in pins(lock).items() if name not in elsewhere}
        assert all(it["hashes"][0]["content"] in lock.read_text() for it in components)
        assert all("licenses" in it for it in components)


@pytest.mark.system(*NEEDED)
@pytest.mark.timeout(300)
def test_the_bill_says_on_whose_account_each_library_is_there(dist: Path, product: Product) -> None:
    for bill in bills(dist, product.package):
        needs = {it["ref"]: it.get("dependsOn", []) for it in bill["dependencies"]}
        reached: set[str] = set()
        waiting = [bill["metadata"]["component"]["bom-ref"]]
        while waiting:
            reference = waiting.pop()
            if reference not in reached:
                reached.add(reference)
                waiting += needs[reference]
        assert {it["bom-ref"] for it in bill["components"]} <= reached


@pytest.mark.system(*NEEDED)
@pytest.mark.timeout(300)
def test_sha256sum_accepts_what_was_built(dist: Path) -> None:
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=dist, check=False)
    assert done.returncode == 0

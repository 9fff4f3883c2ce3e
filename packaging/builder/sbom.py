"""The bill of materials beside a package: CycloneDX 1.6, JSON.

What is listed is what was unpacked: each bundled library with the digest of
its wheel, the project itself with the digest of the package. The same package
has the same bill, its serial number and its time included.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement

from builder import licences
from builder.job import Job
from builder.project import Target
from builder.wheels import Wheel, digest_of

SUFFIX = ".cdx.json"


def write(job: Job, package: Path, modules: Path, *extra: Component) -> Path:
    """Write the bill of `package`, whose libraries are unpacked in `modules`.

    `extra` are bundled beside them. Returns the bill's path.
    """
    digest = digest_of(package)
    project = _component(job.own, modules, kind=ComponentType.APPLICATION, digest=digest)
    project.name = job.product.package
    libraries = {_key(it.name): _component(it, modules) for it in job.others}
    bom = Bom(
        components=[*libraries.values(), *extra],
        serial_number=uuid5(NAMESPACE_URL, f"sha256:{digest}"),
    )
    bom.metadata.component = project
    bom.metadata.timestamp = datetime.fromtimestamp(job.project.epoch, UTC)
    for name, needed in _dependencies(job, modules).items():
        bom.register_dependency(libraries.get(name, project), [libraries[it] for it in needed])
    bom.register_dependency(project, extra)
    bill = package.with_name(f"{package.name}{SUFFIX}")
    bill.write_text(JsonV1Dot6(bom).output_as_string(indent=2) + "\n", encoding="utf-8")
    return bill


def _component(
    wheel: Wheel, modules: Path, *, kind: ComponentType = ComponentType.LIBRARY, digest: str = ""
) -> Component:
    fields = licences.metadata(wheel, modules)
    said = licences.licence(fields)
    address = PackageURL("pypi", name=_key(wheel.name), version=wheel.version)
    return Component(
        type=kind,
        name=_key(wheel.name),
        version=wheel.version,
        description=str(fields["Summary"] or "") or None,
        licenses=[] if said == licences.UNKNOWN else [LicenseFactory().make_from_string(said)],
        purl=address,
        bom_ref=str(address),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest or wheel.digest)],
    )


def _dependencies(job: Job, modules: Path) -> dict[str, list[str]]:
    """By name, the bundled libraries that each wheel asks for on the target.

    Extras count: the project's for this product, and those that a wheel asks others with.
    """
    wheels = {_key(it.name): it for it in (job.own, *job.others)}
    extras = {name: {""} for name in wheels}
    extras[_key(job.own.name)].add(job.product.extra)
    found: dict[str, set[str]] = {name: set() for name in wheels}
    waiting = list(wheels)
    while waiting:
        name = waiting.pop()
        for needed in _requirements(wheels[name], modules, job.target, extras[name]):
            other = _key(needed.name)
            if other in wheels:
                found[name].add(other)
                if not needed.extras <= extras[other]:
                    extras[other] |= needed.extras
                    waiting.append(other)
    return {name: sorted(needed) for name, needed in found.items()}


def _requirements(
    wheel: Wheel, modules: Path, target: Target, extras: set[str]
) -> list[Requirement]:
    """What the wheel says it needs on the target, with its `extras`."""
    lines = licences.metadata(wheel, modules).get_all("Requires-Dist", [])
    asked = [Requirement(str(line)) for line in lines]
    environments = [{**target.environment, "extra": extra} for extra in extras]
    return [it for it in asked if not it.marker or any(it.marker.evaluate(e) for e in environments)]


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

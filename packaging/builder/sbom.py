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
from builder.wheels import Wheel, digest_of

SUFFIX = ".cdx.json"


def write(job: Job, package: Path, modules: Path, *extra: Component) -> Path:
    """Write the bill of `package`, whose libraries are unpacked in `modules`.

    `extra` are bundled beside them. Returns the bill's path.
    """
    digest = digest_of(package)
    project = _component(job.own, modules, kind=ComponentType.APPLICATION, digest=digest)
    libraries = {_key(it.name): _component(it, modules) for it in job.others}
    bom = Bom(
        components=[*libraries.values(), *extra],
        serial_number=uuid5(NAMESPACE_URL, f"sha256:{digest}"),
    )
    bom.metadata.component = project
    bom.metadata.timestamp = datetime.fromtimestamp(job.project.epoch, UTC)
    bom.register_dependency(project, [libraries[name] for name in _needs(job, job.own, modules)])
    bom.register_dependency(project, extra)
    for wheel in job.others:
        needed = [libraries[name] for name in _needs(job, wheel, modules)]
        bom.register_dependency(libraries[_key(wheel.name)], needed)
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


def _needs(job: Job, wheel: Wheel, modules: Path) -> list[str]:
    """The bundled libraries that `wheel` asks for on the target."""
    bundled = {_key(it.name) for it in job.others}
    wanted = set()
    for line in licences.metadata(wheel, modules).get_all("Requires-Dist", []):
        needed = Requirement(str(line))
        if needed.marker and not needed.marker.evaluate({**job.target.environment, "extra": ""}):
            continue
        wanted.add(_key(needed.name))
    return sorted(wanted & bundled)


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

"""The .rpm: the same tree and the same scripts, packed by rpmbuild."""

from __future__ import annotations

import shutil
from pathlib import Path

from builder import licences, program, sbom
from builder.errors import BuildError
from builder.job import Job
from builder.product import SETTINGS
from builder.project import GLIBC, REVISION, ROOT
from builder.scripts import filled, rendered

SPEC = ROOT / "packaging" / "rpm" / "holdfast.spec"
UNITS = "usr/lib/systemd/system"
# Folders that are the system's or another package's.
_SHARED = (
    "etc",
    "opt",
    "usr",
    "usr/*",
    "usr/*/*",
    "usr/*/*/system",
    "usr/share/man/*",
)


def build(job: Job) -> list[Path]:
    """Write the package and its bill of materials; returns their paths. Raises BuildError."""
    tree = job.work / "rpm"
    program.lay_out(tree, job, units=UNITS)
    text = licences.copyright_file(job, program.modules(tree, job))
    (tree / job.product.pages / "copyright").write_text(text, encoding="utf-8")
    program.set_modes(tree, job.project.epoch)
    spec = job.work / "holdfast.spec"
    spec.write_text(_spec(job, tree), encoding="utf-8")
    made = job.work / "rpms"
    options = [f"--define={name} {value}" for name, value in _macros(job, made).items()]
    job.run("rpmbuild", "-bb", "--quiet", "--target", job.target.machine, *options, str(spec))
    found = list(made.rglob("*.rpm"))
    if len(found) != 1:
        raise BuildError(f"rpmbuild made {len(found)} packages, expected one")
    package = job.out / found[0].name
    shutil.copyfile(found[0], package)
    return [package, sbom.write(job, package, program.modules(tree, job))]


def _macros(job: Job, made: Path) -> dict[str, str]:
    return {
        "_topdir": str(job.work / "rpmbuild"),
        "_rpmdir": str(made),
        "_tmppath": str(job.work),
        "_dbpath": str(job.work / "rpmdb"),
        "_buildhost": "reproducible",
        "use_source_date_epoch_as_buildtime": "1",
        "clamp_mtime_to_source_date_epoch": "1",
        "source_date_epoch_from_changelog": "0",
        # zstd, which every rpm since 4.14 reads.
        "_binary_payload": f"w{max(2 * job.level, 1)}.zstdio",
    }


def _spec(job: Job, tree: Path) -> str:
    values = {
        "NAME": job.product.package,
        "VERSION": job.project.version,
        "RELEASE": f"{REVISION}.py{job.target.python.replace('.', '')}",
        "SUMMARY": job.summary,
        "DESCRIPTION": "\n\n".join(job.product.description),
        "LICENCE": licences.VENDORS,
        "PACKAGER": job.project.packager,
        "MACHINE": job.target.machine,
        "PYTHON": job.target.python,
        "GLIBC": GLIBC,
        "TREE": str(tree),
        "SETTINGS": f"/{SETTINGS}/{job.product.settings}",
        "FILES": "\n".join(_entries(tree, SETTINGS / job.product.settings)),
    }
    return filled(rendered(SPEC, job.product), values)


def _entries(tree: Path, settings: Path) -> list[str]:
    """The lines of %files: every file but the settings, and the folders of the package's own."""
    lines = []
    for path in sorted(tree.rglob("*")):
        place = path.relative_to(tree)
        if place == settings:
            continue
        if not path.is_dir() or path.is_symlink():
            lines.append(f'"/{place}"')
        elif not any(
            place.match(shared) and len(place.parts) == shared.count("/") + 1 for shared in _SHARED
        ):
            lines.append(f'%dir "/{place}"')
    return lines

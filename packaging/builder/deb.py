"""The .deb: the tree, Debian's documents, and the maintainer scripts."""

from __future__ import annotations

import gzip
import hashlib
from email.utils import formatdate
from pathlib import Path

from builder import licences, program, sbom
from builder.job import Job
from builder.product import SETTINGS
from builder.project import GLIBC, REVISION, ROOT
from builder.scripts import filled, rendered

DEBIAN = ROOT / "packaging" / "debian"
UNITS = "lib/systemd/system"
SCRIPTS = ("preinst", "postinst", "prerm", "postrm")

_CONTROL = """\
Package: {package}
Version: {version}
Section: admin
Priority: optional
Architecture: {machine}
Maintainer: {packager}
Installed-Size: {kilobytes}
Depends: python{python}, libc6 (>= {glibc}), libgcc-s1, passwd
Recommends: systemd, ca-certificates
Description: {summary}
{description}
"""


def version(job: Job) -> str:
    return f"{job.project.version}-{REVISION}+py{job.target.python.replace('.', '')}"


def build(job: Job) -> list[Path]:
    """Write the package and its bill of materials; returns their paths. Raises BuildError."""
    root = job.work / "deb"
    program.lay_out(root, job, units=UNITS)
    _document(root, job)
    program.set_modes(root, job.project.epoch)
    _control(root, job)
    package = job.out / f"{job.product.package}_{version(job)}_{job.target.debian_machine}.deb"
    packing = ["-Zxz", f"-z{job.level}"] if job.level else ["-Zgzip", "-z1"]
    options = ["--root-owner-group", "--threads-max=1", *packing]
    job.run("dpkg-deb", *options, "--build", str(root), str(package))
    return [package, sbom.write(job, package, program.modules(root, job))]


def _document(root: Path, job: Job) -> None:
    documents = root / job.product.pages
    text = licences.copyright_file(job, program.modules(root, job))
    (documents / "copyright").write_text(text, encoding="utf-8")
    _pack(documents / "changelog.Debian.gz", _changes(job).encode())
    _pack(documents / "changelog.gz", (ROOT / "CHANGELOG.md").read_bytes())
    for page in sorted((root / program.MANUAL).rglob("*.[1-8]")):
        _pack(page.with_name(f"{page.name}.gz"), page.read_bytes())
        page.unlink()
    overrides = root / "usr/share/lintian/overrides" / job.product.package
    overrides.parent.mkdir(parents=True)
    text = (DEBIAN / "lintian-overrides").read_text(encoding="utf-8")
    overrides.write_text(filled(text, {"PACKAGE": job.product.package}), encoding="utf-8")


def _changes(job: Job) -> str:
    return (
        f"{job.product.package} ({version(job)}) stable; urgency=medium\n\n"
        f"  * Version {job.project.version}; changelog.gz says what is new.\n\n"
        f" -- {job.project.packager}  {formatdate(job.project.epoch)}\n"
    )


def _pack(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content, 9, mtime=0))


def _control(root: Path, job: Job) -> None:
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    paragraphs = (paragraph.split("\n") for paragraph in job.product.description)
    control = _CONTROL.format(
        package=job.product.package,
        version=version(job),
        machine=job.target.debian_machine,
        packager=job.project.packager,
        kilobytes=sum(-(-path.stat().st_size // 1024) for path in files),
        python=job.target.python,
        glibc=GLIBC,
        summary=f"{job.summary[0].lower()}{job.summary[1:]}",
        description="\n .\n".join("\n".join(f" {it}" for it in lines) for lines in paragraphs),
    )
    folder = root / "DEBIAN"
    folder.mkdir()
    folder.chmod(0o755)
    _write(folder / "control", control)
    _write(folder / "conffiles", f"/{SETTINGS}/{job.product.settings}\n")
    _write(folder / "md5sums", "".join(f"{_md5(it)}  {it.relative_to(root)}\n" for it in files))
    for name in SCRIPTS:
        _write(folder / name, rendered(DEBIAN / name, job.product), mode=0o755)


def _write(path: Path, text: str, *, mode: int = 0o644) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
    path.chmod(mode)


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()

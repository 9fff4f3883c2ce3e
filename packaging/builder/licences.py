"""What the bundled libraries say of their licences, in their own metadata."""

from __future__ import annotations

import time
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

from builder import unpack
from builder.job import Job
from builder.wheels import Wheel

UNKNOWN = "unknown"
VENDORS = "LicenseRef-vendor"  # the project names no licence of its own

_HEAD = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: holdfast
Comment: The texts of the libraries' licences are in their .dist-info folders
 below /{program}.

Files: *
Copyright: {year} The Holdfast authors
License: vendor
 Holdfast is distributed by its vendor, under the vendor's terms.
"""


def metadata(wheel: Wheel, modules: Path) -> Message:
    """The METADATA of an unpacked wheel."""
    text = (unpack.metadata_folder(wheel, modules) / "METADATA").read_text(encoding="utf-8")
    return HeaderParser().parsestr(text)


def licence(fields: Message) -> str:
    """As an SPDX expression where the library gives one, else in its own words."""
    if expression := fields["License-Expression"]:
        return str(expression)
    words = str(fields["License"] or "").strip()
    if words and "\n" not in words:
        return words
    marks = [line for line in fields.get_all("Classifier", []) if line.startswith("License :: ")]
    title = words.partition("\n")[0].strip()  # of a field that holds the whole text
    return " OR ".join(line.rsplit(" :: ", 1)[1] for line in marks) or title or UNKNOWN


def copyright_file(job: Job, modules: Path) -> str:
    """Debian's copyright file for all of the package."""
    program = job.product.program
    parts = [_HEAD.format(program=program, year=time.gmtime(job.project.epoch).tm_year)]
    for wheel in job.others:
        fields = metadata(wheel, modules)
        authors = fields["Author"] or fields["Author-email"] or f"the authors of {wheel.name}"
        folder = f"{program}/lib/*/{wheel.name.replace('-', '_')}*"
        parts.append(
            f"Files: {folder}\nCopyright: {' '.join(str(authors).split())}\n"
            f"License: {licence(fields)}\n {wheel.name} {wheel.version}\n"
        )
    return "\n".join(parts)

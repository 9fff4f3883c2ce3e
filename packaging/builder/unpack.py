"""Unpack wheels into a folder that Python imports from.

A wheel is a zip file of modules beside a folder of metadata. What pip would
add depends on the place and the time of the installation, so it isn't used:
here the files are those of the wheel, with modes of our own.

 * Names that would leave the folder are refused.
 * Of the project's own wheel only the parts that are asked for are taken, and
   its RECORD says what is there.
"""

from __future__ import annotations

import base64
import configparser
import csv
import hashlib
import io
import zipfile
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from builder.errors import BuildError
from builder.wheels import Wheel

_LIBRARIES = ("purelib", "platlib")


def unpack(wheel: Wheel, folder: Path, *, only: Collection[str] = ()) -> None:
    """Every module and the metadata of `wheel`, or of its top folders those in `only`.

    Raises BuildError: a name leaves the folder, or two wheels have the same file.
    """
    with zipfile.ZipFile(wheel.path) as archive:
        for item in archive.infolist():
            place = _place(item, wheel)
            if place is None or (only and not _is_of(place, only)):
                continue
            path = folder / place
            if path.exists():
                raise BuildError(f"{wheel.path.name}: {place} is another wheel's file too")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(item))
    if only:
        _narrow(metadata_folder(wheel, folder), folder, only)


def metadata_folder(wheel: Wheel, folder: Path) -> Path:
    """The wheel's .dist-info folder, once it is unpacked."""
    stem = "-".join(wheel.path.name.split("-")[:2])
    return folder / f"{stem}.dist-info"


def commands(wheel: Wheel, folder: Path) -> dict[str, str]:
    """Console scripts by name: `module:function`."""
    return dict(_entry_points(metadata_folder(wheel, folder))["console_scripts"])


def _place(item: zipfile.ZipInfo, wheel: Wheel) -> PurePosixPath | None:
    """Where in the folder a member belongs; None if nowhere."""
    path = PurePosixPath(item.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in item.filename:
        raise BuildError(f"{wheel.path.name}: {item.filename} leaves its folder")
    if item.is_dir():
        return None
    if path.parts[0].endswith(".data"):
        kind, *rest = path.parts[1:]
        return PurePosixPath(*rest) if kind in _LIBRARIES else None
    return path


def _is_of(place: PurePosixPath, only: Collection[str]) -> bool:
    return place.parts[0] in only or place.parts[0].endswith(".dist-info")


def _entry_points(metadata: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(delimiters="=", interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign] # names keep their case
    parser.read(metadata / "entry_points.txt", encoding="utf-8")
    return parser


def _narrow(metadata: Path, folder: Path, only: Collection[str]) -> None:
    """Take out of the metadata what was left out of the folder."""
    table = _entry_points(metadata)
    for name, entry in list(table["console_scripts"].items()):
        if entry.split(".")[0] not in only:
            del table["console_scripts"][name]
    with (metadata / "entry_points.txt").open("w", encoding="utf-8", newline="\n") as out:
        table.write(out)
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for top in sorted([*only, metadata.name]):
        for path in sorted((folder / top).rglob("*")):
            if path.is_file() and path.name != "RECORD":
                rows.writerow([path.relative_to(folder).as_posix(), *_sealed(path)])
    rows.writerow([f"{metadata.name}/RECORD", "", ""])
    (metadata / "RECORD").write_text(record.getvalue(), encoding="utf-8", newline="\n")


def _sealed(path: Path) -> tuple[str, int]:
    content = path.read_bytes()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"sha256={digest}", len(content)

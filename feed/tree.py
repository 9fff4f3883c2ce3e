"""A folder as a deterministic tar, and back.

A tree component's content is this tar: its digest and length are signed, and
it is the base of the next incremental, so the same files give the same bytes
on every machine and `pack(unpack(t)) == t`.

 * GNU format, names sorted by their bytes, folder before content, time 0,
   owner 0 without names, mode 0755 where executable and else 0644.
 * Files, folders (empty ones too) and symbolic links, nothing else.
 * A link is relative, climbs first and then descends, and stays inside.
 * Every name can exist on every system we serve: Windows' rules hold everywhere.

Both ways refuse the same things, and hold one chunk and the names in memory.
unpack creates each entry in a folder that it created itself and links last,
so there is no link that it could follow.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from feed.errors import ManifestError

MEMBERS_MAX = 100_000
DEPTH_MAX = 32
PATH_BYTES_MAX = 1024
NAME_BYTES_MAX = 255  # ext4, xfs and NTFS hold no longer one
CHUNK = 1 << 20

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
_PADDING_MAX = tarfile.RECORDSIZE  # other writers fill the last record
_LONG = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}

_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])", re.IGNORECASE)
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a fifo",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
    tarfile.XHDTYPE: "a PAX header",
    tarfile.XGLTYPE: "a PAX header",
}


def pack(folder: Path, out: BinaryIO) -> None:
    """Write `folder`'s content to `out` as a deterministic tar.

    Raises ManifestError: names an entry that unpack would refuse, or a file
    that changed meanwhile. OSError: something can't be read.
    """
    names = _Names()
    for path, entry in _entries(folder):
        member = _member(path, entry)
        names.admit(member)
        out.write(member.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict"))
        if member.isreg():
            _copy_in(Path(entry.path), member, out)
    out.write(_END)


def unpack(tar: BinaryIO, folder: Path, *, limit: int) -> None:
    """Write the files in `tar` below `folder`, which is made if missing.

    tar is used once, forwards. The files together hold at most `limit` bytes.
    Of a mode only the owner's executable bit counts. Nothing is flushed to the
    disk (feed.durable.sync_tree), and after an error what was written stays:
    the caller discards the folder.

    Raises ManifestError: not such a tar, or an entry that is refused; nothing
    outside `folder` was written. OSError: the disk failed, or `folder` holds
    a file of that name already.
    """
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    names = _Names()
    links: list[tarfile.TarInfo] = []
    for member in _members(tar):
        names.admit(member)
        if member.isreg():
            limit -= member.size
            if limit < 0:
                raise ManifestError(f"{_said(member.name)}: the files pass the limit of the tree")
            _copy_out(tar, member, folder / member.name)
        elif member.isdir():
            _make_folder(folder / member.name)
        else:
            links.append(member)
    for link in links:
        (folder / link.name).symlink_to(link.linkname)


def _entries(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything below `folder`, a folder before its content, names in byte order."""
    pending = [("", entry) for entry in _sorted(folder)]
    while pending:
        prefix, entry = pending.pop()
        path = prefix + entry.name
        yield path, entry
        if entry.is_dir(follow_symlinks=False):
            pending += [(f"{path}/", inner) for inner in _sorted(Path(entry.path))]


def _sorted(folder: Path) -> list[os.DirEntry[str]]:
    """Last name first, for a stack."""
    with os.scandir(folder) as found:
        return sorted(found, key=lambda entry: os.fsencode(entry.name), reverse=True)


def _member(path: str, entry: os.DirEntry[str]) -> tarfile.TarInfo:
    status = entry.stat(follow_symlinks=False)
    member = tarfile.TarInfo(path)
    member.mode = 0o755
    if stat.S_ISDIR(status.st_mode):
        member.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        member.type, member.linkname = tarfile.SYMTYPE, _link_text(entry.path)
    elif stat.S_ISREG(status.st_mode):
        member.size = status.st_size
        member.mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
    else:
        raise ManifestError(f"{_said(path)} is neither a file, a folder nor a link")
    return member


def _link_text(path: str) -> str:
    return os.readlink(path)  # noqa: PTH115 - Path would tidy up what the link says


def _copy_in(path: Path, member: tarfile.TarInfo, out: BinaryIO) -> None:
    left = member.size
    with _opened(path, os.O_RDONLY) as source:
        while left and (chunk := source.read(min(left, CHUNK))):
            left -= len(chunk)
            out.write(chunk)
        if left or source.read(1):
            raise ManifestError(f"{_said(member.name)} changed while it was packed")
    out.write(bytes(-member.size % _BLOCK))


def _members(tar: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The members of `tar`; whoever takes one reads its content before the next."""
    while any(block := _exactly(tar, _BLOCK)):
        long: dict[str, str] = {}
        while field := _LONG.get(block[156:157]):
            long[field] = _long_name(tar, block)
            block = _exactly(tar, _BLOCK)
        member = _parsed(block)
        for field, value in long.items():
            setattr(member, field, value)
        if member.isdir():
            member.name = member.name.removesuffix("/")
        yield member
    _check_end(tar)


def _long_name(tar: BinaryIO, block: bytes) -> str:
    """What GNU writes ahead of a member whose name or target passes 100 bytes."""
    size = _parsed(block).size
    if not 0 < size <= PATH_BYTES_MAX + len("/\0"):
        raise ManifestError(f"the tar has a name of {size:,} bytes, at most {PATH_BYTES_MAX:,}")
    data = _exactly(tar, size + -size % _BLOCK)[:size]
    return data.removesuffix(b"\0").decode("utf-8", "surrogateescape")


def _parsed(block: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as error:
        raise ManifestError(f"the tar has a malformed header: {error}") from error


def _check_end(tar: BinaryIO) -> None:
    rest = tar.read(_PADDING_MAX + 1)
    if len(rest) < _BLOCK or len(rest) > _PADDING_MAX or any(rest):
        raise ManifestError("the tar doesn't end after its last member")


def _exactly(tar: BinaryIO, size: int) -> bytes:
    data = tar.read(size)
    if len(data) != size:
        raise ManifestError("the tar is truncated")
    return data


def _copy_out(tar: BinaryIO, member: tarfile.TarInfo, path: Path) -> None:
    left = member.size
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as out:
        while left:
            chunk = _exactly(tar, min(left, CHUNK))
            left -= len(chunk)
            out.write(chunk)
        if hasattr(os, "fchmod"):
            os.fchmod(out.fileno(), 0o755 if member.mode & stat.S_IXUSR else 0o644)
    _exactly(tar, -member.size % _BLOCK)


def _make_folder(path: Path) -> None:
    path.mkdir()
    path.chmod(0o755)  # mkdir's mode goes through the umask


def _opened(path: Path, flags: int) -> BinaryIO:
    """`path` itself, never what a link in its place points to."""
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, 0o600), "wb" if flags & os.O_WRONLY else "rb")


class _Names:
    """The names of one tree: what may be in it beside what is in it already."""

    def __init__(self) -> None:
        self._folders = {""}
        self._taken: dict[str, str] = {}

    def admit(self, member: tarfile.TarInfo) -> None:
        """Let `member` in, or refuse it by name with a ManifestError."""
        name = member.name
        _check_kind(member)
        _check_path(name)
        parent = name.rpartition("/")[0]
        if parent not in self._folders:
            raise ManifestError(f"{_said(name)}: {_said(parent)} is not a folder listed before it")
        key = _folded(name)
        other = self._taken.get(key)
        if other is not None:
            same = "is listed twice" if other == name else f"collides with {_said(other)}"
            raise ManifestError(f"{_said(name)} {same}")
        self._taken[key] = name
        if len(self._taken) > MEMBERS_MAX:
            raise ManifestError(f"{_said(name)} is past the limit of {MEMBERS_MAX:,} entries")
        if member.isdir():
            self._folders.add(name)
        elif member.issym():
            _check_link(name, member.linkname)


def _folded(name: str) -> str:
    """Equal for names that a case-insensitive or normalizing file system takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _check_kind(member: tarfile.TarInfo) -> None:
    is_file = member.type in {tarfile.REGTYPE, tarfile.AREGTYPE}
    if not (is_file or member.isdir() or member.issym()):
        kind = _KINDS.get(member.type, f"of unknown type {member.type!r}")
        raise ManifestError(f"{_said(member.name)} is {kind}; a tree has files, folders and links")
    if member.size < 0 or (member.size and not is_file):
        raise ManifestError(f"{_said(member.name)} has a size of {member.size:,} bytes")


def _check_path(name: str) -> None:
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise ManifestError(f"{_said(name)}: the name is not UTF-8") from error
    if size > PATH_BYTES_MAX:
        raise ManifestError(f"{_said(name)}: {size:,} bytes of path, at most {PATH_BYTES_MAX:,}")
    parts = name.split("/")
    if len(parts) > DEPTH_MAX:
        raise ManifestError(f"{_said(name)}: {len(parts)} levels deep, at most {DEPTH_MAX}")
    for part in parts:
        problem = _problem(part)
        if problem:
            raise ManifestError(f"{_said(name)}: {_said(part)} {problem}")


def _problem(part: str) -> str | None:
    """Why `part` can't be a file's name on each system we serve."""
    if part in {"", ".", ".."}:
        return "would leave the tree or say nothing"
    if len(part.encode()) > NAME_BYTES_MAX:
        return f"is longer than {NAME_BYTES_MAX} bytes"
    if _FORBIDDEN.search(part) or part[-1] in " .":
        return "can't be a name on Windows"
    if _DEVICES.fullmatch(part.partition(".")[0].rstrip(" ")):
        return "is a device on Windows"
    return None


def _check_link(name: str, target: str) -> None:
    """Refuse a link that could leave the tree, also by way of other links.

    It is made in a real folder of the tree, so climbing first is exact; a climb
    after a descent could start at wherever another link leads.
    """
    parts = target.split("/")
    climbs = next((at for at, part in enumerate(parts) if part != ".."), len(parts))
    if climbs > name.count("/") or (climbs < len(parts) and _is_bad(parts[climbs:])):
        raise ManifestError(f"{_said(name)}: its link to {_said(target)} doesn't stay in the tree")


def _is_bad(parts: list[str]) -> bool:
    try:
        _check_path("/".join(parts))
    except ManifestError:
        return True
    return False


def _said(name: str) -> str:
    """A hostile name, fit for a message."""
    return ascii(name if len(name) <= 120 else f"{name[:119]}…")

"""What is copied from the active slot: exact, bounded, its own; and increments of folders."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import SlotError
from agent.stager import clone
from feed import delta, tree

NOISE = random.Random(5).randbytes(300_000)
ROOMY = 1 << 30


def packed(folder: Path) -> bytes:
    out = io.BytesIO()
    tree.pack(folder, out)
    return out.getvalue()


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    folder = tmp_path / "engine"
    (folder / "lib" / "deep").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "run").write_bytes(NOISE)
    (folder / "run").chmod(0o555)
    (folder / "lib" / "nothing").touch()
    (folder / "lib" / "deep" / "rules").write_bytes(NOISE[:5000])
    (folder / "lib64").symlink_to("lib")
    (folder / "lib" / "up").symlink_to("../run")
    (folder / "nowhere").symlink_to("absent")
    return folder


@pytest.fixture
def cloned(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """A file system that can clone, and what it cloned."""
    found: list[bytes] = []

    def ioctl(new: int, request: int, old: int) -> int:
        assert request == clone.FICLONE
        found.append(os.pread(old, ROOMY, 0))
        os.pwrite(new, found[-1], 0)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return found


def refuse(number: int) -> Callable[..., int]:
    def call(*_given: object) -> int:
        raise OSError(number, os.strerror(number))

    return call


# Copying.


def test_a_copied_folder_packs_to_the_same_bytes(engine: Path, tmp_path: Path) -> None:
    clone.copy_tree(engine, tmp_path / "copy", limit=len(packed(engine)))
    assert packed(tmp_path / "copy") == packed(engine)
    assert (tmp_path / "copy" / "empty").is_dir()
    assert (tmp_path / "copy" / "run").stat().st_mode & stat.S_IXUSR
    assert str((tmp_path / "copy" / "lib" / "up").readlink()) == "../run"


def test_a_copy_is_a_file_of_its_own(engine: Path, tmp_path: Path) -> None:
    clone.copy_tree(engine, tmp_path / "copy", limit=ROOMY)
    (engine / "run").chmod(0o755)
    with (engine / "run").open("r+b") as file:
        file.truncate(7)
    assert (tmp_path / "copy" / "run").read_bytes() == NOISE
    assert (tmp_path / "copy" / "run").stat().st_nlink == 1


def test_where_the_file_system_can_it_clones(
    engine: Path, tmp_path: Path, cloned: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", refuse(errno.EIO))
    clone.copy_file(engine / "run", tmp_path / "copy", limit=ROOMY)
    assert cloned == [NOISE]
    assert (tmp_path / "copy").read_bytes() == NOISE


@pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_any_help_of_the_kernel_the_copy_is_the_same(
    tmp_path: Path, engine: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", refuse(number))
    monkeypatch.setattr(os, "copy_file_range", refuse(number))
    clone.copy_file(engine / "run", tmp_path / "copy", limit=ROOMY)
    assert (tmp_path / "copy").read_bytes() == NOISE


def test_a_kernel_that_stops_halfway_is_carried_on_from_there(
    tmp_path: Path, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.copy_file_range

    def halting(old: int, new: int, count: int, at: int, to: int) -> int:
        return real(old, new, min(count, 100_000), at, to) if at < 200_000 else 0

    monkeypatch.setattr(fcntl, "ioctl", refuse(errno.EOPNOTSUPP))
    monkeypatch.setattr(os, "copy_file_range", halting)
    clone.copy_file(engine / "run", tmp_path / "copy", limit=ROOMY)
    assert (tmp_path / "copy").read_bytes() == NOISE


def test_no_more_is_copied_than_was_signed(engine: Path, tmp_path: Path) -> None:
    with (engine / "bomb").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(SlotError, match="1,099,511,627,776 bytes"):
        clone.copy_tree(engine, tmp_path / "copy", limit=400_000)
    assert sum(path.lstat().st_size for path in (tmp_path / "copy").rglob("*")) < 400_000


def test_the_limit_is_one_for_all_files_together(engine: Path, tmp_path: Path) -> None:
    with pytest.raises(SlotError, match="left to copy"):
        clone.copy_tree(engine, tmp_path / "copy", limit=len(NOISE) + 4999)


def test_a_fifo_neither_blocks_nor_is_copied(engine: Path, tmp_path: Path) -> None:
    os.mkfifo(engine / "fifo")
    with pytest.raises(SlotError, match="fifo is neither a file"):
        clone.copy_tree(engine, tmp_path / "copy", limit=ROOMY)


def test_a_link_isnt_followed(engine: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="symbolic links"):
        clone.copy_file(engine / "lib" / "up", tmp_path / "copy", limit=ROOMY)


def test_too_many_entries_are_refused(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "MEMBERS_MAX", 8)
    with pytest.raises(SlotError, match="over 8 entries"):
        clone.copy_tree(engine, tmp_path / "copy", limit=ROOMY)


# Sharing what a changed folder has in common with the active slot.


def held(*files: Path) -> dict[str, Path]:
    return {clone.digest_of(path): path for path in files}


def test_a_moved_file_shares_the_blocks_of_the_old_one(
    engine: Path, tmp_path: Path, cloned: list[bytes]
) -> None:
    new = tmp_path / "new"
    shutil.copytree(engine, new, symlinks=True)
    (new / "run").rename(new / "empty" / "started")
    (new / "lib" / "deep" / "rules").write_bytes(b"changed" * 1000)
    before = packed(new)
    old = held(engine / "run", engine / "lib" / "deep" / "rules")
    assert clone.share(new, old, tmp_path / "scratch") == 1
    assert packed(new) == before
    assert cloned[-1] == NOISE


def test_a_file_that_isnt_what_the_seal_says_is_not_shared(
    engine: Path, tmp_path: Path, cloned: list[bytes]
) -> None:
    new = tmp_path / "new"
    shutil.copytree(engine, new, symlinks=True)
    old = held(engine / "run")
    (engine / "run").chmod(0o755)
    (engine / "run").write_bytes(NOISE[::-1])
    assert clone.share(new, old, tmp_path / "scratch") == 0
    assert cloned
    assert (new / "run").read_bytes() == NOISE


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSPC])
def test_where_nothing_can_be_shared_the_folder_stays_as_it_is(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", refuse(number))
    before = packed(engine)
    assert clone.share(engine, held(engine / "run"), tmp_path / "scratch") == 0
    assert clone.share(engine, {"0" * 64: tmp_path / "gone"}, tmp_path / "scratch") == 0
    assert clone.share(engine, {}, tmp_path / "scratch") == 0
    assert packed(engine) == before


_ON_XFS = """
import fcntl, json, os, struct, sys
from pathlib import Path
from agent.stager import clone
place = Path(sys.argv[1])
def blocks(path):  # linux/fiemap.h
    asked = bytearray(struct.pack("=QQLLLL", 0, 2**64 - 1, 1, 0, 50, 0) + bytes(50 * 56))
    with path.open("rb") as file:
        fcntl.ioctl(file, 0xC020660B, asked)
    count = struct.unpack_from("=L", asked, 20)[0]
    return [struct.unpack_from("=QQQ", asked, 32 + 56 * at) for at in range(count)]
old, new, moved = place / "old", place / "new", place / "folder" / "moved"
data = os.urandom(5 << 20)
old.write_bytes(data)
moved.parent.mkdir()
moved.write_bytes(data)
before = blocks(moved) == blocks(old)
clone.copy_file(old, new, limit=len(data))
shared = clone.share(moved.parent, {clone.digest_of(old): old}, place / "scratch")
after = blocks(old) == blocks(new) == blocks(moved)
with old.open("r+b") as file:
    file.write(b"damage")
    file.truncate(1000)
print(json.dumps([before, shared, after, new.read_bytes() == moved.read_bytes() == data]))
"""


@pytest.mark.system("mkfs.xfs", "mount", "unshare")
def test_on_xfs_copies_share_their_blocks_until_the_original_is_damaged(tmp_path: Path) -> None:
    image, place = tmp_path / "image", tmp_path / "place"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(320 << 20)
    subprocess.run(["mkfs.xfs", "-q", image], check=True)
    mounted = 'mount -o loop "$0" "$1" && exec "$2" -c "$3" "$1"'
    found = subprocess.run(
        ["unshare", "-m", "sh", "-c", mounted, image, place, sys.executable, _ON_XFS],
        check=True,
        stdout=subprocess.PIPE,
    )
    assert json.loads(found.stdout) == [False, 1, True, True]


# What a change in a folder costs on the wire.


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Fifty files of 20 KB that don't look alike, each with a line of text."""
    folder = tmp_path / "programs"
    for number in range(50):
        place = folder / f"part{number % 5}"
        place.mkdir(parents=True, exist_ok=True)
        noise = random.Random(number).randbytes(20_000)
        (place / f"file{number:02}").write_bytes(noise[:9000] + b"\nlimit = 1\n" + noise[9000:])
    return folder


def increment(old: bytes, new: Path, tmp_path: Path) -> int:
    """The length of the increment to `new`, which is made, applied and unpacked."""
    base, content, patch = (tmp_path / name for name in ("base.tar", "new.tar", "patch"))
    base.write_bytes(old)
    content.write_bytes(packed(new))
    form = delta.create(base, content, patch)
    out = io.BytesIO()
    with base.open("rb") as first, patch.open("rb") as second:
        made = delta.apply(first, second, out, format=form, limit=content.stat().st_size)
    assert made == hashlib.sha256(content.read_bytes()).hexdigest()
    out.seek(0)
    tree.unpack(out, tmp_path / "unpacked", limit=content.stat().st_size)
    assert packed(tmp_path / "unpacked") == content.read_bytes()
    return patch.stat().st_size


def test_a_changed_line_costs_about_that_line(programs: Path, tmp_path: Path) -> None:
    old = packed(programs)
    file = programs / "part3" / "file23"
    file.write_bytes(file.read_bytes().replace(b"limit = 1\n", b"limit = 2000\n"))
    assert increment(old, programs, tmp_path) < 2000


def test_a_renamed_file_costs_its_name(programs: Path, tmp_path: Path) -> None:
    old = packed(programs)
    (programs / "part0" / "file45").rename(programs / "part4" / "a name of its own")
    assert increment(old, programs, tmp_path) < 2000


def test_a_renamed_folder_costs_its_names(programs: Path, tmp_path: Path) -> None:
    old = packed(programs)
    (programs / "part0").rename(programs / "zero")
    assert increment(old, programs, tmp_path) < 6000


def test_modes_links_and_empty_folders_cost_a_header_each(programs: Path, tmp_path: Path) -> None:
    old = packed(programs)
    (programs / "part1" / "file01").chmod(0o755)
    (programs / "empty").mkdir()
    (programs / "link").symlink_to("part1/file01")
    assert increment(old, programs, tmp_path) < 2000

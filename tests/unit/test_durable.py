"""Durable writes: after any interruption there is the old content or the new, and no litter."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from feed import durable


class PowerCut(BaseException):
    """Not an Exception: nothing on the way may swallow it."""


@pytest.fixture(autouse=True)
def no_hook_is_left() -> Iterator[None]:
    yield
    durable.set_fault_hook(None)


def points_of(action: Callable[[], object]) -> list[str]:
    """The fault points that `action` passes, in order."""
    seen: list[str] = []
    durable.set_fault_hook(lambda point, _where: seen.append(point))
    action()
    durable.set_fault_hook(None)
    return seen


def fail_at(number: int, error: BaseException) -> None:
    """Raise `error` at the fault point with this number, counted from zero."""
    left = [number]

    def hook(_point: str, _where: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise error

    durable.set_fault_hook(hook)


def test_replace_passes_its_points_in_the_order_that_survives_power_loss(tmp_path: Path) -> None:
    points = points_of(lambda: durable.replace(tmp_path / "f", b"new"))
    assert points == ["write", "fsync", "rename", "dirsync", "done"]


def test_without_a_flush_a_file_is_replaced_in_one_step_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    points = points_of(lambda: durable.replace(path, b"new", flush=False))
    assert points == ["write", "rename", "done"]
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [PowerCut(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("old", [None, b"old"])
def test_replace_leaves_old_or_new_and_no_temporary_at_every_fault_point(
    old: bytes | None, error: BaseException, tmp_path: Path
) -> None:
    path = tmp_path / "f"
    count = len(points_of(lambda: durable.replace(tmp_path / "other", b"")))
    (tmp_path / "other").unlink()
    for number in range(count):
        path.unlink(missing_ok=True)
        if old is not None:
            path.write_bytes(old)
        fail_at(number, error)
        with pytest.raises(type(error)):
            durable.replace(path, b"new")
        durable.set_fault_hook(None)
        found = path.read_bytes() if path.exists() else None
        # write, fsync, rename: before the switch. dirsync, done: after it
        assert found == (old if number < 3 else b"new")
        assert [item.name for item in tmp_path.iterdir()] == (["f"] if found is not None else [])


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(b"old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        durable.replace(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_write_to_a_full_disk_is_an_error_and_not_a_torn_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(b"old")
    full = Path("/dev/full").open("wb")  # noqa: SIM115 - replace closes it
    monkeypatch.setattr(durable, "open_private", lambda *_a, **_k: full)
    with pytest.raises(OSError, match="No space left"):
        durable.replace(tmp_path / "f", bytes(1 << 20))
    assert (tmp_path / "f").read_bytes() == b"old"


def test_an_exception_in_the_block_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")

    def write_half() -> None:
        with durable.replacing(tmp_path / "f") as out:
            out.write(b"half")
            raise PowerCut

    with pytest.raises(PowerCut):
        write_half()
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_the_mode_is_the_asked_one_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        durable.replace(tmp_path / "public", b"", mode=0o644)
    finally:
        os.umask(old)
    durable.replace(tmp_path / "private", b"")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("public", "private")]
    assert modes == [0o644, 0o600]


@pytest.mark.parametrize("leave", [os.symlink, os.link])
def test_a_link_left_at_the_temporary_name_is_not_written_through(
    tmp_path: Path, leave: Callable[[Path, Path], None]
) -> None:
    (tmp_path / "victim").write_bytes(b"safe")
    leave(tmp_path / "victim", tmp_path / f"{durable.TEMP_PREFIX}f.{os.getpid()}")
    durable.replace(tmp_path / "f", b"new")
    assert (tmp_path / "victim").read_bytes() == b"safe"
    assert (tmp_path / "f").read_bytes() == b"new"


def test_replacing_a_link_replaces_the_link_and_not_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"safe")
    (tmp_path / "f").symlink_to("victim")
    durable.replace(tmp_path / "f", b"new")
    assert not (tmp_path / "f").is_symlink()
    assert (tmp_path / "victim").read_bytes() == b"safe"


def test_a_missing_folder_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="f"):
        durable.replace(tmp_path / "missing" / "f", b"")


def test_append_adds_lines_and_passes_its_points(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    points = points_of(lambda: durable.append(path, b"one\n"))
    durable.append(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"
    assert points == ["append", "fsync", "dirsync", "done"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_append_goes_on_after_a_short_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:3]))
    durable.append(tmp_path / "journal", b"a whole line\n")
    assert (tmp_path / "journal").read_bytes() == b"a whole line\n"


def test_append_doesnt_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "journal").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="journal"):
        durable.append(tmp_path / "journal", b"x")
    assert not (tmp_path / "victim").exists()


def test_remove_is_durable_and_missing_is_fine(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    assert points_of(lambda: durable.remove(tmp_path / "f")) == ["remove", "dirsync", "done"]
    assert points_of(lambda: durable.remove(tmp_path / "f")) == ["remove"]
    assert not (tmp_path / "f").exists()


def test_sync_tree_flushes_every_file_and_folder_and_follows_no_link(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    (root / "f").touch()
    (root / "d" / "g").touch()
    (root / "l").symlink_to("/nowhere")
    seen: list[tuple[str, str]] = []
    durable.set_fault_hook(lambda point, where: seen.append((point, where)))
    durable.sync_tree(root)
    assert set(seen) == {
        ("fsync", str(root / "f")),
        ("fsync", str(root / "d" / "g")),
        ("dirsync", str(root / "d")),
        ("dirsync", str(root)),
    }
    assert seen[-1] == ("dirsync", str(root))


def test_what_an_interruption_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    left = [tmp_path / f"{durable.TEMP_PREFIX}{name}.1" for name in ("a", "b")]
    for path in (*left, tmp_path / "kept", tmp_path / ".tmp"):
        path.touch()
    assert durable.sweep_temporaries(tmp_path) == left
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp", "kept"]

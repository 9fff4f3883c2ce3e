"""Trees: the same bytes everywhere, and nothing gets out of its folder."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feed import tree
from feed.errors import ManifestError

LIMIT = 1 << 20


def packed(folder: Path) -> bytes:
    out = io.BytesIO()
    tree.pack(folder, out)
    return out.getvalue()


def unpacked(data: bytes, folder: Path, *, limit: int = LIMIT) -> Path:
    tree.unpack(io.BytesIO(data), folder, limit=limit)
    return folder


def member(
    name: str,
    content: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    link: str = "",
    mode: int = 0o644,
    size: int | None = None,
) -> bytes:
    """One member as anybody could write it, hostile fields included."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    info.size = len(content) if size is None else size
    head = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    return head + content + bytes(-len(content) % 512)


def folder_member(name: str) -> bytes:
    return member(name, kind=tarfile.DIRTYPE)


def link_member(name: str, target: str) -> bytes:
    return member(name, kind=tarfile.SYMTYPE, link=target)


END = bytes(1024)


def make_sample(folder: Path) -> None:
    (folder / "bin").mkdir(parents=True)
    (folder / "empty" / "inner").mkdir(parents=True)
    (folder / "bin" / "engine").write_bytes(b"\x7fELF")
    (folder / "bin" / "engine").chmod(0o700)
    (folder / "rules.yar").write_bytes(b"rule a {}")
    (folder / "rules.yar").chmod(0o600)
    (folder / ("long" * 20)).mkdir()
    (folder / ("long" * 20) / ("näme" * 20)).write_bytes(bytes(513))
    (folder / "current").symlink_to("bin/engine")
    (folder / "bin" / "up").symlink_to("../rules.yar")


def test_a_known_tree_gives_known_bytes_on_every_machine_and_python(tmp_path: Path) -> None:
    make_sample(tmp_path)
    digest = hashlib.sha256(packed(tmp_path)).hexdigest()
    assert digest == "2f0ca7a76fcbff8fc8622054f6d401a53b73b2cd7684fa2ef685d351dad8974e"


def test_order_of_creation_times_owners_and_umask_leave_no_trace(tmp_path: Path) -> None:
    for name in ("b", "a", "C", "z-1", "z.1", "z"):
        path = tmp_path / "one" / name
        path.mkdir(parents=True)
        (path / "f").write_bytes(name.encode())
        os.utime(path / "f", (1, 1))
    old = os.umask(0o077)
    try:
        for name in ("z.1", "z", "C", "a", "z-1", "b"):
            path = tmp_path / "two" / name
            path.mkdir(parents=True)
            (path / "f").write_bytes(name.encode())
    finally:
        os.umask(old)
    assert packed(tmp_path / "one") == packed(tmp_path / "two")


def test_files_modes_links_and_empty_folders_come_back(tmp_path: Path) -> None:
    make_sample(tmp_path / "in")
    old = os.umask(0o077)
    try:
        out = unpacked(packed(tmp_path / "in"), tmp_path / "out")
    finally:
        os.umask(old)
    assert (out / "bin/engine").read_bytes() == b"\x7fELF"
    assert stat.S_IMODE((out / "bin/engine").stat().st_mode) == 0o755
    assert stat.S_IMODE((out / "rules.yar").stat().st_mode) == 0o644
    assert stat.S_IMODE((out / "bin").stat().st_mode) == 0o755
    assert (out / "empty" / "inner").is_dir()
    assert str((out / "current").readlink()) == "bin/engine"
    assert str((out / "bin/up").readlink()) == "../rules.yar"
    assert packed(out) == packed(tmp_path / "in")


def test_an_empty_tree_is_a_tree(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    assert not any(unpacked(packed(tmp_path / "in"), tmp_path / "out").iterdir())


def test_any_tar_reader_reads_ours(tmp_path: Path) -> None:
    make_sample(tmp_path / "in")
    with tarfile.open(fileobj=io.BytesIO(packed(tmp_path / "in"))) as archive:
        # An attribute: the first versions of 3.11 know no filters, the newest want one.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(tmp_path / "out")
    assert packed(tmp_path / "out") == packed(tmp_path / "in")


def test_a_tar_with_a_padded_last_record_is_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo("a")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    out = unpacked((tmp_path / "t.tar").read_bytes(), tmp_path / "out")
    assert (out / "a").read_bytes() == b"abc"


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(files=st.lists(st.tuples(st.lists(names, min_size=1, max_size=3), st.binary(max_size=700))))
def test_whatever_packs_unpacks_to_the_same_tree(
    files: list[tuple[list[str], bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = tmp_path_factory.mktemp("source")
    for parts, content in files:
        try:
            path = source.joinpath(*(part.replace("/", "_").strip(".") for part in parts))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except (OSError, ValueError):
            continue
    try:
        data = packed(source)
    except ManifestError:
        return
    assert packed(unpacked(data, source.with_name(source.name + "-out"))) == data


HOSTILE = {
    "climbs out": member("../evil"),
    "climbs in the middle": folder_member("a") + member("a/../../evil"),
    "absolute": member("/evil"),
    "a dot": member("./a"),
    "doubled slash": folder_member("a") + member("a//b"),
    "a backslash": member("..\\evil"),
    "a drive": member("C:evil"),
    "a stream": member("file.txt:stream"),
    "a wildcard": member("a*"),
    "a control character": member("a\nb"),
    "a Windows device": member("con"),
    "a Windows device with extension": member("Aux.rules"),
    "a Windows device with blanks": member("nul .txt"),
    "a superscript port": member("com¹"),
    "a trailing dot": member("a."),
    "a trailing blank": member("a "),
    "not UTF-8": member("a\udcff"),
    "not UTF-8, long": member("a" * 150 + "\udcff"),
    "no name": member(""),
    "too deep": b"".join(folder_member("/".join("d" * n)) for n in range(1, 40)),
    "a long name": member("n" * 256),
    "a long path": member("/".join(["p" * 200] * 8)),
    "a path one byte too long": member("/".join(["p" * 204] * 5) + "q"),
    "an endless long name": member("x", kind=tarfile.GNUTYPE_LONGNAME, size=1 << 33),
    "a hard link": member("a") + member("b", kind=tarfile.LNKTYPE, link="a"),
    "a character device": member("null", kind=tarfile.CHRTYPE),
    "a block device": member("sda", kind=tarfile.BLKTYPE),
    "a fifo": member("pipe", kind=tarfile.FIFOTYPE),
    "a sparse file": member("s", kind=tarfile.GNUTYPE_SPARSE),
    "a contiguous file": member("c", kind=tarfile.CONTTYPE),
    "a PAX header": member("p", b"20 path=../evil\n", kind=tarfile.XHDTYPE),
    "a global PAX header": member("p", b"20 path=../evil\n", kind=tarfile.XGLTYPE),
    "a folder with content": member("d", kind=tarfile.DIRTYPE, size=512),
    "negative size": member("a", size=-1),
    "twice": member("a", b"1") + member("a", b"2"),
    "a folder twice": folder_member("a") + folder_member("a"),
    "case": member("Rules.yar") + member("rules.YAR"),
    "folders by case": folder_member("Lib") + folder_member("lib"),
    "sharp s": member("stra\u00dfe") + member("STRASSE"),
    "normal forms": member("\u00e9") + member("e\u0301"),
    "file and folder": member("a") + folder_member("a") + member("a/b"),
    "file as a folder": member("a") + member("a/b"),
    "a folder that isn't listed": member("a/b"),
    "through a link": link_member("a", ".") + member("a/b"),
    "through a link inside": folder_member("d") + link_member("a", "d") + member("a/evil"),
    "over a link": link_member("a", "b") + member("a", b"evil"),
    "an absolute link": link_member("a", "/etc/passwd"),
    "a link out": link_member("a", "../evil"),
    "a deeper link out": folder_member("d") + link_member("d/a", "../../evil"),
    "a link that dives and climbs": folder_member("d") + link_member("a", "d/../../evil"),
    "a link to nothing": link_member("a", ""),
    "a link with a drive": link_member("a", "C:/windows"),
    "a link with backslashes": link_member("a", "..\\evil"),
    "links that climb by turns": (
        folder_member("a") + folder_member("a/b") + link_member("a/b/l", "../..")
        + link_member("x", "a/b/l/../../evil")
    ),
    "past the limit": member("a", bytes(LIMIT // 2)) + member("b", bytes(LIMIT // 2 + 1)),
    "a size that isn't there": member("a", size=1 << 40),
}  # fmt: skip


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_archive_is_refused_and_writes_nothing_outside(
    data: bytes, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    with pytest.raises(ManifestError):
        unpacked(data + END, outside / "in")
    assert [path.name for path in outside.iterdir()] == ["in"]
    assert not (outside / "in").is_symlink()


def test_the_error_names_the_entry_and_what_it_collides_with(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"'rules.YAR' collides with 'Rules.yar'"):
        unpacked(member("Rules.yar") + member("rules.YAR") + END, tmp_path / "out")
    with pytest.raises(ManifestError, match=r"'a\\n\\x1b\[2J': .* can't be a name on Windows"):
        unpacked(member("a\n\x1b[2J") + END, tmp_path / "out2")


def test_a_link_on_the_disk_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "file").write_bytes(b"safe")
    out = tmp_path / "out"
    out.mkdir()
    (out / "d").symlink_to(tmp_path / "victim")
    (out / "f").symlink_to(tmp_path / "file")
    with pytest.raises(FileExistsError):
        unpacked(folder_member("d") + member("d/x", b"evil") + END, out)
    with pytest.raises(FileExistsError):
        unpacked(member("f", b"evil") + END, out)
    assert not any((tmp_path / "victim").iterdir())
    assert (tmp_path / "file").read_bytes() == b"safe"


def test_a_tree_cut_at_any_block_is_refused(tmp_path: Path) -> None:
    make_sample(tmp_path / "in")
    data = packed(tmp_path / "in")
    for length in range(0, len(data), 256):
        with pytest.raises(ManifestError):
            unpacked(data[:length], tmp_path / f"out-{length}")


def test_bytes_after_the_end_are_refused(tmp_path: Path) -> None:
    for number, tail in enumerate((b"x", member("late"), bytes(20_000))):
        with pytest.raises(ManifestError, match="doesn't end"):
            unpacked(member("a") + END + tail, tmp_path / str(number))


@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_header_is_refused_or_stays_inside(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    tar = bytearray(member("name", b"content") + link_member("l", "name") + END)
    for at, value in data.draw(
        st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), max_size=4)
    ):
        tar[at] = value
    tar[148:156] = b"%06o\0 " % (sum(tar[:148]) + 256 + sum(tar[156:512]))
    with contextlib.suppress(ManifestError):
        unpacked(bytes(tar), outside / "in")
    assert [path.name for path in outside.iterdir()] == ["in"]


def test_more_entries_than_allowed_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "MEMBERS_MAX", 10)
    data = b"".join(member(f"f{number}") for number in range(11)) + END
    with pytest.raises(ManifestError, match="past the limit of 10 entries"):
        unpacked(data, tmp_path / "out")


def test_only_the_executable_bit_of_a_mode_is_taken(tmp_path: Path) -> None:
    out = unpacked(member("a", mode=0o6777) + member("b", mode=0o666) + END, tmp_path / "out")
    assert [stat.S_IMODE((out / name).stat().st_mode) for name in "ab"] == [0o755, 0o644]


def bad_link(folder: Path) -> None:
    (folder / "l").symlink_to("/etc/passwd")


def bad_name(folder: Path) -> None:
    (folder / "a:b").touch()


def bad_encoding(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff")).touch()


def bad_kind(folder: Path) -> None:
    os.mkfifo(folder / "p")


def bad_case(folder: Path) -> None:
    (folder / "A").touch()
    (folder / "a").touch()


@pytest.mark.parametrize("spoil", [bad_link, bad_name, bad_encoding, bad_kind, bad_case])
def test_what_unpack_would_refuse_is_not_packed(
    spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    spoil(tmp_path)
    with pytest.raises(ManifestError):
        packed(tmp_path)


@pytest.mark.parametrize("length", [0, 9, 11])
def test_a_file_that_changes_while_it_is_packed_is_refused(length: int, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(bytes(10))

    class Racing(io.BytesIO):
        def write(self, data: object, /) -> int:
            os.truncate(tmp_path / "log", length)
            return super().write(data)  # type: ignore[arg-type]

    with pytest.raises(ManifestError, match="'log' changed while it was packed"):
        tree.pack(tmp_path, Racing())

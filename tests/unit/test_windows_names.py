"""The pure parts of the Windows side: junctions, pipes, boots, rights, registry values."""

from __future__ import annotations

import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.host import naming, registry, reparse, rights
from agent.host.registry import Key, Raw

FOLDERS = st.from_regex(r"[A-Z]:(\\[a-zäあ 0-9.]{1,20}){1,6}", fullmatch=True)


# Junctions.


@given(FOLDERS)
def test_a_junction_leads_where_it_was_made_to_lead(folder: str) -> None:
    assert reparse.target_of(reparse.packed(folder)) == folder.rstrip("\\")


def test_a_junction_has_the_layout_that_ntfs_documents() -> None:
    made = reparse.packed("C:\\s\\a")
    tag, length, reserved, at, size, plain_at, plain_size = struct.unpack_from("<IHHHHHH", made)
    assert (tag, reserved, at) == (0xA0000003, 0, 0)
    assert length == len(made) - 8
    names = made[16:]
    assert names[at : at + size].decode("utf-16-le") == "\\??\\C:\\s\\a"
    assert names[plain_at : plain_at + plain_size].decode("utf-16-le") == "C:\\s\\a"
    assert names[size : size + 2] == names[-2:] == b"\0\0"


@pytest.mark.parametrize("path", ["relative", "\\\\server\\share", "\\\\?\\C:\\x", "C:", "/unix"])
def test_a_junction_leads_to_a_drive_or_isnt_made(path: str) -> None:
    with pytest.raises(ValueError, match="on a drive"):
        reparse.packed(path)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_junction_or_none(data: bytes) -> None:
    for buffer in (data, struct.pack("<I", reparse.TAG) + data):
        assert reparse.target_of(buffer) is None or isinstance(reparse.target_of(buffer), str)


# Names.


def test_a_socket_in_another_folder_is_another_pipe() -> None:
    one = naming.pipe_name("C:\\ProgramData\\Holdfast\\state\\run\\control.sock")
    assert re.fullmatch(r"\\\\\.\\pipe\\holdfast-[0-9a-f]{16}-control", one)
    assert one == naming.pipe_name("c:\\programdata\\HOLDFAST/state/./run\\control.sock")
    others = {
        naming.pipe_name("C:\\ProgramData\\Holdfast\\state\\run\\status.sock"),
        naming.pipe_name("D:\\ProgramData\\Holdfast\\state\\run\\control.sock"),
    }
    assert len({one, *others}) == 3


def test_a_file_moved_aside_has_a_short_name_that_nobody_uses() -> None:
    tokens = iter(("1", "2"))
    made = [naming.aside_name("x" * 255, token=lambda: next(tokens)) for _ in range(2)]
    assert made == [f".gone-1-{'x' * 32}", f".gone-2-{'x' * 32}"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("\\\\?\\C:\\State\\a", "c:\\state\\A", True),
        ("\\\\?\\UNC\\server\\share\\a", "\\\\server\\share\\a", True),
        ("C:\\state\\x\\..\\a", "C:\\state\\a", True),
        ("C:\\state\\a", "C:\\state\\b", False),
        ("C:\\state\\a", "D:\\state\\a", False),
    ],
)
def test_places_are_told_apart_as_windows_does(one: str, other: str, *, same: bool) -> None:
    assert naming.same_path(one, other) is same


def test_a_clock_that_is_set_makes_no_other_boot() -> None:
    hour = 36_000_000_000
    before = naming.boot_id(count=7, booted=133_000_000_000_000_000, bias=0)
    after = naming.boot_id(count=7, booted=133_000_000_000_000_000 + hour, bias=hour)
    assert before == after


def test_a_boot_is_another_one_by_its_time_or_by_its_count() -> None:
    boots = {
        naming.boot_id(count=count, booted=booted, bias=0)
        for count, booted in ((None, 1), (7, 1), (8, 1), (8, 2))
    }
    assert len(boots) == 4


# Rights.


def test_a_services_sid_is_the_one_that_windows_derives() -> None:
    assert rights.service_sid("TrustedInstaller") == (
        "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464"
    )
    assert rights.service_sid("trustedinstaller") == rights.service_sid("TrustedInstaller")


EVERY_FOLDER = {
    "private": rights.private_folder(),
    "shared": rights.shared_folder(),
    "fetcher": rights.fetcher_folder(),
    "configuration": rights.configuration_folder(),
}


@pytest.mark.parametrize("name", EVERY_FOLDER)
def test_a_folder_is_administrations_and_inherits_nothing(name: str) -> None:
    owner, _, aces = EVERY_FOLDER[name].partition("D:")
    assert owner == "O:BA"
    assert aces.startswith("PAI(")
    found = re.findall(r"\((A);([A-Z]*);([^;]*);;;([^)]*)\)", aces)
    assert aces == "PAI" + "".join(f"({a};{b};{c};;;{d})" for a, b, c, d in found)
    assert {who for _, flags, right, who in found if right == "FA"} == {"SY", "BA"}


def test_only_the_fetchers_folders_are_written_by_somebody_else() -> None:
    writers = {
        name: {who for right, who in re.findall(r";([^;]*);;;([^)]*)\)", sddl) if right[0] == "0"}
        for name, sddl in EVERY_FOLDER.items()
    }
    own = rights.service_sid(rights.FETCHER_NAME)
    assert writers.pop("fetcher") == {"LS", own}
    assert set.union(*writers.values()) == set()


def test_the_fetcher_cant_take_its_folder_away_nor_change_its_rights() -> None:
    delete, write_dac, write_owner = 0x10000, 0x40000, 0x80000
    assert int(rights.FILL, 16) & (delete | write_dac | write_owner) == 0
    assert int(rights.MODIFY, 16) & (write_dac | write_owner) == 0


def test_passwords_in_the_configuration_are_read_by_administration_and_the_fetcher() -> None:
    readers = set(re.findall(r";;;([^)]*)\)", rights.configuration_folder()))
    assert readers == {"SY", "BA", "LS"}


def test_who_may_talk_to_a_pipe_cant_serve_it() -> None:
    make_instance = 0x4  # FILE_CREATE_PIPE_INSTANCE is FILE_APPEND_DATA
    assert rights.TALK_RIGHTS & make_instance == 0
    open_to_all = rights.pipe(owner="S-1-5-18", everybody=True)
    closed = rights.pipe(owner="S-1-5-18", everybody=False, group="S-1-5-21-1-2-3-1001")
    assert open_to_all.startswith("O:S-1-5-18D:P(A;")
    assert "BU" not in closed
    assert f"(A;;{rights.TALK};;;S-1-5-21-1-2-3-1001)" in closed


def test_who_may_talk_to_a_pipe_may_do_so_over_ssh_or_winrm_too() -> None:
    """Such a session is a network logon: an entry that denies those comes before all others."""
    for everybody in (True, False):
        assert "(D;" not in rights.pipe(owner="S-1-5-18", everybody=everybody)


# The registry.


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("HKLM\\SOFTWARE\\X", Key("HKLM", "SOFTWARE\\X")),
        ("hkey_local_machine\\SOFTWARE\\X", Key("HKLM", "SOFTWARE\\X")),
        ("HKU\\.DEFAULT\\X", Key("HKU", ".DEFAULT\\X")),
    ],
)
def test_a_keys_text_is_understood(text: str, key: Key) -> None:
    assert registry.parse_key(text) == key
    assert registry.parse_key(str(key)) == key


@pytest.mark.parametrize(
    "text",
    [
        "HKCU\\X",
        "SOFTWARE\\X",
        "HKLM",
        "HKLM\\",
        "HKLM\\a\\\\b",
        "HKLM\\a\nb",
        "HKLM\\" + "x" * 256,
    ],
)
def test_what_is_no_key_of_the_machine_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|one line"):
        registry.parse_key(text)


def test_a_setting_names_a_value_of_the_key_or_of_one_below() -> None:
    top = Key("HKLM", "SOFTWARE\\X")
    assert registry.place(top, "Depth") == (top, "Depth")
    assert registry.place(top, "Scan\\Deep\\Depth") == (
        Key("HKLM", "SOFTWARE\\X\\Scan\\Deep"),
        "Depth",
    )
    for name in ("", "Scan\\", "\\Depth"):
        with pytest.raises(ValueError, match="expected"):
            registry.place(top, name)


@pytest.mark.parametrize(
    ("value", "before", "raw"),
    [
        (True, None, Raw(4, b"\1\0\0\0")),
        (3, None, Raw(4, b"\3\0\0\0")),
        (3, Raw(11, b""), Raw(11, b"\3" + bytes(7))),
        (1 << 32, None, Raw(11, b"\0\0\0\0\1\0\0\0")),
        (0.5, Raw(2, b""), Raw(1, "0.5\0".encode("utf-16-le"))),
        ("%X%", Raw(2, b""), Raw(2, "%X%\0".encode("utf-16-le"))),
        ("é", Raw(4, b""), Raw(1, "é\0".encode("utf-16-le"))),
    ],
)
def test_values_are_spelt_as_the_registry_has_them(
    value: str | float, before: Raw | None, raw: Raw
) -> None:
    assert registry.encoded(value, before) == raw


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_a_number_the_registry_cant_hold_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="isn't a number"):
        registry.encoded(value, None)

"""publisher.toml and release files: what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from publisher import settings
from publisher.errors import SettingsError
from publisher.settings import ReleaseInput, Settings


def test_the_file_that_init_writes_holds_the_defaults() -> None:
    text = settings.template(("global",)).encode()
    assert settings.parse(text, Settings, where="x") == Settings()


def test_the_file_that_init_writes_holds_the_regions() -> None:
    text = settings.template(("global", "japan")).encode()
    assert settings.parse(text, Settings, where="x").regions == ("global", "japan")


def test_a_role_that_is_not_top_level_has_the_delegated_lifetime() -> None:
    expiry = Settings().expiry_days
    assert expiry.days("virus-pattern") == expiry.delegated
    assert expiry.days("timestamp") == expiry.timestamp


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("worker = 2", "worker: unknown key, expected one of regions, "),
        ("workers = 'two'", "workers: 'two', expected a whole number from 0 to 256"),
        ("incrementals_kept = 15", "incrementals_kept: 15, expected a whole number from 0 to 14"),
        ("effort = 'utmost'", "effort: 'utmost', expected one of quick, thorough, usual"),
        ("memory_limit_mb = 511", "memory_limit_mb: 511, expected a whole number from 512 to"),
        ("worth_share = 0", "worth_share: 0, expected a number above 0 to 1"),
        ("worth_share = 1.1", "worth_share: 1.1, expected a number above 0 to 1"),
        ("regions = []", "regions: [], expected a list of 1 to 256 texts"),
        ('regions = ["Über"]', "regions[0]: 'Über', expected 1 to 63 of a-z, 0-9 and -"),
        ("[expiry_days]\ntimestamp = 0", "expiry_days.timestamp: 0, expected a number"),
        ("[expiry_days]\ntimestmp = 1", "expiry_days.timestmp: unknown key, expected one of root"),
        ("workers = ", "not TOML"),
        ("workers = 1\n#" + "x" * (1 << 20), "the limit is 1,048,576"),
    ],
)
def test_bad_settings_are_refused_with_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "publisher.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as raised:
        settings.load(path)
    assert str(path) in str(raised.value)
    assert said in str(raised.value)


COMPONENT = '[[components]]\nname = "p"\nkind = "{kind}"\nversion = "1"\npath = "p.bin"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (COMPONENT.format(kind="virus"), "components[0].kind: 'virus', expected one of pattern"),
        ('[[components]]\nname = "p"', "components[0].kind is missing, expected one of pattern"),
        ("[health]\nwarmup = 3", "health.warmup: unknown key"),
        ("[health]\nwarmup_s = 'x'", "health.warmup_s: 'x', expected a number"),
        ("[activation]\nhook = []", "activation.hook: unknown key, expected one of hooks"),
        ("[compatibility]\nos = 'linux'", "compatibility.os: 'linux', expected a list of texts"),
        ("[components]\n", "components: a table, expected a list of tables"),
    ],
)
def test_bad_release_files_are_refused_with_file_and_key(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "release.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as raised:
        settings.load_release(path)
    assert str(path) in str(raised.value)
    assert said in str(raised.value)


def test_paths_in_a_release_file_are_relative_to_it(tmp_path: Path) -> None:
    path = tmp_path / "release.toml"
    path.write_text(COMPONENT.format(kind="pattern") + "[health]\nwarmup_s = 3.5\n")
    found = settings.load_release(path)
    assert isinstance(found, ReleaseInput)
    assert found.components[0].path == str(tmp_path / "p.bin")
    assert found.health.warmup_s == 3.5


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"release\.toml: can't be read \(No such file"):
        settings.load_release(tmp_path / "release.toml")

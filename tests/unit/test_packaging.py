"""What the packages are made from agrees with the program."""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from pathlib import Path

import pytest

from agent.ctl import main as ctl
from agent.guardian import main as agentd
from server import settings
from server.ctl import main as serverctl

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "packaging"))

from builder import wheels  # noqa: E402 - packaging/ is no package
from builder.product import LINUX, PRODUCTS, SERVER, UNITS  # noqa: E402
from builder.project import Target  # noqa: E402

LINUX_311 = Target(system="linux", machine="x86_64", python="3.11")
LOCK = """\
# comment
plain==1 \\
    --hash=sha256:aa
old==2 ; python_full_version < '3.12' \\
    --hash=sha256:bb \\
    --hash=sha256:cc
there==3 ; sys_platform == 'win32' \\
    --hash=sha256:dd
"""


@pytest.mark.parametrize(
    ("target", "names"),
    [
        (LINUX_311, ["plain==1", "old==2"]),
        (LINUX_311._replace(python="3.13"), ["plain==1"]),
        (LINUX_311._replace(system="win32"), ["plain==1", "old==2", "there==3"]),
    ],
)
def test_the_targets_markers_decide_and_not_those_of_the_builder(
    target: Target, names: list[str]
) -> None:
    lines = wheels.reduced(LOCK, target).splitlines()
    assert [line.removesuffix(" \\") for line in lines if not line.startswith(" ")] == names
    assert sum(line.startswith("    --hash") for line in lines) == len(lines) - len(names)


def manual(name: str) -> str:
    """A manual page, its hyphens plain."""
    return (LINUX / "man" / name).read_text().replace("\\-", "-")


def words(parser: argparse.ArgumentParser) -> set[str]:
    """What may be typed after a command: its options, and words that are one of a few."""
    found = [(*it.option_strings, *(it.choices or ())) for it in parser._actions]
    return {word for words in found for word in words} - {"-h", "--help", "--config", "--json"}


def test_the_manual_page_of_agentctl_has_every_command_with_its_options() -> None:
    commands = manual("agentctl.1").split(".SH COMMANDS\n", 1)[1].split("\n.SH ", 1)[0]
    entries = {entry.split()[1]: set(entry.split()) for entry in commands.split(".TP\n")[1:]}
    (action,) = [it for it in ctl._parser()._actions if isinstance(it, argparse._SubParsersAction)]
    assert set(entries) == set(action.choices)
    assert {name: words(it) - entries[name] for name, it in action.choices.items()} == {
        name: set() for name in action.choices
    }


def test_the_manual_page_of_agentd_has_its_options_and_exit_codes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = manual("agentd.8")
    with pytest.raises(SystemExit):
        agentd.main(["--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert set(re.findall(r"^\.BI? (--[a-z-]+)", page, re.MULTILINE)) == options
    codes = {value for name, value in vars(agentd).items() if name.startswith("EXIT_")}
    assert {int(code) for code in re.findall(r"^\.B (\d+)$", page, re.MULTILINE)} == codes | {0}


def test_the_manual_page_of_serverctl_names_every_command() -> None:
    page = manual("serverctl.1")
    assert [name for name in serverctl.LazyGroup.table if name not in page] == []


def test_every_unit_belongs_to_one_product() -> None:
    named = sorted(name for product in PRODUCTS.values() for name in product.units)
    assert named == sorted(path.name for path in UNITS.glob("*.service"))


def test_a_product_brings_every_command_of_its_parts() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for product in PRODUCTS.values():
        own = {name for name, entry in scripts.items() if entry.split(".")[0] in product.parts}
        assert set(product.commands) <= own


def test_the_servers_shipped_configuration_changes_nothing() -> None:
    assert settings.load(LINUX / SERVER.settings) == settings.Config()


def test_the_agents_shipped_configuration_changes_nothing_and_shows_a_source(
    tmp_path: Path,
) -> None:
    from agent import config

    for shipped in (LINUX / "config.toml", ROOT / "packaging/windows/config.toml"):
        assert config.load(shipped) == config.Config()
        filled = tmp_path / "config.toml"
        text = shipped.read_text().replace("#[[sources]]\n#url", "[[sources]]\nurl")
        filled.write_text(text)
        assert config.load(filled).sources[0].url == "https://updates.example.com/feed"

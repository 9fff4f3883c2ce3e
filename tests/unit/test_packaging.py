"""What the packages are made from agrees with the program."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from agent.ctl import main as ctl

ROOT = Path(__file__).parents[2]
LINUX = ROOT / "packaging" / "linux"
sys.path.insert(0, str(ROOT / "packaging"))

from builder import wheels  # noqa: E402 - packaging/ is no package
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


def test_the_manual_page_names_every_command() -> None:
    page = (LINUX / "man" / "agentctl.1").read_text()
    (action,) = [it for it in ctl._parser()._actions if isinstance(it, argparse._SubParsersAction)]
    assert [name for name in action.choices if name not in page] == []


def test_the_shipped_configuration_lacks_a_source_and_nothing_else(tmp_path: Path) -> None:
    from agent import config

    for shipped in (LINUX / "config.toml", ROOT / "packaging/windows/config.toml"):
        assert config.load(shipped).sources == ()
        filled = tmp_path / "config.toml"
        text = shipped.read_text().replace("#[[sources]]\n#url", "[[sources]]\nurl")
        filled.write_text(text)
        assert config.load(filled).sources[0].url == "https://updates.example.com/feed"

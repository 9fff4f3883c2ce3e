"""The server's pages and its example file say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import click
import msgspec
import pytest

from server import settings
from server.ctl import mirror
from server.ctl.main import LazyGroup, cli
from server.settings import Config, Limits, Policy, Source, Tls
from server.web import admin, agents, fleet, health
from server.web.setup_page import SETUP_PATH

ROOT = Path(__file__).parents[3]
SERVER = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
MAN = (ROOT / "packaging" / "linux" / "man" / "serverctl.1").read_text(encoding="utf-8")
EXAMPLE = (ROOT / "server.example.toml").read_text(encoding="utf-8")


def test_the_example_is_the_defaults_and_shows_every_setting() -> None:
    assert settings.parse(EXAMPLE.encode(), where="example") == Config()
    for section in (Config, Tls, Limits, Source):
        for name in section.__struct_fields__:
            assert re.search(rf"^#? ?\[*{name}\b", EXAMPLE, re.MULTILINE), name


def test_what_the_example_shows_can_be_meant() -> None:
    text = re.sub(r"^# ((?:\[\[|\w+ = ).*)$", r"\1", EXAMPLE, flags=re.MULTILINE)
    text = re.sub(r"^origin = .*$", "", text, flags=re.MULTILINE)  # excludes sources
    lines = text.splitlines()
    top = [line for line in lines if not line.startswith("#")]
    found = settings.parse("\n".join(top).encode(), where="example")
    assert found.sources
    assert found.limits == Limits()


def test_every_policy_key_is_documented_with_its_default() -> None:
    for name, default in msgspec.to_builtins(Policy()).items():
        shown = {None: "none", True: "true"}.get(default, default)
        written = f"{shown:g}" if isinstance(shown, int | float) else f"{shown}"
        row = re.search(rf"^\| `{name}` \| `?([^|`]+)`? \|", API, re.MULTILINE)
        assert row, name
        assert row[1].strip() == written, name


def test_every_command_is_documented() -> None:
    for name in LazyGroup.table:
        assert f"serverctl {name}" in SERVER, name


@pytest.mark.parametrize("name", list(LazyGroup.table))
def test_every_command_has_help_and_takes_json(name: str) -> None:
    for words, command in _commands(name):
        assert command.help, words
        if name != "run":
            assert any("--json" in option.opts for option in command.params), words


@pytest.mark.parametrize("name", list(LazyGroup.table))
def test_every_subcommand_is_documented_and_is_there(name: str) -> None:
    real = {words for words, _ in _commands(name)} - {name}
    (row,) = re.findall(rf"^\| `serverctl {name}[^|]*\|.*$", SERVER, re.MULTILINE) or [""]
    text = row.replace("`show`", f"`{name} show`")  # a row's own group may be left out
    text = re.sub(r"`(move|revoke|rotate)`", rf"`{name} \1`", text)
    said = {f"{name} {word}" for word in re.findall(rf"`{name} ([a-z]+)\b", text)}
    assert said == real or name == "run"
    for words in real:
        assert words.rpartition(" ")[2] in MAN


def _commands(name: str) -> list[tuple[str, click.Command]]:
    """The command, and those below it."""
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    below = command.commands if isinstance(command, click.Group) else {}
    return [(name, command), *((f"{name} {word}", item) for word, item in below.items())]


def test_the_retention_table_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    costs = [(k, 612_400_000, 0) for k in range(14, 7, -1)]
    costs += [(k, 583_000_000, 38) for k in range(7, 2, -1)]
    costs += [(2, 578_000_000, 78), (1, 577_000_000, 118)]
    names = ("versions_kept", "bytes", "agents_to_fulls")
    mirror.show_retention([dict(zip(names, row, strict=True)) for row in costs], in_force=14)
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    shown = SERVER.partition("$ serverctl retention\n")[2].splitlines()[: len(printed)]
    assert [line.strip() for line in shown] == printed


def test_the_set_up_link_is_shown_as_it_is_printed() -> None:
    shown = re.search(r"set up +https://files\.example:8443(\S+)…   \((.+)\)", SERVER)
    assert shown
    assert shown[1] == f"{SETUP_PATH}#"
    assert f"({shown[2]})" in (ROOT / "server" / "run.py").read_text(encoding="utf-8")


def test_every_path_of_the_api_is_documented() -> None:
    for handler in (*agents.HANDLERS, *admin.HANDLERS, *fleet.HANDLERS, *health.HANDLERS):
        for path in handler.paths:
            short = re.sub(r"\{(\w+):\w+\}", "{id}", path.removeprefix("/api/v1"))
            short = short.replace("/groups/{id}", "/groups/{name}")
            assert re.search(rf"[ `]{re.escape(short)}[` ,]", API), path


def test_what_isnt_given_is_a_default_and_what_cant_be_meant_is_refused() -> None:
    assert settings.parse(b"", where="x") == Config()
    with pytest.raises(settings.ConfigError, match=r"x: limits\.body_s: 0, expected a number"):
        settings.parse(b"[limits]\nbody_s = 0\n", where="x")


@pytest.mark.parametrize("proxy", ["127.0.0.1", "::1", "10.0.0.0/8", "fd00::/8"])
def test_a_proxy_is_an_address_or_a_network(proxy: str) -> None:
    assert settings.parse(f'proxies = ["{proxy}"]'.encode(), where="x").proxies == (proxy,)
    with pytest.raises(settings.ConfigError, match=r"such as 10\.0\.0\.0/8"):
        settings.parse(b'proxies = ["nginx.example"]', where="x")

"""The server's pages and its example file say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import click
import msgspec
import pytest

from server import settings
from server.ctl.main import LazyGroup, cli
from server.settings import Config, Limits, Policy, Source, Tls
from server.web import admin, agents, fleet, health

ROOT = Path(__file__).parents[3]
SERVER = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
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
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.help
    if name != "run":
        assert any("--json" in option.opts for option in command.params), name


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

"""The documents say what the code does: keys, defaults, commands, fields, paths."""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import click
import msgspec
import msgspec.inspect as shapes
import pytest

from agent import config
from agent.config import (
    AgentProgram,
    Check,
    Config,
    Download,
    Health,
    Hook,
    Probe,
    SettingsTarget,
    Source,
    Watch,
)
from agent.ctl import client
from agent.ctl import main as ctl
from agent.guardian import bootguard, lifecycle, main
from agent.guardian.gates import Reason
from agent.guardian.lifecycle import State
from agent.guardian.policy import DEFAULTS
from agent.layout import Layout
from feed.rollout import Decision
from publisher.cli import cli
from publisher.settings import Expiry, Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EXAMPLE = ROOT / "config.example.toml"

# The sections of the configuration, by their headings in docs/configuration.md.
SECTIONS: dict[str, type[msgspec.Struct]] = {
    "Top level": Config,
    "[[sources]]": Source,
    "[check]": Check,
    "[download]": Download,
    "[program]": AgentProgram,
    "[health]": Health,
    "[[watch]]": Watch,
    "[watch.probe]": Probe,
    "[[activation]]": Hook,
    "[[settings]]": SettingsTarget,
}


class Row(NamedTuple):
    """One line of a table of keys, without its meaning."""

    key: str
    type: str
    allowed: str
    default: str


def expected_rows(section: type[msgspec.Struct]) -> list[Row]:
    """The lines that the code asks for; nested sections have tables of their own."""
    info = shapes.type_info(section)
    assert isinstance(info, shapes.StructType)
    rows = []
    for field in info.fields:
        kind = _plain(field.type)
        if _is_section(kind):
            continue
        default = getattr(DEFAULTS, field.name) if section is Health else field.default
        if isinstance(kind, shapes.DictType):
            default = None
        rows.append(Row(field.name, _type_word(kind), _allowed(kind), _spelt(default)))
    return rows


def _plain(kind: shapes.Type) -> shapes.Type:
    """`kind` without the None that stands for "not given"."""
    if isinstance(kind, shapes.UnionType):
        (kind,) = [item for item in kind.types if not isinstance(item, shapes.NoneType)]
    return kind.type if isinstance(kind, shapes.Metadata) else kind


def _is_section(kind: shapes.Type) -> bool:
    inner = kind.item_type if isinstance(kind, shapes.VarTupleType) else kind
    return isinstance(inner, shapes.StructType)


def _type_word(kind: shapes.Type) -> str:
    words = {
        shapes.FloatType: "number",
        shapes.IntType: "integer",
        shapes.BoolType: "true or false",
        shapes.VarTupleType: "list of texts",
        shapes.DictType: "table of texts",
    }
    return words.get(type(kind), "text")


def _allowed(kind: shapes.Type) -> str:
    if isinstance(kind, shapes.LiteralType):
        return ", ".join(f"`{value}`" for value in kind.values)
    if isinstance(kind, shapes.FloatType | shapes.IntType):
        lowest = f"above {kind.gt:,g}" if kind.gt is not None else f"{kind.ge:,g}"
        return f"{lowest} to {int(kind.le or 0):,}"
    if isinstance(kind, shapes.VarTupleType):
        return f"{kind.min_length} to {kind.max_length} texts"
    if isinstance(kind, shapes.StrType) and kind.max_length is not None:
        return f"at most {kind.max_length:,} characters"
    return ""


def _spelt(value: object) -> str:
    if value is msgspec.NODEFAULT:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float | int):
        return f"`{value:.15g}`"
    return f'`"{value}"`'


def documented(page: Path) -> dict[str, list[Row]]:
    """The tables of keys in a page, by the heading above them."""
    found: dict[str, list[Row]] = {}
    heading = ""
    for line in page.read_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ").strip("`")
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `") and len(cells) == 5:
            found.setdefault(heading, []).append(Row(cells[0].strip("`"), *cells[1:4]))
    return found


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_is_documented_with_its_type_limits_and_default(heading: str) -> None:
    assert documented(DOCS / "configuration.md")[heading] == expected_rows(SECTIONS[heading])


def test_nothing_is_documented_that_the_configuration_doesnt_have() -> None:
    assert set(documented(DOCS / "configuration.md")) == set(SECTIONS)


def uncommented(text: str) -> str:
    """The example with its commented-out lines set."""
    return re.sub(r"^#(?=[a-z\[])", "", text, flags=re.MULTILINE)


def test_the_example_configuration_is_valid_as_it_stands_and_with_every_line_set() -> None:
    text = EXAMPLE.read_text()
    config.parse(text.encode(), where="example")
    config.parse(uncommented(text).encode(), where="example, all lines")


def test_the_example_configuration_shows_every_key() -> None:
    everything = tomllib.loads(uncommented(EXAMPLE.read_text()))
    for heading, section in SECTIONS.items():
        assert _keys(everything, heading) == set(section.__struct_fields__), heading


def _keys(everything: dict[str, Any], heading: str) -> set[str]:
    if heading == "Top level":
        return set(everything)
    first, _, second = heading.strip("[]").partition(".")
    tables = everything[first] if isinstance(everything[first], list) else [everything[first]]
    if second:
        tables = [table[second] for table in tables if second in table]
    return {key for table in tables for key in table}


@pytest.mark.parametrize("heading", ["Top level", "[check]", "[download]", "[health]"])
def test_what_the_example_comments_out_is_the_default(heading: str) -> None:
    shown = config.parse(uncommented(EXAMPLE.read_text()).encode(), where="example")
    part = shown if heading == "Top level" else getattr(shown, heading.strip("[]"))
    for row in expected_rows(SECTIONS[heading]):
        if row.default not in {"none", "required"}:
            assert _spelt(getattr(part, row.key)) == row.default, row.key


# agentctl and publisher


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """A parser's commands by name."""
    (action,) = [item for item in parser._actions if isinstance(item, argparse._SubParsersAction)]
    return dict(action.choices)


def test_every_agentctl_command_and_option_is_documented() -> None:
    page = (DOCS / "agentctl.md").read_text()
    for name, parser in subcommands(ctl._parser()).items():
        assert f"### `{name}" in page, name
        for action in parser._actions:
            for word in [*action.option_strings, *(action.choices or ())]:
                if word not in {"-h", "--help"}:
                    assert f"`{word}" in page or f" {word}" in page, f"{name} {word}"


def test_no_agentctl_command_is_documented_that_doesnt_exist() -> None:
    named = re.findall(r"^### `([a-z]+)", (DOCS / "agentctl.md").read_text(), re.MULTILINE)
    assert set(named) == set(subcommands(ctl._parser()))
    mentioned = {
        word for page in pages() for word in re.findall(r"`(?:sudo )?agentctl ([a-z]+)", page)
    }
    assert mentioned <= set(subcommands(ctl._parser()))


def publisher_commands() -> Iterator[tuple[str, click.Command]]:
    """Every command of `publisher`, nested ones with both words."""
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", item) for inner, item in command.commands.items())
        else:
            yield name, command


def test_every_publisher_command_and_option_is_documented() -> None:
    page = (DOCS / "publisher.md").read_text()
    for name, command in publisher_commands():
        assert f"`publisher {name}" in page, name
        for parameter in command.params:
            for word in parameter.opts if isinstance(parameter, click.Option) else ():
                assert f"`{word}" in page or f" {word}" in page, f"{name} {word}"


def test_no_publisher_command_is_mentioned_that_doesnt_exist() -> None:
    known = {name for name, _ in publisher_commands()} | {"rollout", "keys"}
    for page in pages():
        for first, second in re.findall(r"`publisher ([a-z]+)(?: ([a-z]+))?", page):
            assert first in known or f"{first} {second}" in known, f"{first} {second}"


def test_every_setting_of_the_release_desk_is_documented_with_its_default() -> None:
    page = (DOCS / "publisher.md").read_text()
    base, days = Settings(), Expiry()
    for name in Settings.__struct_fields__:
        value = getattr(base, name)
        if isinstance(value, int):
            assert f"| `{name}` | `{value}` |" in page
        elif not isinstance(value, msgspec.Struct):
            assert f"| `{name}` |" in page
    for name in Expiry.__struct_fields__:
        assert f"| `expiry_days.{name}` | `{getattr(days, name):g}` |" in page


# The status document and its codes


def test_every_field_of_the_status_document_is_documented(tmp_path: Path) -> None:
    page = (DOCS / "agentctl.md").read_text()
    places = Layout(state=tmp_path, runtime=tmp_path, trust_root=tmp_path / "root.json")
    for name in {*status_fields(), *client.without_guardian(places, "down")}:
        assert f"| `{name}` |" in page, name


def status_fields() -> set[str]:
    """The top-level keys of the document that the guardian gives."""
    source = (ROOT / "agent/guardian/status.py").read_text()
    body = source.partition("def document(")[2].partition("\ndef ")[0]
    return set(re.findall(r'^        "(\w+)":', body, re.MULTILINE))


def test_the_status_document_is_found_in_the_code() -> None:
    assert {"schema", "standing", "trial", "quarantine", "processes"} <= status_fields()


@pytest.mark.parametrize("codes", [State, Reason, Decision])
def test_every_state_and_reason_code_is_documented(codes: type[State]) -> None:
    page = (DOCS / "agentctl.md").read_text()
    for code in codes:
        assert f"| `{code}` |" in page, code


def test_the_table_of_transitions_is_the_one_in_force() -> None:
    page = (DOCS / "architecture.md").read_text()
    for state, following in lifecycle.TRANSITIONS.items():
        listed = ", ".join(f"`{item}`" for item in State if item in following)
        assert f"| `{state}` | {listed} |" in page, state


@pytest.mark.parametrize(
    ("heading", "program"), [("agentd", main), ("holdfast-bootguard", bootguard)]
)
def test_every_exit_code_is_documented(heading: str, program: ModuleType) -> None:
    page = (DOCS / "operations.md").read_text()
    table = page.split(f"## {heading}'s exit codes", 1)[1].split("\n## ", 1)[0]
    codes = {value for name, value in vars(program).items() if name.startswith("EXIT_")}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == codes | {0}


def test_each_attack_has_its_test() -> None:
    named = set(re.findall(r"`(test_\w+)`", (DOCS / "threat-model.md").read_text()))
    assert named
    source = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in named:
        assert f"def {name}(" in source, name


# Paths


def page_files() -> list[Path]:
    """Every page for people."""
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]


def pages() -> list[str]:
    """Their texts."""
    return [path.read_text() for path in page_files()]


@pytest.mark.parametrize("page", page_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_of_the_project_that_a_page_names_exist(page: Path) -> None:
    rooms = "agent|feed|publisher|service|examples|tests|docs|requirements"
    for name in re.findall(rf"`((?:{rooms})/[\w./-]+\.\w+)`", page.read_text()):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", page_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_installs_a_name_that_anybody_may_offer(page: Path) -> None:
    """The project is on no package index; what pip takes from one by its name isn't it."""
    assert not re.search(r"pip\W+install( -\S+)* holdfast(?![\w.-])", page.read_text())


@pytest.mark.parametrize("page", page_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_that_a_page_names_exist(page: Path) -> None:
    named = set(re.findall(r"`((?:agent|feed|publisher)(?:\.[a-z_]+)+)`", page.read_text()))
    for name in named - {"publisher.toml"}:
        path = ROOT / name.replace(".", "/")
        places = (path / "__init__.py", path.with_suffix(".py"), path.parent.with_suffix(".py"))
        assert any(place.exists() for place in places), name


def test_there_are_pages_for_every_decision_that_the_code_refers_to() -> None:
    source = "".join(
        path.read_text()
        for room in ("agent", "feed", "publisher")
        for path in ROOT.glob(f"{room}/**/*.py")
    )
    for number in set(re.findall(r"docs/adr/(\d{4})", source)):
        assert list((DOCS / "adr").glob(f"{number}-*.md")), number
    for name in set(re.findall(r"docs/([\w-]+\.md)", source)):
        assert (DOCS / name).exists(), name

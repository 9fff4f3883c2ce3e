"""The configuration: nothing is guessed, and the message says what to type instead."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import config, layout
from agent.config import Config
from agent.errors import ConfigError

SOURCES = '[[sources]]\nurl = "https://updates.example/feed"\n'
WATCH = '[[watch]]\nname = "engine"\n'
ONE_KIND = "expected exactly one of pid_file, process, executable, unit"
URL = "expected http://, https:// or file:// and an address"
TEXTS = "expected a list of 1 to 64 texts"
ONE_HOOK = "expected exactly one of command, signal, reload_unit, restart_unit"
HOOK = '[[activation]]\nname = "reload"\n'


def parse(text: str) -> Config:
    return config.parse(text.encode(), where="/etc/holdfast/config.toml")


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    said = str(caught.value)
    assert said.startswith("/etc/holdfast/config.toml: ")
    return said.removeprefix("/etc/holdfast/config.toml: ")


def test_a_source_is_all_that_must_be_given() -> None:
    found = parse(SOURCES)
    assert found.sources[0].url == "https://updates.example/feed"
    assert found.check.interval_s == 3600
    assert found.region == "global"


def test_every_section_is_read() -> None:
    found = parse(
        'state_dir = "state"\nregion = "japan"\n'
        + SOURCES
        + '[[sources]]\nurl = "file:///media/feed"\nproxy = ""\n'
        + "[check]\ninterval_s = 60\n[download]\nattempts = 2\n[health]\nwindow_s = 5\n"
        + WATCH
        + 'pid_file = "engine.pid"\nprobe = { unix = "engine.sock", timeout_s = 2 }\n'
        + HOOK
        + 'signal = "HUP"\npid_file = "engine.pid"\n'
        + '[[settings]]\ncomponent = "tuning"\nfile = "tuning.conf"\n'
    )
    assert [source.proxy for source in found.sources] == [None, ""]
    assert found.watch[0].probe is not None
    assert found.activation[0].signal == "HUP"
    assert found.health.as_policy().window_s == 5
    assert found.health.as_policy().tries is None


NAME = "expected 1 to 63 of a-z, 0-9 and _ . @ -, the first a letter or digit"
REGION = "expected 1 to 63 of a-z, 0-9 and -, the first a letter or digit"
WHOLE = "expected a whole number from 0 to 1,152,921,504,606,846,976"
TEXT = "expected a text of at most 1,024 characters"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[sources]]\n", "sources[0].url is missing, expected a text"),
        ("[sources]\n", "sources: a table, expected a list of 0 to 64 tables"),
        ('sources = "https://x"\n', "sources: 'https://x', expected a list of 0 to 64 tables"),
        (SOURCES + 'proxxy = "x"\n', "sources[0].proxxy: unknown key, expected one of url, proxy"),
        (SOURCES + 'check = "x"\n', "sources[0].check: unknown key, expected one of url, proxy"),
        (
            SOURCES + "[check]\ninterval = 5\n",
            "check.interval: unknown key, expected one of interval_s, jitter_s, at_start",
        ),
        ('check = "hourly"\n' + SOURCES, "check: 'hourly', expected a table"),
        ("watch = [1]\n" + SOURCES, "watch[0]: 1, expected a table"),
        (
            SOURCES + '[check]\ninterval_s = "often"\n',
            "check.interval_s: 'often', expected a number from 1 to 2,592,000",
        ),
        *(
            (
                SOURCES + f"[check]\ninterval_s = {given}\n",
                f"check.interval_s: {given}, expected a number from 1 to 2,592,000",
            )
            for given in ("0", "inf", "nan", "1979-05-27")
        ),
        (SOURCES + "[check]\nat_start = 1\n", "check.at_start: 1, expected true or false"),
        (
            SOURCES + "[check]\njitter_s = true\n",
            "check.jitter_s: true, expected a number from 0 to 31,622,400",
        ),
        *(
            (
                SOURCES + f"[download]\nattempts = {given}\n",
                f"download.attempts: {given}, expected a whole number from 1 to 20",
            )
            for given in ("0", "1.5", "21", "[]")
        ),
        *(
            (
                SOURCES + f"[download]\nbandwidth_bytes_per_s = {given}\n",
                f"download.bandwidth_bytes_per_s: {given}, " + WHOLE,
            )
            for given in ("-5", "18446744073709551616")
        ),
        (
            SOURCES + "[health]\nwindow_s = 0\n",
            "health.window_s: 0, expected a number above 0 to 31,622,400",
        ),
        (
            SOURCES + "[health]\ncpu_factor = 0.5\n",
            "health.cpu_factor: 0.5, expected a number from 1 to 1,000",
        ),
        ('region = "Japan Ost"\n' + SOURCES, f"region: 'Japan Ost', {REGION}"),
        (
            'log_level = "loud"\n' + SOURCES,
            "log_level: 'loud', expected one of debug, error, info, warning",
        ),
        ("log_level = 3\n" + SOURCES, "log_level: 3, expected one of debug, error, info, warning"),
        ("[[sources]]\nurl = 5\n", "sources[0].url: 5, expected a text"),
        (SOURCES + HOOK + "command = []\n", "activation[0].command: [], " + TEXTS),
        (SOURCES + HOOK + 'command = "reload"\n', "activation[0].command: 'reload', " + TEXTS),
        (SOURCES + HOOK + 'command = ["a", 5]\n', "activation[0].command[1]: 5, expected a text"),
        (
            SOURCES + HOOK + 'signal = "KILL"\n',
            "activation[0].signal: 'KILL', expected one of HUP, USR1, USR2",
        ),
        (SOURCES + '[[watch]]\nname = "../x"\nunit = "x"\n', f"watch[0].name: '../x', {NAME}"),
        (SOURCES + WATCH + 'unit = "x"\nprobe = 5\n', "watch[0].probe: 5, expected a table"),
        (
            SOURCES + WATCH + f'unit = "x"\nprobe = {{ send = "{"a" * 2000}" }}\n',
            f"watch[0].probe.send: '{'a' * 60}'… (2,000 characters), " + TEXT,
        ),
        ('[[sources]]\nurl = "ftp://x"\n', "sources[0].url: 'ftp://x', " + URL),
        ('[[sources]]\nurl = "updates.example"\n', "sources[0].url: 'updates.example', " + URL),
        ('[[sources]]\nurl = "https://"\n', "sources[0].url: 'https://', " + URL),
    ],
)
def test_a_bad_value_is_refused_with_its_key_what_was_given_and_what_is_allowed(
    text: str, said: str
) -> None:
    assert refusal(text) == said


def test_every_key_there_is_can_be_told_of() -> None:
    said = refusal("colour = 1\n" + SOURCES)
    assert said == f"colour: unknown key, expected one of {', '.join(Config.__struct_fields__)}"


def test_a_refused_source_doesnt_show_its_password() -> None:
    said = refusal('[[sources]]\nurl = "ftp://admin:secret@updates.example/feed"\n')
    assert said == f"sources[0].url: 'ftp://updates.example/feed', {URL}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            WATCH + 'pid_file = "a.pid"\nunit = "a.service"\n',
            f"watch 'engine': {ONE_KIND}; 2 are given",
        ),
        (
            WATCH,
            f"watch 'engine': {ONE_KIND}; 0 are given",
        ),
        (
            WATCH + 'unit = "a"\nprobe = { tcp = "localhost:1", http = "http://x/" }\n',
            "watch 'engine': probe: expected exactly one of command, tcp, http, unix; 2 are given",
        ),
        (
            WATCH + 'unit = "a"\nprobe = {}\n',
            "watch 'engine': probe: expected exactly one of command, tcp, http, unix; 0 are given",
        ),
        (
            HOOK,
            f"activation 'reload': {ONE_HOOK}; 0 are given",
        ),
        (
            HOOK + 'signal = "HUP"\ncommand = ["x"]\npid_file = "p"\n',
            f"activation 'reload': {ONE_HOOK}; 2 are given",
        ),
        (HOOK + 'signal = "HUP"\n', "activation 'reload': signal needs pid_file"),
        ((WATCH + 'unit = "a"\n') * 2, "watch: 'engine' is given twice"),
        ((HOOK + 'command = ["a"]\n') * 2, "activation: 'reload' is given twice"),
        (
            '[[settings]]\ncomponent = "t"\nfile = "f"\n' * 2,
            "settings: 't' is given twice",
        ),
        (
            WATCH + 'unit = "a"\nprobe = { tcp = "localhost" }\n',
            "watch 'engine': probe.tcp: 'localhost', expected address:port",
        ),
        (
            WATCH + 'unit = "a"\nprobe = { tcp = "localhost:99999" }\n',
            "watch 'engine': probe.tcp: 'localhost:99999', expected address:port",
        ),
        (
            WATCH + 'unit = "a"\nprobe = { http = "localhost/health" }\n',
            "watch 'engine': probe.http: 'localhost/health', expected http:// or https://",
        ),
        (
            "[health]\nprobation_s = 100\nprobation_max_s = 50\n",
            "health.probation_max_s: 50.0, expected at least probation_s (100.0)",
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused(text: str, said: str) -> None:
    assert refusal(SOURCES + text) == said


@pytest.mark.parametrize("address", ["localhost:80", "127.0.0.1:65535", "[::1]:8080"])
def test_a_tcp_probe_takes_names_and_both_address_families(address: str) -> None:
    found = parse(SOURCES + WATCH + f'unit = "a"\nprobe = {{ tcp = "{address}" }}\n')
    assert found.watch[0].probe is not None


@pytest.mark.parametrize("data", [b"[", b"a = ", b"\xff\xfe", b"a = 1\na = 2", b"[" * 5000])
def test_what_isnt_toml_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"^c: not TOML: "):
        config.parse(data, where="c")


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_all_defaults_or_a_config_error(data: bytes) -> None:
    try:
        found = config.parse(data, where="c")
    except ConfigError:
        return
    assert found == config.Config()  # blank lines and comments say nothing


def test_an_oversized_file_is_refused_unread() -> None:
    with pytest.raises(ConfigError, match="the limit is 1,048,576"):
        config.parse(b"#" * (config.CONFIG_BYTES_MAX + 1), where="c")


def test_a_missing_file_says_how_to_name_another(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml: can't be read .*--config PATH"):
        config.load(tmp_path / "missing.toml")


def test_a_file_is_loaded_and_named_in_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(SOURCES)
    assert config.load(path).sources
    path.write_text("nonsense = 1\n" + SOURCES)
    with pytest.raises(ConfigError, match=rf"^{path}: nonsense: unknown key, expected one of"):
        config.load(path)


def test_the_environment_names_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOLDFAST_CONFIG", str(tmp_path / "c.toml"))
    assert layout.default_path() == tmp_path / "c.toml"
    monkeypatch.delenv("HOLDFAST_CONFIG")
    monkeypatch.setattr(layout.os, "geteuid", lambda: 0)
    assert layout.default_path() == Path("/etc/holdfast/config.toml")
    monkeypatch.setattr(layout.os, "geteuid", lambda: 1000)
    assert layout.default_path().name == "config.toml"
    assert layout.default_path().parent.name == "holdfast"


@pytest.mark.parametrize(
    "text",
    [
        'state_dir = "a\\u0000b"',
        '[[activation]]\nname = "h"\ncommand = ["true", "\\u0000"]',
        '[[watch]]\nname = "w"\npid_file = "/run/\\u0000"',
    ],
)
def test_a_text_that_no_system_call_takes_is_refused(text: str) -> None:
    """It would otherwise be found out in the middle of a flip."""
    head = 'sources = [{ url = "http://h/" }]\n'
    with pytest.raises(ConfigError, match="no path, name or argument can hold"):
        config.parse((head + text).encode(), where="c")

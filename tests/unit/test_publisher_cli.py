"""The `publisher` command: what it prints, in which form, and with which exit code."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import CryptoSigner

from publisher import console, publish, release
from publisher.cli import cli

OLD = random.Random(1).randbytes(9_000)


class Desk:
    """The command in one work folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "vendor"

    def run(self, *arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(cli, ["--home", str(self.home), *arguments])
        assert result.exit_code == code, (result.output, result.exception)
        assert "Traceback" not in result.output
        assert "\x1b" not in result.output
        return result

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)

    def refused(self, *arguments: str, code: int = 1) -> str:
        said = self.run(*arguments, code=code).stderr
        assert said.startswith("publisher: ")
        assert said.count("\n") == 1
        return said

    def file(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def pattern(self, number: int) -> str:
        path = self.file(f"{number}.ptn", OLD + b"x" * number)
        return f"--component=pattern:pattern:{number}={path}"


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = Desk(tmp_path)
    made.run("init", "--region", "global", "--region", "japan")
    return made


@pytest.fixture
def busy(desk: Desk) -> Desk:
    for number in (171, 173):
        desk.run("release", f"r{number}", desk.pattern(number))
        desk.run("publish")
    return desk


def test_init_says_which_keys_to_take_offline_and_what_comes_next(tmp_path: Path) -> None:
    said = Desk(tmp_path).run("init").stdout
    assert "1.root.json" in said
    (root_line,) = (line for line in said.splitlines() if line.startswith("root "))
    assert root_line.endswith("take offline")
    assert "next: publisher release" in said
    assert "PRIVATE" not in said


def test_init_reports_as_json(tmp_path: Path) -> None:
    made = Desk(tmp_path).json("init", "--root-keys", "3", "--root-threshold", "2")
    assert [role for role, _, _ in made["keys"]].count("root") == 3


def test_a_second_init_is_refused(desk: Desk) -> None:
    assert "nothing was changed" in desk.refused("init", code=4)


def test_the_road_of_a_release(desk: Desk) -> None:
    desk.run("release", "r171", desk.pattern(171))
    assert "next: publisher rollout start r171" in desk.run("publish").stdout
    result = desk.run("release", "r173", desk.pattern(173))
    assert "from 171" in result.stdout
    assert "pattern 171 → 173: " in result.stderr
    assert "next: publisher publish r173" in result.stdout
    desk.run("publish", "r173")
    said = desk.run("rollout", "start", "r173").stdout
    assert "japan   rolling  r173" in said
    assert "signed and live 0." in said


def test_release_reports_as_json(busy: Desk) -> None:
    staged = busy.json("release", "r175", busy.pattern(175))
    (component,) = staged["components"]
    assert component["origin"] == "new"
    made = component["increments"][0]
    assert [item["old"] for item in component["increments"]] == ["173", "171"]
    assert set(made) == {
        *("name", "old", "new", "format", "length", "cpu_s", "share", "keep", "why_not"),
    }
    assert made["share"] == made["length"] / component["zst_bytes"]
    assert (made["keep"], made["why_not"], made["format"]) == (True, "", "segments-1")
    assert made["cpu_s"] > 0
    assert staged["release"]["components"][0]["predecessors"] == ["173", "171"]


def test_the_table_has_what_each_incremental_cost_and_saves(busy: Desk) -> None:
    said = busy.run("release", "r175", "--effort", "quick", busy.pattern(175)).stdout
    _, columns, full, packed, first, *_ = said.splitlines()
    assert columns.split("  ")[0] == "component"
    for column in ("what", "format", "kept", "bytes", "share", "CPU s"):
        assert column in columns
    assert full.split() == ["pattern", "175", "full", "yes", "9,175"]
    assert packed.split()[:2] == ["compressed", "zstd"]
    assert first.split()[:4] == ["from", "173", "segments-1", "yes"]
    assert first.split()[-2].endswith("%")


def test_an_unknown_effort_is_wrong_usage(busy: Desk) -> None:
    said = busy.run("release", "r175", "--effort", "utmost", busy.pattern(175), code=2).stderr
    assert "'quick', 'usual', 'thorough'" in said


def test_a_release_file_describes_everything(desk: Desk) -> None:
    desk.file("171.ptn", OLD)
    toml = desk.file(
        "release.toml",
        b'[[components]]\nname = "pattern"\nkind = "pattern"\nversion = "171"\npath = "171.ptn"\n'
        b'filename = "virus.ptn"\n[health]\nwarmup_s = 2.5\n[activation]\nhooks = ["reload"]\n'
        b'[compatibility]\nagent_min = "0.1"\n',
    )
    staged = desk.json("release", "r171", "--from", str(toml), "--os", "linux")["release"]
    assert staged["components"][0]["filename"] == "virus.ptn"
    assert staged["health"] == {"warmup_s": 2.5}
    assert staged["activation"] == {"hooks": ["reload"]}
    assert staged["compatibility"] == {"os": ["linux"], "agent_min": "0.1"}


def test_left_out_and_reused_are_said_in_the_table(busy: Desk) -> None:
    other = busy.file("other.ptn", random.Random(2).randbytes(5_000))
    said = busy.run("release", "r175", f"--component=pattern:pattern:175={other}").stdout
    assert "left out: not smaller than the full" in said
    said = busy.run("release", "r175", busy.pattern(171)).stdout
    assert "reused" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pattern:pattern:1", "expected NAME:KIND:VERSION=PATH"),
        ("pattern:1=x", "expected NAME:KIND:VERSION=PATH"),
        ("pattern:virus:1=x", "kind 'virus', expected one of pattern, engine, program"),
    ],
)
def test_a_malformed_component_is_wrong_usage(desk: Desk, text: str, said: str) -> None:
    result = desk.run("release", "r1", "--component", text, code=2)
    assert said in " ".join(result.stderr.split())
    assert "Usage: " in result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pattern:pattern:1=/nowhere", "/nowhere is no file or folder"),
        ("pattern:pattern:new=/etc/hostname", "version 'new' doesn't parse"),
    ],
)
def test_a_component_that_cannot_be_read_is_explained(desk: Desk, text: str, said: str) -> None:
    assert said in desk.refused("release", "r1", "--component", text)


def test_a_component_given_twice_is_refused(desk: Desk) -> None:
    said = desk.refused("release", "r1", desk.pattern(171), desk.pattern(173))
    assert "pattern is given twice" in said


def test_publish_reports_as_json(busy: Desk) -> None:
    done = busy.json("publish")
    assert done["release"] is None
    assert done["signed"] == ["timestamp"]
    assert 0 < done["seconds"] < 60
    assert "refreshed" in busy.run("publish").stdout


def test_refresh_leaves_what_is_prepared(busy: Desk) -> None:
    busy.run("release", "r175", busy.pattern(175))
    assert busy.json("publish", "--refresh")["release"] is None
    assert busy.json("show")["staged"] == ["r175"]
    assert "publishes no release" in busy.run("publish", "r175", "--refresh", code=2).stderr


def test_publishing_what_is_not_prepared_is_refused(busy: Desk) -> None:
    assert "r9 isn't prepared; run `publisher release r9" in busy.refused("publish", "r9")


def test_of_several_prepared_releases_one_is_named_and_the_others_are_stale(busy: Desk) -> None:
    busy.run("release", "r175", busy.pattern(175))
    busy.run("release", "r177", busy.pattern(177))
    assert "r175, r177 are prepared; name one" in busy.refused("publish")
    busy.run("publish", "r177")
    assert "r175 was prepared before the newest" in busy.refused("publish", "r175")


def test_warnings_leave_json_alone(busy: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    done = publish.Published(release=None, signed=("timestamp",), warnings=("root expires",))
    monkeypatch.setattr(publish, "publish", lambda desk, release_id: done)
    result = busy.run("publish", "--json")
    assert json.loads(result.stdout)["warnings"] == ["root expires"]
    assert result.stderr == "publisher: warning: root expires\n"


def test_a_file_altered_after_it_was_prepared_is_never_signed(busy: Desk) -> None:
    busy.run("release", "r175", busy.pattern(175))
    (full,) = (busy.home / "staging/r175/targets/components/pattern/175").glob("*.full")
    content = full.read_bytes()
    full.write_bytes(content[:-1] + b"!")
    assert "altered since it was prepared" in busy.refused("publish", code=4)
    full.unlink()
    assert "missing; prepare the release again" in busy.refused("publish", code=4)
    (busy.home / "staging/r175/stage.json").write_bytes(b"{")
    assert "stage.json" in busy.refused("publish", code=4)


def test_the_feed_may_be_on_another_disk(busy: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from publisher import staging

    def refuse(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link", str(source), None, str(target))

    busy.run("release", "r175", busy.pattern(175))
    with monkeypatch.context() as patch:
        patch.setattr(staging.durable, "rename", _crossing(staging.durable.rename, refuse))
        busy.run("publish")
    assert [line["id"] for line in busy.json("show")["releases"]] == ["r171", "r173", "r175"]


def _crossing(rename: Any, refuse: Any) -> Any:
    return lambda source, target, **more: (
        refuse(source, target) if "staging" in str(source) else rename(source, target, **more)
    )


def test_a_full_disk_is_one_sentence(busy: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object, **_more: object) -> None:
        raise OSError(28, "No space left on device", "/feed/x")

    monkeypatch.setattr(release, "prepare", full)
    said = busy.refused("release", "r175", busy.pattern(175), code=4)
    assert "/feed/x: No space left on device" in said


def test_a_bug_is_not_hidden(busy: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(publish, "publish", broken)
    result = CliRunner().invoke(cli, ["--home", str(busy.home), "publish"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_folder_without_a_desk_names_the_next_command(tmp_path: Path) -> None:
    assert "run `publisher init` there" in Desk(tmp_path).refused("show", code=4)


def test_a_missing_key_has_its_own_exit_code(busy: Desk) -> None:
    next((busy.home / "keys").glob("timestamp-*.pem")).unlink()
    said = busy.refused("publish", code=3)
    assert "publisher keys rotate timestamp --lost" in said


def test_every_rollout_command_reports_as_json(busy: Desk) -> None:
    busy.json("rollout", "start", "r171")
    started = busy.json("rollout", "start", "r173", "--region", "japan")
    assert [plan["region"] for plan in started["plans"]] == ["japan"]
    halted = busy.json("rollout", "halt", "--reason", "hot", "--region", "japan")
    assert halted["plans"][0]["state"] == "halted"
    assert halted["seconds"] < 60
    assert busy.json("rollout", "resume")["plans"][0]["state"] == "rolling"
    back = busy.json("rollout", "withdraw", "--to", "r171", "--reason", "hot")
    assert back["plans"][0]["fallback"] == "r171"
    shown = busy.json("rollout", "show")
    assert [(plan["region"], plan["state"]) for plan in shown] == [
        ("global", "rolling"),
        ("japan", "withdrawn"),
    ]
    assert "withdrawn  r173     r171" in busy.run("rollout", "show").stdout


def test_a_halt_without_a_reason_is_wrong_usage(busy: Desk) -> None:
    assert "Missing option '--reason'" in busy.run("rollout", "halt", code=2).stderr


def test_an_empty_feed_says_what_comes_next(desk: Desk) -> None:
    assert "next: publisher rollout start" in desk.run("rollout", "show").stdout
    assert "next: publisher release" in desk.run("show").stdout


def test_show_has_everything(busy: Desk) -> None:
    busy.run("rollout", "start", "r173")
    busy.run("release", "r175", busy.pattern(175))
    found = busy.json("show")
    assert [line["id"] for line in found["releases"]] == ["r171", "r173"]
    assert found["staged"] == ["r175"]
    assert found["components"][0]["increments_to_newest"] == ["171"]
    roles = {line["name"]: line for line in found["roles"]}
    assert 6.9 < roles["timestamp"]["days_left"] <= 7
    assert len(roles["root"]["keys"]) == roles["root"]["threshold"] == 1
    said = busy.run("show").stdout
    assert "prepared, not published: r175" in said
    assert "r173  " in said


def test_keys_are_listed_and_replaced(busy: Desk) -> None:
    before = {line["roles"][0]: line for line in busy.json("keys", "list")}
    assert all(line["here"] for line in before.values())
    done = busy.json("keys", "rotate", "rollout")
    assert done["old"] == before["rollout"]["id"]
    said = busy.run("keys", "rotate", "timestamp").stdout
    assert "timestamp: key " in said
    assert "rollout-" in busy.run("keys", "list").stdout
    assert before["rollout"]["uri"] not in busy.run("keys", "list").stdout


def test_a_lost_key_asks_to_destroy_its_copies(busy: Desk) -> None:
    next((busy.home / "keys").glob("rollout-*.pem")).unlink()
    said = busy.run("keys", "rotate", "rollout", "--lost").stdout
    assert "destroy what copies" in said


def test_a_key_can_move_behind_a_uri(busy: Desk) -> None:
    signer = CryptoSigner.generate_ed25519()
    private = busy.file("hsm.pem", signer.private_bytes)
    private.chmod(0o600)
    public = busy.file(
        "hsm.pub",
        signer._private_key.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        ),
    )
    assert "go together" in busy.run("keys", "rotate", "rollout", "--uri", "x:1", code=2).stderr
    arguments = ("--uri", f"file2:{private}", "--public-key", str(public))
    assert busy.json("keys", "rotate", "rollout", *arguments)["new"] == signer.public_key.keyid
    busy.run("rollout", "start", "r173")


def test_serve_listens_on_loopback_unless_told(busy: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: calls.append(options))
    assert "http://127.0.0.1:8360/" in busy.run("serve").stdout
    assert "http://[::1]:8000/" in busy.run("serve", "--host", "::1", "--port", "8000").stdout
    assert [call["host"] for call in calls] == ["127.0.0.1", "::1"]


def test_an_unknown_command_is_wrong_usage(desk: Desk) -> None:
    assert "No such command" in desk.run("launch", code=2).stderr


def test_help_names_every_command_and_the_exit_codes() -> None:
    said = CliRunner().invoke(cli, ["--help"]).stdout
    for name in ("init", "release", "publish", "rollout", "show", "keys", "serve"):
        assert f"\n  {name} " in said
    assert "Exit codes: 0 done" in said


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from publisher.cli import cli; cli(['--help'], standalone_mode=False); "
        "print(sorted({'tuf', 'cryptography', 'rich', 'msgspec', 'bsdiff4'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout.endswith("[]\n")


def test_a_terminal_gets_a_bar_instead_of_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with console.StepProgress() as progress:
        progress.expect(2, size=8_000_000)
        progress.step("one [bold]", size=2_000_000)
    said = capsys.readouterr()
    assert said.out == ""
    assert "1/2" in said.err
    assert "2.0/8.0 MB" in said.err
    assert "one [bold]" in said.err


def test_a_pipe_gets_a_line_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    with console.StepProgress() as progress:
        progress.expect(1)
        progress.step("one")
    with console.StepProgress(quiet=True) as progress:
        progress.step("two")
    assert capsys.readouterr().err == "[1/1] one\n"


def test_a_pipe_is_told_what_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "BEAT_S", 0.05)
    said = ""
    with console.StepProgress() as progress:
        progress.expect(2, size=4_000_000)
        progress.begin("one")
        progress.step("one: done", size=2_000_000, begun_as="one")
        progress.begin("two")
        end = time.monotonic() + 20
        while "two" not in said and time.monotonic() < end:
            time.sleep(0.01)
            said += capsys.readouterr().err
    assert "[1/2] one: done\n" in said
    assert "[1/2], 2 of 4 MB done: two\n" in said


def test_a_table_shows_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console.table("t", "a", rows=[("[red]x",)])
    console.table("empty", "a", rows=[])
    said = capsys.readouterr().out
    assert "[red]x" in said
    assert "empty" not in said

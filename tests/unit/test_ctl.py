"""agentctl, command by command: answers, exit codes, and what to do when nobody answers."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import __version__, layout
from agent.ctl import client, main, places
from agent.ctl.client import AskError
from agent.errors import ControlError
from agent.guardian import status
from agent.guardian.attempt import LastCheck
from agent.guardian.control import ControlServer, Request
from agent.guardian.lifecycle import State
from agent.guardian.status import Facts
from agent.layout import Layout
from agent.loop import Loop
from agent.slots import record as records
from tests.support.standings import ENTRY, ERROR, NOW, RECORD, TRIAL, A, facts, on_trial, report
from tests.support.standings import status as state

OUTCOME = {
    "attempt": "1",
    "outcome": "reverted",
    "release": "r175",
    "from_release": "r173",
    "trigger": "schedule",
    "reason": "cpu_pinned",
    "sentence": "it burned a \x1b[31mcore",
    "ended": NOW,
}


class Guardian:
    """A guardian's sockets with a guardian that tells `told`, the last one again and again."""

    def __init__(self, layout: Layout) -> None:
        layout.runtime.mkdir(parents=True)
        self.told: list[Facts] = [facts()]
        self.asked: list[Request] = []
        self.refusal = ""
        self.loop = Loop()
        reading = {"status": self._status, "history": self._history, "version": self._version}
        acting = dict.fromkeys(("check", "update", "rollback", "verify"), self._begin)
        clear: dict[str, Callable[[Request], Any]] = {"quarantine-clear": self._clear}
        self.servers = [
            ControlServer(self.loop, layout.status_socket, reading, mode=0o666),
            ControlServer(self.loop, layout.control_socket, {**acting, **clear}, mode=0o600),
        ]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self.loop.turn(0.01)

    def _status(self, _request: Request) -> dict[str, Any]:
        told = self.told.pop(0) if len(self.told) > 1 else self.told[0]
        return status.document(told)

    def _history(self, request: Request) -> list[dict[str, Any]]:
        self.asked.append(request)
        return [OUTCOME]

    def _version(self, _request: Request) -> dict[str, str]:
        return {"version": "9.9"}

    def _begin(self, request: Request) -> dict[str, Any]:
        self.asked.append(request)
        if self.refusal:
            raise ControlError(self.refusal)
        return {"begun": True}

    def _clear(self, request: Request) -> dict[str, int]:
        self.asked.append(request)
        return {"cleared": 1}

    def stop(self) -> None:
        if not self._stopped.is_set():
            self._stopped.set()
            self._thread.join()
            for server in self.servers:
                server.close()
            self.loop.close()


class Machine:
    """A configured machine; `run` is agentctl on it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.config = folder / "config.toml"
        self.config.write_text(
            'state_dir = "state"\nsources = [{ url = "https://feed.example" }]\n'
        )
        found = places.locate(self.config)
        assert found is not None
        self.layout = found
        self.layout.state.mkdir()
        self._capsys = capsys
        self.out = ""
        self.err = ""

    def run(self, *arguments: str) -> int:
        try:
            code = main.main([*arguments, "--config", str(self.config)])
        finally:
            self.out, self.err = self._capsys.readouterr()
        return code

    def json(self, *arguments: str) -> tuple[int, Any]:
        code = self.run(*arguments, "--json")
        return code, json.loads(self.out)


@pytest.fixture
def machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Machine:
    monkeypatch.setattr(main, "WAIT_INTERVAL_S", 0.01)
    monkeypatch.setattr(main, "WATCH_INTERVAL_S", 0.01)
    return Machine(tmp_path, capsys)


@pytest.fixture
def guardian(machine: Machine) -> Iterator[Guardian]:
    made = Guardian(machine.layout)
    yield made
    made.stop()


HALTED = LastCheck(at=NOW, decision="rollout_halted", sentence="the vendor halted it")
CHECKING = facts(status=state(State.CHECKING))


@pytest.mark.parametrize(
    ("told", "code"),
    [
        (facts(), 0),
        (on_trial(), 0),
        (facts(last_check=HALTED), 1),
        (facts(seals={}), 2),
        (facts(record=records.BootRecord(), seals={}), 2),
    ],
)
def test_status_exits_as_monitoring_expects(
    machine: Machine, guardian: Guardian, told: Facts, code: int
) -> None:
    guardian.told = [told]
    assert machine.run("status") == code
    assert told.status.sentence in machine.out
    found, document = machine.json("status")
    assert (found, document["standing"]["code"]) == (code, code)


def test_status_without_a_guardian_is_a_risk_and_names_the_next_command(machine: Machine) -> None:
    records.store(machine.layout.boot_record, TRIAL)
    assert machine.run("status") == 2
    assert "AT RISK" in machine.out
    assert "systemctl start holdfast-agent" in machine.out
    assert "r173" in machine.out
    code, document = machine.json("status")
    assert (code, document["state"]["reason"], document["phase"]) == (2, "guardian_down", "trial")
    assert document["slots"]["b"]["tries_left"] == 1
    assert machine.run("explain") == 0
    assert "Nobody watches this machine" in machine.out
    assert "Next: start the guardian" in machine.out


def test_status_without_guardian_or_record_says_both(machine: Machine) -> None:
    machine.layout.boot_record.write_text("torn")
    code, document = machine.json("status")
    assert code == 2
    assert "not a boot record" in document["standing"]["sentence"]
    assert document["release"] is None


@pytest.mark.parametrize(
    "arguments", [("update",), ("check",), ("rollback",), ("verify",), ("history",)]
)
def test_commands_without_a_guardian_exit_3_and_name_the_next_command(
    machine: Machine, arguments: tuple[str, ...]
) -> None:
    assert machine.run(*arguments) == 3
    assert "start it with `systemctl start holdfast-agent`" in machine.err
    code, answer = machine.json(*arguments)
    assert code == 3
    assert "agentd --config" in answer["error"]


@pytest.mark.parametrize("command", ["status", "update", "explain", "config show", "history"])
def test_a_missing_configuration_exits_3_and_says_how_to_name_one(
    machine: Machine, command: str
) -> None:
    machine.config.unlink()
    assert machine.run(*command.split()) == 3
    assert f"{machine.config}: can't be read" in machine.err
    assert "HOLDFAST_CONFIG" in machine.err


@pytest.fixture
def hidden(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration is the machine's own, and not for this account's eyes."""

    def refuse(path: Path, **_: str) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(layout, "assumed", lambda path: machine.layout)


@pytest.mark.usefixtures("hidden")
@pytest.mark.parametrize(("command", "code"), [("status", 0), ("rollback", 0), ("history", 0)])
def test_who_may_not_read_the_configuration_finds_the_guardian_by_default(
    machine: Machine, guardian: Guardian, command: str, code: int
) -> None:
    assert machine.run(command) == code, machine.err


@pytest.mark.usefixtures("hidden")
@pytest.mark.parametrize("command", ["status", "rollback"])
def test_no_guardian_is_blamed_where_the_configuration_may_say_that_it_is_elsewhere(
    machine: Machine, command: str
) -> None:
    assert machine.run(command) == 3
    assert f"{machine.config}: can't be read (Permission denied)" in machine.err


def test_only_the_machines_own_configuration_is_assumed_to_move_nothing(tmp_path: Path) -> None:
    found = layout.assumed(layout.SYSTEM_CONFIG)
    assert found is not None
    assert found.control_socket == Path("/run/holdfast/control.sock")
    assert layout.assumed(tmp_path / "config.toml") is None


@pytest.mark.parametrize("text", ["state_dir = 3", "sources = [", "state_dir = '\x00'"])
def test_a_broken_configuration_is_what_status_tells_of(machine: Machine, text: str) -> None:
    machine.config.write_text(text)
    assert machine.run("status") == 3
    assert str(machine.config) in machine.err


@pytest.mark.parametrize(("command", "code"), [("status", 3), ("update", 1), ("history", 1)])
def test_a_socket_that_may_not_be_used_says_sudo(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, command: str, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("socket.socket.connect", refuse)
    assert machine.run(command) == code
    assert "sudo agentctl" in machine.err
    assert "admin_group" in machine.err


def test_status_is_shown_again_until_it_is_interrupted(
    machine: Machine, guardian: Guardian, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", nap)
    assert machine.run("status", "--watch") == 130
    assert machine.out.count("CURRENT") == 3
    naps.clear()
    assert machine.run("status", "--watch", "--json") == 130
    assert len([json.loads(line) for line in machine.out.splitlines()]) == 3


def test_colour_needs_a_terminal_that_wants_it(
    machine: Machine, guardian: Guardian, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.run("status")
    assert "\x1b" not in machine.out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    machine.run("status")
    assert machine.out.startswith("\x1b[1;32mCURRENT")
    monkeypatch.setenv("NO_COLOR", "1")
    machine.run("status")
    assert "\x1b" not in machine.out


def test_check_waits_for_its_answer(machine: Machine, guardian: Guardian) -> None:
    offered = LastCheck(
        at=NOW, decision="offered", sentence="r175 is offered", fetch_bytes=10, full_bytes=2000
    )
    guardian.told = [CHECKING, CHECKING, facts(last_check=offered)]
    assert machine.run("check") == 0
    assert machine.out.splitlines() == [
        "r175 is offered",
        "an update would fetch 10 bytes (in full: 2,000); agentctl update takes it",
    ]
    assert guardian.asked == [Request(do="check")]
    guardian.told = [facts()]
    code, answer = machine.json("check")
    assert (code, answer["last"]["sentence"]) == (0, "it is current")


def test_a_check_that_fails_exits_1(machine: Machine, guardian: Guardian) -> None:
    guardian.told = [facts(last_error=ERROR, status=state(State.FAILED))]
    assert machine.run("check") == 1
    assert machine.err == "agentctl: nobody answers\n"
    assert machine.json("check")[0] == 1


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (State.COMMITTED, 0),
        (State.IDLE, 0),
        (State.REVERTED, 1),
        (State.FAILED, 1),
    ],
)
def test_update_follows_the_attempt_to_its_end(
    machine: Machine, guardian: Guardian, end: State, code: int
) -> None:
    busy = [facts(status=state(name)) for name in State if str(name) in main.IN_PROGRESS]
    guardian.told = [*busy, facts(status=state(end, sentence="this is the end"))]
    assert machine.run("update") == code
    assert machine.out == f"{end}: this is the end\n"
    assert machine.json("update")[1]["state"]["name"] == end


def test_update_may_return_at_once(machine: Machine, guardian: Guardian) -> None:
    guardian.told = [CHECKING]
    assert machine.run("update", "--no-wait") == 0
    assert machine.json("update", "--no-wait") == (0, {"begun": True})


def test_progress_is_shown_on_a_terminal_and_wiped(
    machine: Machine, guardian: Guardian, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    guardian.told = [CHECKING, facts(status=state(State.COMMITTED))]
    assert machine.run("update") == 0
    assert "checking [current]" in machine.err
    assert machine.err.endswith("\r\x1b[K")


@pytest.mark.parametrize("command", ["check", "update", "rollback", "verify"])
def test_a_guardian_that_goes_away_meanwhile_is_no_success(
    machine: Machine, guardian: Guardian, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    guardian.told = [facts(status=state(State.REVERTING), verifying=True), on_trial()]
    if command == "check":
        guardian.told = [CHECKING]
    monkeypatch.setattr("time.sleep", lambda _seconds: guardian.stop())
    assert machine.run(command) == 3
    assert "the guardian doesn't answer" in machine.err
    assert machine.out == ""


@pytest.mark.parametrize("command", ["check", "update", "rollback", "verify"])
def test_a_refusal_exits_1_with_its_sentence(
    machine: Machine, guardian: Guardian, command: str
) -> None:
    guardian.refusal = "an attempt is in progress"
    assert machine.run(command) == 1
    assert machine.err == "agentctl: an attempt is in progress\n"
    assert machine.json(command) == (1, {"error": "an attempt is in progress"})


def test_rollback_says_what_runs_then(machine: Machine, guardian: Guardian) -> None:
    guardian.told = [facts(status=state(State.REVERTING)), facts(status=state(State.REVERTED))]
    assert machine.run("rollback") == 0
    assert machine.out.startswith("back on r173; agentctl quarantine list")
    assert machine.json("rollback")[1]["state"]["name"] == "reverted"


def test_history_asks_for_as_many_as_wanted(machine: Machine, guardian: Guardian) -> None:
    assert machine.run("history", "-n", "7") == 0
    assert "it burned a \N{REPLACEMENT CHARACTER}[31mcore" in machine.out
    assert guardian.asked == [Request(do="history", count=7)]
    assert machine.json("history") == (0, [OUTCOME])


@pytest.mark.parametrize("count", ["0", "-3", "501", "many"])
def test_a_count_that_cannot_be_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], count: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main.main(["history", f"--count={count}"])
    assert "expected a number from 1 to 500" in capsys.readouterr().err


def test_explain_tells_the_last_attempt_and_the_standing(
    machine: Machine, guardian: Guardian
) -> None:
    assert machine.run("explain") == 0
    assert "went back to r173" in machine.out
    code, answer = machine.json("explain")
    assert (code, answer["standing"]["code"]) == (0, 0)
    assert "went back to r173" in "\n".join(answer["sentences"])


def test_verify_waits_and_tells_what_it_found(machine: Machine, guardian: Guardian) -> None:
    guardian.told = [facts(verifying=True), facts()]
    assert machine.run("verify") == 0
    assert machine.out == "every installed file is as it was sealed\n"
    guardian.told = [facts(reports={"b": report("b", "x is missing", repaired=("y",))})]
    assert machine.run("verify") == 1
    assert machine.out.startswith("repaired y\nslot b: x is missing\nagentctl explain")
    assert machine.json("verify") == (
        1,
        {"problems": ["slot b: x is missing"], "repaired": ["y"]},
    )


def test_the_quarantine_is_listed_and_cleared(machine: Machine, guardian: Guardian) -> None:
    assert machine.run("quarantine", "list") == 0
    assert machine.out == "nothing is quarantined\n"
    guardian.told = [facts(quarantine=(ENTRY,))]
    assert machine.run("quarantine", "list") == 0
    assert "abc123  virus-pattern of r175" in machine.out
    assert "[cpu_pinned] it burned a core" in machine.out
    assert machine.json("quarantine", "list")[1][0]["id"] == "abc123"
    for what, shown in (("abc", 1), ("r175", 1), ("bc", 0), ("r17", 0), ("", 0)):
        assert len(machine.json("quarantine", "list", what)[1]) == shown
    assert machine.run("quarantine", "list", "r177") == 0
    assert machine.out == "no entry has that id or release\n"
    assert machine.run("quarantine", "clear", "abc") == 0
    assert machine.out.startswith("1 entry cleared")
    assert guardian.asked == [Request(do="quarantine-clear", what="abc")]
    assert machine.json("quarantine", "clear") == (0, {"cleared": 1})


def test_the_configuration_is_shown_and_checked(machine: Machine) -> None:
    assert machine.run("config", "validate") == 0
    assert machine.out == f"{machine.config}: valid\n"
    assert machine.json("config", "validate")[1]["valid"] is True
    assert machine.run("config", "show") == 0
    assert f'state_dir = "{machine.layout.state}"' in machine.out
    assert 'sources[0].url = "https://feed.example' in machine.out
    assert "check.at_start = true" in machine.out
    assert machine.json("config", "show")[1]["runtime_dir"] == str(machine.layout.runtime)
    machine.config.write_text("chek = {}\n")
    assert machine.run("config", "validate") == 3
    assert "chek" in machine.err


def test_options_may_stand_before_the_command(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["--json", "--config", str(machine.config), "config", "validate"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(machine.config)


def test_version_needs_no_configuration(machine: Machine) -> None:
    machine.config.unlink()
    assert machine.run("version") == 0
    assert machine.out == f"agentctl {__version__}, guardian not running\n"


def test_version_is_known_with_and_without_a_guardian(machine: Machine) -> None:
    assert machine.run("version") == 0
    assert machine.out == f"agentctl {__version__}, guardian not running\n"
    guardian = Guardian(machine.layout)
    try:
        found = machine.json("version")
    finally:
        guardian.stop()
    assert found == (0, {"agentctl": __version__, "guardian": "9.9"})


@pytest.mark.parametrize(
    "arguments", [[], ["no-such"], ["quarantine", "eat"], ["history", "-n", "x"]]
)
def test_wrong_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main.main(arguments)
    assert stopped.value.code == 2
    assert "usage: agentctl" in capsys.readouterr().err


def test_a_reader_that_went_away_is_no_error(
    machine: Machine, guardian: Guardian, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_given: object) -> int:
        raise BrokenPipeError

    replaced: list[int] = []
    monkeypatch.setitem(main._COMMANDS, "status", gone)
    monkeypatch.setattr(os, "dup2", lambda source, _target: replaced.append(source))
    monkeypatch.setattr("sys.stdout.fileno", lambda: 1)
    assert machine.run("status") == 0
    os.close(replaced[0])


# The client.


def answering(folder: Path, line: bytes) -> tuple[Path, threading.Thread]:
    """A socket that answers one request with `line`, whatever it is."""
    import socket

    path = folder / "s.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, listener:
            connection.recv(1000)
            try:
                connection.sendall(line)
            except OSError:
                return

    thread = threading.Thread(target=serve)
    thread.start()
    return path, thread


@pytest.mark.parametrize(
    ("line", "said", "reachable"),
    [
        (b"", "closed without an answer", False),
        (b"garbage\n", "doesn't parse", True),
        (b"\xff\n", "doesn't parse", True),
        (b"[]\n", "isn't one", True),
        (b"3\n", "isn't one", True),
        (b"{}\n", "isn't one", True),
        (b'{"ok":false}\n', "refused", True),
        (b'{"ok":false,"error":"no"}\n', "no", True),
        (b"x" * (client.ANSWER_BYTES_MAX + 10), "too long", False),
    ],
)
def test_what_isnt_an_answer_is_an_error_with_a_sentence(
    tmp_path: Path, line: bytes, said: str, reachable: bool
) -> None:
    path, thread = answering(tmp_path, line)
    with pytest.raises(AskError, match=said) as raised:
        client.ask(path, {"do": "status"})
    thread.join()
    assert raised.value.reachable is reachable


def test_a_mute_guardian_is_given_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(client, "TIMEOUT_S", 0.1)
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(AskError, match="timed out"):
            client.ask(path, {"do": "status"})


def test_a_path_too_long_is_an_error_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(AskError, match="path too long"):
        client.ask(tmp_path / ("x" * 200), {"do": "status"})


def test_without_a_guardian_the_record_says_what_runs(machine: Machine) -> None:
    records.store(machine.layout.boot_record, RECORD)
    document = client.without_guardian(machine.layout, "nobody answers")
    assert (document["release"], document["active_slot"]) == ("r173", "b")
    assert document["slots"]["a"]["release"] == A.release
    assert document["slots"]["b"]["tries_left"] is None

"""Child processes: bounded, killed with what they started, and ended exactly once."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent import children
from agent.children import Child, small_environment
from agent.loop import Loop
from tests.support.turns import until

ENVIRONMENT = small_environment(os.environ)


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


class Heard:
    """A child that runs a shell command or Python, and what came of it."""

    def __init__(self, loop: Loop, code: str, *, python: bool = False, **options: Any) -> None:
        self.loop = loop
        self.lines: list[bytes] = []
        self.ends: list[int] = []
        command = [sys.executable, "-S", "-E", "-c", code] if python else ["sh", "-c", code]
        self.child = Child(
            loop,
            command,
            name="child",
            on_line=self.lines.append,
            on_end=self.ends.append,
            environment=ENVIRONMENT,
            **options,
        )

    def wait(self, seconds: float = 20.0) -> int:
        until(self.loop, lambda: self.ends, seconds=seconds)
        self.loop.turn(0.1)
        (status,) = self.ends
        return status


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_gone(pid: int, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not is_gone(pid):
        assert time.monotonic() < end, f"process {pid} still runs"
        time.sleep(0.02)


def test_lines_and_the_exit_status_arrive(loop: Loop) -> None:
    heard = Heard(loop, "printf 'one\\ntwo\\n'; exit 3")
    assert heard.wait() == 3
    assert heard.lines == [b"one", b"two"]


def test_a_child_reads_its_first_input_and_what_is_sent_later(loop: Loop) -> None:
    heard = Heard(loop, "read a; echo got $a; read b; echo got $b", first_input=b"first\n")
    until(loop, lambda: heard.lines)
    heard.child.send(b"second\n")
    assert heard.wait() == 0
    assert heard.lines == [b"got first", b"got second"]


def test_input_larger_than_the_pipe_is_delivered_whole(loop: Loop) -> None:
    heard = Heard(loop, "wc -c", first_input=b"x" * 900_000, close_input=True)
    heard.wait()
    assert heard.lines[0].strip() == b"900000"


def test_a_child_that_doesnt_read_its_input_ends_all_the_same(loop: Loop) -> None:
    heard = Heard(loop, "exec <&-; exit 4", first_input=b"x" * 900_000, close_input=True)
    assert heard.wait() == 4
    heard.child.send(b"too late\n")
    assert heard.ends == [4]


def test_a_child_that_is_told_more_than_it_ever_reads_is_killed(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "UNREAD_BYTES_MAX", 1 << 20)
    heard = Heard(loop, "sleep 600")
    for _ in range(40):
        heard.child.send(b"x" * (64 << 10))
        assert len(heard.child._outbox) <= 1 << 20
    assert heard.wait() == -9


def test_a_child_sees_the_end_of_its_input(loop: Loop) -> None:
    assert Heard(loop, "cat", first_input=b"line\n", close_input=True).wait() == 0


def test_errors_are_merged_when_asked_for(loop: Loop) -> None:
    heard = Heard(loop, "echo oops >&2", merge_errors=True)
    heard.wait()
    assert heard.lines == [b"oops"]


def test_a_command_that_isnt_there_cant_be_started(loop: Loop) -> None:
    with pytest.raises(OSError, match="no-such-command"):
        Child(
            loop,
            ["no-such-command"],
            name="child",
            on_line=lambda _line: None,
            on_end=lambda _status: None,
            environment=ENVIRONMENT,
        )


def test_a_child_that_floods_one_line_is_killed(loop: Loop) -> None:
    heard = Heard(loop, "import os\nwhile True: os.write(1, b'x' * 65536)", python=True)
    assert heard.wait() == -9


def test_raw_output_has_no_longest_line_and_loses_no_last_one(loop: Loop) -> None:
    heard = Heard(loop, "head -c 3000000 /dev/zero; printf end", whole_lines=False)
    assert heard.wait() == 0
    data = b"".join(heard.lines)
    assert len(data) == 3_000_003
    assert data.endswith(b"end")


def test_a_child_that_outlives_its_time_is_killed_with_what_it_started(
    loop: Loop, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    heard = Heard(loop, f"sleep 60 & echo $! > {pid}; wait", timeout_s=0.7)
    assert heard.wait() == -9
    assert heard.child.timed_out
    wait_gone(int(pid.read_text()))


def test_a_grandchild_in_another_session_doesnt_keep_a_killed_child_waiting(loop: Loop) -> None:
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        "print(child.pid, flush=True)\ntime.sleep(60)"
    )
    heard = Heard(loop, code, python=True, timeout_s=2.0)
    assert heard.wait() == -9
    os.kill(int(heard.lines[0]), 9)


def test_a_process_left_behind_with_the_output_doesnt_delay_the_end(loop: Loop) -> None:
    began = time.monotonic()
    heard = Heard(loop, "sleep 60 & echo $!; exit 5", timeout_s=50)
    assert heard.wait() == 5
    assert time.monotonic() - began < 20
    assert not heard.child.timed_out
    wait_gone(int(heard.lines[0]))  # and is ended with it


def test_a_daemon_is_spared_when_that_was_asked_for(loop: Loop) -> None:
    heard = Heard(loop, "sleep 60 & echo $!; exit 0", leaves_daemons=True, timeout_s=50)
    assert heard.wait() == 0
    daemon = int(heard.lines[0])
    assert not is_gone(daemon)
    os.kill(daemon, 9)


def test_the_end_is_noticed_where_the_system_has_no_descriptor_for_it(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    assert Heard(loop, "echo line; exit 6").wait() == 6
    monkeypatch.delattr(os, "pidfd_open")
    monkeypatch.delattr(os, "waitid")
    assert Heard(loop, "echo line; exit 7").wait() == 7


def test_a_child_that_closes_its_output_and_lives_on_is_killed(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "REAP_TRIES", 4)
    assert Heard(loop, "exec >&-; sleep 60").wait() == -9


def test_kill_ends_a_child_and_its_children_once(loop: Loop) -> None:
    heard = Heard(loop, "sleep 60 & echo $!; wait")
    until(loop, lambda: heard.lines)
    heard.child.kill()
    heard.child.kill()
    assert heard.wait() == -9
    wait_gone(int(heard.lines[0]))
    heard.child.kill()  # its id may be somebody else's now: nothing is signalled
    assert heard.ends == [-9]


def test_a_process_id_that_was_given_back_is_never_signalled(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard(loop, "exit 0")
    heard.wait()
    signalled: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda pid, _number: signalled.append(pid))
    monkeypatch.setattr(os, "kill", lambda pid, _number: signalled.append(pid))
    heard.child.kill()
    heard.child.terminate()
    assert signalled == []


def test_terminate_asks_first(loop: Loop) -> None:
    heard = Heard(loop, "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done")
    until(loop, lambda: heard.lines)
    heard.child.terminate()
    assert heard.wait() == 9


def test_wait_kills_a_child_that_doesnt_end(loop: Loop) -> None:
    heard = Heard(loop, "trap '' TERM; echo up; while :; do sleep 0.05; done")
    until(loop, lambda: heard.lines)
    heard.child.terminate()
    heard.child.wait(0.1)
    assert is_gone(heard.child.pid)


def test_a_child_in_its_parents_session_stays_in_its_group(loop: Loop) -> None:
    heard = Heard(loop, "ps -o pgid= -p $$; sleep 60", own_session=False)
    until(loop, lambda: heard.lines)
    assert int(heard.lines[0]) == os.getpgrp()
    heard.child.kill()
    assert heard.wait() == -9


def test_children_get_a_small_environment(loop: Loop) -> None:
    found = small_environment(
        {"PATH": "/bin", "SECRET": "s", "LD_PRELOAD": "x.so", "https_proxy": "p"}, MORE="m"
    )
    assert found == {"PATH": "/bin", "https_proxy": "p", "MORE": "m"}
    assert "PATH" in small_environment({})


def test_a_child_has_no_descriptors_but_its_own(loop: Loop, tmp_path: Path) -> None:
    with (tmp_path / "open").open("w"):
        heard = Heard(loop, "ls /proc/self/fd | wc -l")
        heard.wait()
    assert int(heard.lines[0]) <= 4  # in, out, errors, and the folder that ls reads

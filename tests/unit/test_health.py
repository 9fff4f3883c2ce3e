"""What is seen of real processes, and of a machine in a table."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from agent.config import Probe, Watch
from agent.guardian import finders, machine
from agent.guardian.cgroups import Hierarchy
from agent.guardian.commands import Commands
from agent.guardian.health import Prober
from agent.guardian.processes import Processes, PsutilProcesses, Stat
from agent.guardian.procfs import LinuxProcesses
from agent.guardian.samples import Root, TopProcess
from agent.guardian.table import Table, Tree, busiest, spent_s
from tests.support.engines import (
    SLEEP,
    SPIN,
    look,
    look_over,
    look_until,
    pid_file,
    process,
    python,
    said,
)

READERS = [pytest.param(LinuxProcesses, id="proc"), pytest.param(PsutilProcesses, id="psutil")]
SPAWN_SPINNER = (
    "import subprocess,sys,time\n"
    "p = subprocess.Popen([sys.executable, '-S', '-c', 'while True: pass'])\n"
    "print(p.pid, flush=True); time.sleep(60)"
)
SHORT_LIVED = (
    "import subprocess,sys\n"
    "code = 'import time\\nt = time.process_time\\nend = t() + 0.2\\nwhile t() < end: pass'\n"
    "while True: subprocess.run([sys.executable, '-S', '-c', code])"
)
DETACHING = (
    "import os,subprocess,sys,time\n"
    "middle = 'import os,subprocess,sys,time\\n'"
    '\'p = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"], '
    "start_new_session=True)\\nprint(p.pid, flush=True)\\nsys.stdin.readline()'\n"
    "p = subprocess.Popen([sys.executable, '-S', '-c', middle], stdin=subprocess.PIPE)\n"
    "time.sleep(float(sys.argv[1])); p.communicate(b'\\n'); print('detached', flush=True)\n"
    "time.sleep(60)"
)


@contextmanager
def watching(
    *watches: Watch,
    own_pids: tuple[int, ...] = (),
    processes: Processes | None = None,
) -> Iterator[Prober]:
    """A prober; the engines are this process's children, so it isn't Holdfast's own."""
    prober = Prober(watches, own_pids, processes=processes)
    prober.start()
    try:
        yield prober
    finally:
        prober.close()


def by_pid_file(folder: Path, pid: int | str, probe: Probe | None = None) -> Watch:
    return Watch(name="engine", pid_file=pid_file(folder, pid), probe=probe)


@pytest.mark.parametrize("reader", READERS)
def test_a_busy_loop_is_seen_as_a_busy_core(reader: type[Processes], tmp_path: Path) -> None:
    with (
        python(SPIN) as engine,
        watching(by_pid_file(tmp_path, engine.pid), processes=reader()) as prober,
    ):
        before = psutil.Process(engine.pid).cpu_times()
        look(prober)
        began = time.monotonic()
        time.sleep(1.0)
        seen = process(look(prober))
        elapsed, after = time.monotonic() - began, psutil.Process(engine.pid).cpu_times()
    used = after.user + after.system - before.user - before.system
    assert seen.cpu_share == pytest.approx(used / elapsed, abs=0.15)
    assert seen.cpu_share > 0.1
    assert seen.root is not None
    assert seen.root.pid == engine.pid
    assert seen.rss_bytes > 1 << 20
    assert seen.threads == 1


@pytest.mark.parametrize("reader", READERS)
def test_a_sleeping_engine_uses_nothing(reader: type[Processes], tmp_path: Path) -> None:
    with (
        python(SLEEP + " # " + "x" * 10) as engine,
        watching(by_pid_file(tmp_path, engine.pid), processes=reader()) as prober,
    ):
        look_until(prober, lambda seen: seen.elapsed_s > 0 and process(seen).cpu_share == 0)


def test_children_count_with_their_parent(tmp_path: Path) -> None:
    with python(SPAWN_SPINNER) as engine:
        child = int(said(engine))
        with watching(by_pid_file(tmp_path, engine.pid)) as prober:
            seen = process(look_over(prober, 0.5))
    assert child in seen.pids
    assert seen.cpu_share > 0.1


def test_a_child_born_between_two_looks_is_found(tmp_path: Path) -> None:
    code = "import time; time.sleep(0.5)\n" + SPAWN_SPINNER
    with python(code) as engine, watching(by_pid_file(tmp_path, engine.pid)) as prober:
        assert process(look(prober)).pids == (engine.pid,)
        look_until(prober, lambda seen: len(process(seen).pids) == 2)


def test_children_that_come_and_go_between_looks_are_counted(tmp_path: Path) -> None:
    with python(SHORT_LIVED) as engine, watching(by_pid_file(tmp_path, engine.pid)) as prober:
        started = _used_by(engine.pid)
        look(prober)
        total = 0.0
        for _ in range(8):
            time.sleep(0.4)
            seen = look(prober)
            total += process(seen).cpu_share * seen.elapsed_s
        used = _used_by(engine.pid) - started
    assert total == pytest.approx(used, abs=0.6)


def _used_by(pid: int) -> float:
    return sum(psutil.Process(pid).cpu_times()[:4])


THREADS = 400
MANY_THREADS = f"""
import os, sys, threading, time
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
for _ in range({THREADS}):
    threading.Thread(target=time.sleep, args=(60,)).start()
print("all", flush=True)
time.sleep(60)
"""


def test_threads_that_came_since_the_last_scan_count_among_all(tmp_path: Path) -> None:
    go = tmp_path / "go"
    with (
        python(MANY_THREADS, str(go)) as engine,
        watching(by_pid_file(tmp_path, engine.pid)) as prober,
    ):
        assert process(look(prober)).threads == 1
        go.touch()
        assert said(engine) == "all"
        seen = prober.census(time.monotonic())
        (found,) = seen.watches
        assert found.lives == (prober.life_of(engine.pid),)
        assert THREADS < found.threads < seen.threads


def test_a_process_that_detached_itself_stays_counted(tmp_path: Path) -> None:
    with python(DETACHING, "1") as engine:
        lost = int(said(engine))
        try:
            with watching(by_pid_file(tmp_path, engine.pid)) as prober:
                look_until(prober, lambda seen: lost in process(seen).pids)
                assert said(engine) == "detached"
                assert psutil.Process(lost).ppid() != engine.pid
                assert lost in process(look_over(prober, 0.2)).pids
        finally:
            psutil.Process(lost).kill()


def test_an_engine_that_ends_is_seen_as_gone_and_its_successor_as_another(tmp_path: Path) -> None:
    with python(SLEEP) as first, watching(by_pid_file(tmp_path, first.pid)) as prober:
        root = process(look(prober)).root
        first.kill()
        gone = process(look_until(prober, lambda seen: not process(seen).alive))
        assert "doesn't run" in gone.problem
        with python(SLEEP) as second:
            pid_file(tmp_path, second.pid)
            seen = look_until(prober, lambda seen: process(seen).alive)
            assert process(seen).root not in (None, root)


def test_a_pid_file_that_is_lost_does_not_lose_its_engine(tmp_path: Path) -> None:
    with python(SLEEP) as engine, watching(by_pid_file(tmp_path, engine.pid)) as prober:
        root = process(look(prober)).root
        for spoil in (
            lambda path: path.write_text(""),
            lambda path: path.write_text("garbage"),
            lambda path: path.unlink(),
        ):
            spoil(tmp_path / "engine.pid")
            assert process(look(prober)).root == root


def test_a_pid_that_became_another_process_names_nobody(tmp_path: Path) -> None:
    table = FakeTable({7: _stat(7, started=1.0)})
    found = finders.ByPidFile(Path(pid_file(tmp_path, 7)))
    assert found.find(table, 0).main == _stat(7, started=1.0)
    table.stats[7] = _stat(7, started=9.0)
    assert found.find(table, 1).main is None
    assert "another process by now" in found.find(table, 2).problem
    (tmp_path / "engine.pid").write_text("7\n\n")
    assert found.find(table, 3).main == _stat(7, started=9.0)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"garbage", "holds b'garbage', expected a process id"),
        (b"", "holds b'', expected a process id"),
        (b"-5", "expected a process id"),
        (b"1", "expected a process id"),
        (b"99999999999999", "expected a process id"),
        ("١٢".encode(), "expected a process id"),
        (b"7" * 100_000, "more than 64 bytes"),
    ],
)
def test_a_pid_file_that_holds_no_pid_is_refused(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    path = tmp_path / "engine.pid"
    path.write_bytes(content)
    assert finders.read_pid(path)[0] is None
    assert problem in finders.read_pid(path)[1]
    with watching(Watch(name="engine", pid_file=str(path))) as prober:
        assert problem in process(look(prober)).problem


def test_a_pid_file_that_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    folder, pipe, missing = tmp_path / "folder", tmp_path / "pipe", tmp_path / "missing"
    folder.mkdir()
    os.mkfifo(pipe)
    assert "not a regular file" in finders.read_pid(folder)[1]
    assert "not a regular file" in finders.read_pid(pipe)[1]
    assert "No such file" in finders.read_pid(missing)[1]


def test_an_engine_is_found_by_its_name_also_where_the_kernel_cuts_it(tmp_path: Path) -> None:
    name = "a-very-long-engine-name"
    program = tmp_path / name
    program.symlink_to("/bin/sleep")
    with (
        _command(str(program), "60") as pid,
        watching(Watch(name="engine", process=name)) as prober,
    ):
        seen = look_until(prober, lambda seen: process(seen).alive)
        assert process(seen).pids == (pid,)


def test_an_engine_is_found_by_its_executable(tmp_path: Path) -> None:
    program = tmp_path / "engine"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    with (
        _command(str(program), "60") as pid,
        watching(Watch(name="engine", executable=str(program))) as prober,
    ):
        seen = look_until(prober, lambda seen: process(seen).alive)
        assert process(seen).pids == (pid,)
        program.unlink()
        assert process(look(prober)).alive


def test_an_engine_by_name_that_restarts_is_another_life(tmp_path: Path) -> None:
    program = tmp_path / "engine-x"
    program.symlink_to("/bin/sleep")
    with watching(Watch(name="engine", process="engine-x")) as prober:
        assert process(look(prober)).problem == "no engine-x runs"
        with _command(str(program), "60"):
            first = process(look_until(prober, lambda seen: process(seen).alive)).root
        look_until(prober, lambda seen: not process(seen).alive)
        with _command(str(program), "60"):
            second = process(look_until(prober, lambda seen: process(seen).alive)).root
    assert first != second


def test_the_guardian_and_its_own_children_are_nobodys_engine() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as child:
        found = finders.ByMatch(
            name=None, executable=os.path.realpath(sys.executable), own_pids=(os.getpid(),)
        )
        table = Table(LinuxProcesses())
        table.look(0.0)
        seen = found.find(table, 0.0)
        assert child.pid not in seen.others
        assert os.getpid() not in seen.others
        child.communicate(b"\n")


@pytest.mark.parametrize("by", ["pid_file", "process"])
def test_an_engine_that_ended_and_was_not_waited_for_is_gone(tmp_path: Path, by: str) -> None:
    program = tmp_path / "engine-z"
    program.symlink_to("/bin/sleep")
    with _command(str(program), "60") as pid:
        value = {"pid_file": pid_file(tmp_path, pid), "process": "engine-z"}[by]
        with watching(Watch(name="engine", **{by: value})) as prober:
            look_until(prober, lambda seen: process(seen).alive)
            os.kill(pid, 9)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            assert not process(look(prober)).alive


@contextmanager
def _command(*arguments: str) -> Iterator[int]:
    pid = os.posix_spawn(arguments[0], arguments, {})
    try:
        yield pid
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_waiting_for_a_cpu_is_demand(tmp_path: Path) -> None:
    spinners = (os.cpu_count() or 1) + 1
    code = (
        "import subprocess,sys,time\n"
        f"for _ in range({spinners}):\n"
        " subprocess.Popen([sys.executable, '-S', '-c', 'while True: pass'])\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    with python(code) as engine:
        assert said(engine) == "ready"
        with watching(by_pid_file(tmp_path, engine.pid)) as prober:
            seen = look_until(
                prober,
                lambda seen: process(seen).cpu_demand > process(seen).cpu_share + 0.3,
            )
    assert seen.machine.busy_share >= 0.9


def test_other_programs_load_is_foreign_and_an_engines_is_not(tmp_path: Path) -> None:
    with python(SPIN) as hog, python(SPIN) as engine:
        watch = by_pid_file(tmp_path, engine.pid)
        with watching(watch, own_pids=()) as prober:
            seen = look_over(prober, 1.0)
        with watching(watch, own_pids=(hog.pid,)) as prober:
            excused = look_over(prober, 1.0)
    cores = seen.machine.cpu_count
    assert seen.machine.foreign_share >= 0.1
    assert seen.machine.foreign_share <= seen.machine.busy_share
    assert process(seen).pids == (engine.pid,)
    known = (process(excused).cpu_share + 0.1) / cores
    assert excused.machine.foreign_share <= excused.machine.busy_share - known + 0.1


@pytest.mark.alone
def test_the_busiest_programs_are_named_and_told_apart(tmp_path: Path) -> None:
    with python(SPIN) as hog, python(SPIN) as engine:
        prober = Prober([by_pid_file(tmp_path, engine.pid)], own_pids=())
        at = time.monotonic()
        prober.sample(at)
        top: dict[int, TopProcess] = {}
        for turn in range(1, 20):  # a machine with many others may name them first
            time.sleep(0.5)
            top = {item.pid: item for item in prober.sample(at + 6 * turn).machine.top}
            if {hog.pid, engine.pid} <= top.keys():
                break
        prober.close()
    assert top[hog.pid].foreign
    assert not top[engine.pid].foreign


def test_a_unit_is_unobservable_where_there_is_no_systemd(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with watching(Watch(name="engine", unit="clamd.service")) as prober:
        seen = process(look(prober))
    assert not seen.alive
    assert not seen.required
    assert "no systemd" in seen.problem


def _systemctl(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = folder / "bin" / "systemctl"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")


def test_a_unit_is_its_main_process_and_its_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = tmp_path / "cgroup" / "system.slice" / "engine.service"
    (group / "worker").mkdir(parents=True)
    with python(SLEEP) as main, python(SLEEP) as worker:
        (group / "cgroup.procs").write_text(f"{main.pid}\n")
        (group / "worker" / "cgroup.procs").write_text(f"{worker.pid}\n")
        answer = f"MainPID={main.pid}\\nControlGroup=/system.slice/engine.service\\n"
        _systemctl(tmp_path, monkeypatch, f"printf '{answer}'")
        commands = Commands(dict(os.environ))
        found = finders.ByUnit("engine.service", commands, Hierarchy(tmp_path / "cgroup"))
        table = Table(LinuxProcesses())
        end = time.monotonic() + 10
        while (seen := found.find(table, time.monotonic())).main is None:
            table.look(time.monotonic())
            assert time.monotonic() < end
        assert seen.main.pid == main.pid
        assert set(seen.others) == {main.pid, worker.pid}
        found.close()


def test_a_systemctl_that_refuses_makes_the_unit_unobservable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _systemctl(tmp_path, monkeypatch, "echo not booted with systemd; exit 1")
    with watching(Watch(name="engine", unit="x.service")) as prober:
        seen = look_until(prober, lambda seen: "not booted" in process(seen).problem)
    assert not process(seen).required


def test_a_systemctl_that_hangs_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _systemctl(tmp_path, monkeypatch, "exec sleep 60")
    commands = Commands(dict(os.environ))
    found = finders.ByUnit("x.service", commands)
    table = Table(LinuxProcesses())
    found.find(table, 0.0)
    assert "doesn't answer" in found.find(table, 6.0).problem
    found.close()
    commands.close()
    assert commands.sweep() == 0


def test_a_unit_without_a_main_process_is_followed_by_its_oldest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = tmp_path / "cgroup" / "x.service"
    group.mkdir(parents=True)
    _systemctl(
        tmp_path, monkeypatch, "printf 'MainPID=0\nActiveState=active\nControlGroup=/x.service'"
    )
    with python(SLEEP) as oldest, python(SLEEP) as younger:
        (group / "cgroup.procs").write_text(f"{younger.pid}\n{oldest.pid}\n")
        seen = _found(finders.ByUnit("x", Commands(dict(os.environ)), Hierarchy(group.parent)))
        assert seen.main is not None
        assert seen.main.pid in {oldest.pid, younger.pid}


def test_a_unit_that_has_failed_says_with_which_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "MainPID=0\nActiveState=failed\nResult=oom-kill\nNRestarts=4"
    _systemctl(tmp_path, monkeypatch, f"printf '{said}'")
    with watching(Watch(name="engine", unit="x.service")) as prober:
        seen = look_until(prober, lambda seen: "oom-kill" in process(seen).problem)
    assert process(seen).restarts == 4
    assert not process(seen).alive


def test_the_kernels_account_of_a_unit_goes_before_the_sum_of_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most of an engine's work may be done by processes that no look ever sees."""
    group = tmp_path / "cgroup" / "x.service"
    group.mkdir(parents=True)
    _systemctl(
        tmp_path, monkeypatch, "printf 'MainPID=1\nActiveState=active\nControlGroup=/x.service'"
    )
    (group / "cgroup.procs").write_text("")
    (group / "memory.stat").write_text("anon 1000\nfile 999999\nshmem 24\n")
    (group / "cpu.stat").write_text("usage_usec 1000000\n")
    monkeypatch.setattr(finders, "Hierarchy", lambda: Hierarchy(tmp_path / "cgroup"))
    with watching(Watch(name="engine", unit="x.service")) as prober:
        first = look_until(prober, lambda seen: process(seen).rss_bytes == 1024)
        (group / "cpu.stat").write_text("usage_usec 4000000\n")
        seen = prober.sample(first.monotonic_s + 2)
    assert process(seen).cpu_share == pytest.approx(1.5)


def _found(unit: finders.ByUnit) -> finders.Found:
    table = Table(LinuxProcesses())
    end = time.monotonic() + 10
    while (seen := unit.find(table, time.monotonic())).main is None:
        table.look(time.monotonic())
        assert time.monotonic() < end
    unit.close()
    return seen


def test_an_idle_look_covers_all_that_was_used_since_the_last(tmp_path: Path) -> None:
    with python(SPIN) as engine:
        probe = Probe(tcp="127.0.0.1:1")
        prober = Prober([by_pid_file(tmp_path, engine.pid, probe)])
        prober.baseline_tick(time.monotonic())
        time.sleep(0.5)
        seen = prober.baseline_tick(time.monotonic())
        prober.close()
    assert seen.elapsed_s >= 0.5
    assert process(seen).cpu_share > 0.1
    assert seen.probes == ()


def test_an_idle_look_leaves_the_answers_to_the_next_sample(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        probe = Probe(tcp=f"127.0.0.1:{server.getsockname()[1]}")
        with watching(by_pid_file(tmp_path, os.getpid(), probe)) as prober:
            at = time.monotonic()
            while prober.poll(at) != pytest.approx(probe.interval_s):
                assert time.monotonic() < at + 10
            assert prober.baseline_tick(at + 1).probes == ()
            assert [item.ok for item in prober.sample(at + 1.5).probes] == [True]
            assert prober.baseline_tick(at + 1.6) is prober.last


def test_sleep_is_told_from_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    offset = 100.0
    monkeypatch.setattr(machine.SleepMeter, "_read", staticmethod(lambda: offset))
    meter = machine.SleepMeter()
    assert not meter.look()
    offset += 3600.0
    assert meter.look()
    assert not meter.look()


def test_a_stopped_prober_is_not_taken_for_a_suspended_machine(tmp_path: Path) -> None:
    with python(SLEEP) as engine, watching(by_pid_file(tmp_path, engine.pid)) as prober:
        seen = look_over(prober, 1.2)
    assert not seen.suspended
    assert seen.elapsed_s >= 1.2


def test_the_kernels_pressure_figure_is_read_where_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "cpu"
    path.write_text("some avg10=12.50 avg60=1.00 avg300=0.10 total=5\nfull avg10=0.00\n")
    assert machine.pressure_share(str(path)) == pytest.approx(0.125)
    path.write_text("nonsense")
    assert machine.pressure_share(str(path)) is None
    assert machine.pressure_share(str(tmp_path / "missing")) is None


def test_a_process_name_may_hold_brackets_and_spaces(tmp_path: Path) -> None:
    tail = "S 1 7 7 0 -1 0 0 0 0 0 100 50 20 10 20 0 3 0 4200 999 11 0"
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text(f"7 (a ) (b) {tail}\n")
    seen = LinuxProcesses(str(tmp_path)).stat(7)
    assert seen
    assert (seen.name, seen.parent, seen.threads) == ("a ) (b", 1, 3)
    assert (seen.own_s, seen.reaped_s, seen.started) == (1.5, 0.3, 42.0)


def test_a_torn_stat_file_is_a_process_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a) S 1")
    assert LinuxProcesses(str(tmp_path)).stat(7) is None
    assert LinuxProcesses(str(tmp_path)).stat(8) is None


@pytest.mark.parametrize("reader", READERS)
def test_a_process_that_is_gone_has_no_answers(reader: type[Processes]) -> None:
    gone = 2**22 - 1
    assert reader().stat(gone) is None
    assert reader().executable(gone) is None
    assert reader().full_name(gone) is None
    assert reader().waited_s(gone) is None


@pytest.mark.parametrize("reader", READERS)
def test_both_readers_tell_the_same_of_this_process(reader: type[Processes]) -> None:
    seen = reader().stat(os.getpid())
    assert seen
    assert seen.parent == os.getppid()
    assert seen.own_s == pytest.approx(sum(os.times()[:2]), abs=0.2)
    assert os.getpid() in reader().pids()
    assert reader().executable(os.getpid()) == os.path.realpath(sys.executable)
    assert 0 <= reader().clock() - seen.started < 3600


def _stat(pid: int, **changes: float) -> Stat:
    values = {"started": 0.0, "own_s": 0.0, "reaped_s": 0.0, **changes}
    return Stat(pid=pid, parent=1, name=f"p{pid}", rss_bytes=0, threads=1, **values)


class FakeTable(Table):
    """A table of given processes."""

    def __init__(self, stats: dict[int, Stat]) -> None:
        super().__init__(LinuxProcesses())
        self.stats = stats

    def stat(self, pid: int) -> Stat | None:
        return self.stats.get(pid)


def test_cpu_of_a_reaped_child_is_counted_once() -> None:
    before = {1: _stat(1, own_s=5.0), 2: _stat(2, own_s=3.0, reaped_s=1.0)}
    after = {1: _stat(1, own_s=5.5, reaped_s=4.2)}
    assert spent_s(before, after, since=0.0) == pytest.approx(0.7)


def test_a_child_that_was_not_waited_for_takes_nothing_back() -> None:
    before = {1: _stat(1, own_s=5.0), 2: _stat(2, own_s=3.0)}
    assert spent_s(before, {1: _stat(1, own_s=5.5)}, since=0.0) == pytest.approx(0.5)


def test_an_old_process_that_is_found_late_counts_from_now_on() -> None:
    found = {1: _stat(1, started=10.0, own_s=500.0)}
    assert spent_s({}, found, since=100.0) == 0.0
    assert spent_s({}, found, since=None) == 0.0
    assert spent_s({}, found, since=9.0) == 500.0


def test_a_reused_pid_does_not_inherit_the_figures() -> None:
    before = {1: _stat(1, started=1.0, own_s=500.0)}
    after = {1: _stat(1, started=50.0, own_s=0.5)}
    assert spent_s(before, after, since=49.0) == pytest.approx(0.5)


def test_the_busiest_come_first_and_idle_ones_not_at_all() -> None:
    before = {1: _stat(1, own_s=1.0), 2: _stat(2, own_s=1.0), 3: _stat(3, own_s=1.0)}
    after = {1: _stat(1, own_s=2.0), 2: _stat(2, own_s=4.0), 3: _stat(3, own_s=1.0)}
    assert [(item.pid, item.share) for item in busiest(before, after, 2.0)] == [(2, 1.5), (1, 0.5)]


def test_a_tree_leaves_out_what_another_one_counts() -> None:
    table = Table(LinuxProcesses())
    table.look(0.0)
    with python(SLEEP) as engine:
        table.look(1.0)
        whole = Tree().look(table, (os.getpid(),), count_waiting=False)
        rest = Tree().look(
            table, (os.getpid(),), count_waiting=False, without=frozenset({engine.pid})
        )
    assert set(whole.pids) - set(rest.pids) == {engine.pid}


def test_a_table_with_nobody_new_reads_only_who_is_asked_for() -> None:
    class Counting(LinuxProcesses):
        reads = 0

        def stat(self, pid: int) -> Stat | None:
            self.reads += 1
            return super().stat(pid)

        def pids(self) -> list[int]:
            return [os.getpid(), os.getppid()]

    processes = Counting()
    table = Table(processes)
    table.look(0.0)
    assert processes.reads == 2
    table.look(1.0)
    assert processes.reads == 2
    table.stat(os.getpid())
    table.stat(os.getpid())
    assert processes.reads == 3
    assert table.running(Root(os.getpid(), -1.0)) is None


def test_answers_of_probes_arrive_with_the_looks(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        watch = by_pid_file(tmp_path, os.getpid(), Probe(tcp=f"127.0.0.1:{port}"))
        with watching(watch) as prober:
            seen = look_until(prober, lambda seen: bool(seen.probes))
    assert (seen.probes[0].name, seen.probes[0].ok) == ("engine", True)
    assert process(seen).probed

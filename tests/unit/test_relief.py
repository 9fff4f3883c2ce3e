"""An engine that leaves the machine no process is ended, so that a revert can tell it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterable

import pytest

from agent import host
from agent.guardian import relief
from agent.guardian.health import Prober
from agent.guardian.samples import Census, Headcount, Root

OWN = 7


def lives(pids: Iterable[int]) -> tuple[Root, ...]:
    return tuple(Root(pid, born(pid)) for pid in pids)


def born(pid: int) -> float:
    return pid / 100


def census(threads: int, **pids: Iterable[int]) -> Census:
    """All processes of one thread."""
    found = {name: lives(each) for name, each in pids.items()}
    return Census(threads, tuple(Headcount(name, len(each), each) for name, each in found.items()))


def crowding(seen: Census) -> str:
    found = relief.crowd(seen, own=OWN)
    return found.name if found else ""


def test_the_engine_with_most_of_all_processes_is_the_one() -> None:
    assert crowding(census(150, updater=range(10, 20), scanner=range(100, 200))) == "scanner"


def test_one_process_with_most_of_all_threads_is_the_one_too() -> None:
    """The kernel's table is full of threads, whoever's they are."""
    updater, scanner = Headcount("updater", 10, lives(range(20, 30))), lives([10])
    assert crowding(Census(30_200, (updater, Headcount("scanner", 30_000, scanner)))) == "scanner"
    assert crowding(Census(30_200, (updater, Headcount("scanner", 15_000, scanner)))) == ""


def test_on_a_machine_that_others_fill_nobody_is() -> None:
    assert crowding(census(200, updater=range(10, 20), scanner=range(100, 200))) == ""
    assert crowding(census(0)) == ""


def test_what_the_guardian_itself_belongs_to_never_is() -> None:
    assert crowding(census(200, everything=range(1, 200))) == ""


class Machine:
    """Whose numbers are whose, and what was done to whom, in order."""

    def __init__(self) -> None:
        self.done: list[tuple[str, int]] = []
        self.successors: dict[int, Root] = {}
        self.gone: set[int] = set()
        self.untold: set[int] = set()

    def life_of(self, pid: int) -> Root | None:
        if pid in self.gone | self.untold:
            return None
        return self.successors.get(pid, Root(pid, born(pid)))

    def end_crowd(self, look: Callable[[], Census]) -> int:
        return relief.end_crowd(look, self.life_of, own=OWN)

    def pids(self, what: str) -> list[int]:
        return [pid for done, pid in self.done if done == what]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()

    class Handle:
        def __init__(self, pid: int) -> None:
            self.pid = pid
            if pid in made.gone:
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))

        def __enter__(self) -> Handle:
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing is held."""

        def stop(self) -> None:
            made.done.append(("stop", self.pid))

        def kill(self) -> None:
            made.done.append(("kill", self.pid))

    monkeypatch.setattr(host, "ProcessHandle", Handle)
    return made


def test_all_are_stopped_before_the_first_is_ended(machine: Machine) -> None:
    """Those that came while the others were stopped are found by another look."""
    looks = iter([range(10, 13), range(10, 14), range(10, 14)])
    assert machine.end_crowd(lambda: census(5, scanner=next(looks))) == 4
    assert [what for what, _ in machine.done] == ["stop"] * 4 + ["kill"] * 4
    assert set(machine.pids("kill")) == set(range(10, 14))


def test_one_that_makes_processes_faster_than_they_are_stopped_is_ended_all_the_same(
    machine: Machine,
) -> None:
    last = iter(range(20, 1000))
    ended = machine.end_crowd(lambda: census(15, scanner=range(10, next(last))))
    assert ended == 10 + relief.LOOKS - 1
    assert 10 in machine.pids("kill")


def test_a_process_that_was_gone_before_it_was_stopped_is_not_ended_later(
    machine: Machine,
) -> None:
    """Its number may be somebody else's by then."""

    def look() -> Census:
        machine.gone = {11} - machine.gone
        return census(4, scanner=range(10, 13))

    assert machine.end_crowd(look) == 2
    assert machine.pids("kill") == [10, 12]


def test_whoever_has_the_number_of_an_engines_process_by_now_is_left_alone(
    machine: Machine,
) -> None:
    looks = iter([range(10, 13), range(10, 13)])

    def look() -> Census:
        found = census(4, scanner=next(looks))
        if machine.done:
            machine.successors[10] = Root(10, born(10) + 1)
        machine.successors[11] = Root(11, born(11) + 1)
        return found

    assert machine.end_crowd(look) == 2
    assert (machine.pids("stop"), machine.pids("kill")) == ([10, 12], [12])


def test_whoever_was_stopped_is_ended_though_nobody_can_look_any_more(machine: Machine) -> None:
    """A machine without room for a process may have none to list them either."""
    looks = iter([range(10, 13)])

    def look() -> Census:
        pids = next(looks, None)
        if pids is None:
            machine.untold = {10, 11}
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), "/proc")
        return census(4, scanner=pids)

    assert machine.end_crowd(look) == 3
    assert machine.pids("kill") == [10, 11, 12]


def test_nobody_is_stopped_of_whom_nothing_is_known(machine: Machine) -> None:
    machine.untold = {10, 11}
    assert machine.end_crowd(lambda: census(2, scanner=range(10, 12))) == 0
    assert machine.done == []


def test_nothing_is_ended_where_nobody_crowds(machine: Machine) -> None:
    assert machine.end_crowd(lambda: census(100, scanner=range(10, 12))) == 0
    assert machine.done == []


def test_real_processes_are_ended_and_a_life_before_theirs_isnt_taken_for_them() -> None:
    prober = Prober(())
    with subprocess.Popen(["sleep", "60"]) as engine, subprocess.Popen(["sleep", "60"]) as other:
        ours, former = prober.life_of(engine.pid), prober.life_of(other.pid)
        assert ours
        assert former
        former = Root(other.pid, former.create_time - 1)
        seen = Census(2, (Headcount("scanner", 2, (ours, former)),))
        assert relief.end_crowd(lambda: seen, prober.life_of, own=OWN) == 1
        assert engine.wait(10) == -signal.SIGKILL
        assert other.poll() is None
        other.kill()
    prober.close()

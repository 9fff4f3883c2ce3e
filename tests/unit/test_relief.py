"""An engine that leaves the machine no process is ended, so that a revert can tell it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agent import host
from agent.guardian import relief
from agent.guardian.samples import MachineSample, ProcessSample, Sample

OWN = 7


def sample(threads_each: int = 1, /, **pids: range) -> Sample:
    return Sample(
        monotonic_s=0.0,
        elapsed_s=1.0,
        machine=MachineSample(cpu_count=2),
        processes=tuple(
            ProcessSample(name=name, pids=tuple(found), threads=threads_each * len(found))
            for name, found in pids.items()
        ),
    )


def test_the_engine_with_most_of_all_processes_is_the_one() -> None:
    seen = sample(updater=range(10, 20), scanner=range(100, 200))
    assert relief.crowd(seen, 150, own=OWN) == ("scanner", frozenset(range(100, 200)))


def test_one_process_with_most_of_all_threads_is_the_one_too() -> None:
    """The kernel's table is full of threads, whoever's they are."""
    assert relief.crowd(sample(30_000, scanner=range(10, 11)), 30_200, own=OWN) == (
        "scanner",
        frozenset({10}),
    )
    assert relief.crowd(sample(scanner=range(100, 200)), 400, own=OWN) == ("", frozenset())


def test_on_a_machine_that_others_fill_nobody_is() -> None:
    seen = sample(updater=range(10, 20), scanner=range(100, 200))
    assert relief.crowd(seen, 200, own=OWN) == ("", frozenset())
    assert relief.crowd(sample(), 0, own=OWN) == ("", frozenset())


def test_what_the_guardian_itself_belongs_to_never_is() -> None:
    assert relief.crowd(sample(everything=range(1, 200)), 200, own=OWN) == ("", frozenset())


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was done to which process, in order."""
    calls: list[tuple[str, int]] = []

    def noting(what: str) -> Callable[[int], None]:
        return lambda pid: calls.append((what, pid))

    monkeypatch.setattr(host, "stop_process", noting("stop"))
    monkeypatch.setattr(host, "kill_process", noting("kill"))
    return calls


def test_all_are_stopped_before_the_first_is_ended(done: list[tuple[str, int]]) -> None:
    """Those that came while the others were stopped are found by another look."""
    looks = iter([range(10, 13), range(10, 14), range(10, 14)])
    assert relief.end_crowd(lambda: (sample(scanner=next(looks)), 5), own=OWN) == 4
    assert [what for what, _ in done] == ["stop"] * 4 + ["kill"] * 4
    assert {pid for what, pid in done if what == "kill"} == set(range(10, 14))


def test_one_that_makes_processes_faster_than_they_are_stopped_is_ended_all_the_same(
    done: list[tuple[str, int]],
) -> None:
    last = iter(range(20, 1000))
    ended = relief.end_crowd(lambda: (sample(scanner=range(10, next(last))), 15), own=OWN)
    assert ended == 10 + relief.LOOKS - 1
    assert ("kill", 10) in done


def test_a_process_that_is_gone_meanwhile_is_no_hindrance(
    done: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(pid: int) -> None:
        if pid == 11:
            raise ProcessLookupError(3, "No such process")
        done.append(("kill", pid))

    monkeypatch.setattr(host, "kill_process", gone)
    looks = iter([range(10, 13), range(10, 13)])
    relief.end_crowd(lambda: (sample(scanner=next(looks)), 4), own=OWN)
    assert ("kill", 12) in done


def test_nothing_is_ended_where_nobody_crowds(done: list[tuple[str, int]]) -> None:
    assert relief.end_crowd(lambda: (sample(scanner=range(10, 12)), 100), own=OWN) == 0
    assert done == []

"""A flip and what follows it, when the disk, the machine or the engine is against it."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.channel import Staged
from agent.children import Child
from agent.guardian import activation, lifecycle, quarantine, recovery, relief, settings
from agent.guardian.lifecycle import State
from agent.guardian.samples import Census, Headcount, ProbeResult, Root, Sample
from agent.guardian.settlement import SETTINGS_TRIES, Settlement
from agent.slots.record import Attempt, BootRecord, Held, Phase
from feed import durable
from feed.manifest import Activation, HealthPolicy, content_digest
from tests.support.rooms import Rooms, build

OLD, NEW = {"virus-pattern": "171"}, {"virus-pattern": "173"}
ATTEMPT = Attempt(
    id="1",
    release="r173",
    from_release="r171",
    changed={"virus-pattern": "c" * 64},
    trigger="test",
    flipped_at=0.0,
)


@pytest.fixture
def rooms(tmp_path: Path) -> Rooms:
    return ready(Rooms(tmp_path))


@pytest.fixture(autouse=True)
def _disk() -> Iterator[None]:
    yield
    durable.set_fault_hook(None)


@pytest.fixture(autouse=True)
def _no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.guardian.settlement.RETRY_INTERVAL_S", 0.0)


def ready(made: Rooms) -> Rooms:
    """r171 is active in slot a, r173 is sealed in slot b."""
    made.install("a", "r171", OLD)
    made.install("b", "r173", NEW)
    made.ledger.switch_link()
    stage(made)
    return made


def stage(rooms: Rooms) -> None:
    """A check has come as far as the staged slot."""
    rooms.ledger.to(State.CHECKING, reason="test", sentence="")
    rooms.ledger.to(State.STAGING, reason="test", sentence="")


def flip(rooms: Rooms) -> None:
    staged = Staged(
        release="r173",
        content=build(rooms.layout.state / f"like-b-{len(rooms.outcomes)}", "r173", NEW),
        changed=ATTEMPT.changed,
        activation=Activation(),
        health=HealthPolicy(),
        decision="offered",
    )
    rooms.trial.begin(staged, ATTEMPT, wire_bytes=None, full_bytes=None)


def refuse(path: str, step: str, number: int = errno.ENOSPC) -> None:
    """The disk refuses `step` for whatever ends in `path`."""

    def hook(point: str, where: str) -> None:
        if point == step and where.endswith(path):
            raise OSError(number, os.strerror(number), where)

    durable.set_fault_hook(hook)


def test_a_full_disk_between_record_and_link_goes_back_and_quarantines_nothing(
    rooms: Rooms,
) -> None:
    refuse("/current", "rename")
    flip(rooms)
    assert rooms.ledger.record.phase is Phase.REVERTING
    durable.set_fault_hook(None)
    rooms.until_ended()
    assert rooms.outcomes[-1].outcome == "reverted"
    assert rooms.ledger.record.active == "a"
    assert rooms.ledger.quarantine == ()


@pytest.mark.parametrize("refused", [errno.EROFS, errno.EPERM])
def test_what_no_later_try_would_put_in_place_is_not_flipped_to_again(
    refused: int, rooms: Rooms
) -> None:
    refuse("/current", "rename", refused)
    flip(rooms)
    durable.set_fault_hook(None)
    rooms.until_ended()
    assert rooms.outcomes[-1].outcome == "reverted"
    assert len(rooms.ledger.quarantine) == 1


def test_settings_without_a_place_are_not_flipped_to_until_they_have_one(tmp_path: Path) -> None:
    """Each check would flip, fail and go back, with the engines told each time."""
    target = tmp_path / "missing" / "engine.conf"
    extra = f'[[settings]]\ncomponent = "settings"\nfile = "{target}"\n'
    rooms = Rooms(tmp_path, extra)
    rooms.install("a", "r171", OLD)
    rooms.install("b", "r173", {**NEW, "settings": '{"depth": 5}'})
    rooms.ledger.switch_link()
    for _ in range(2):
        stage(rooms)
        flip(rooms)
        last = rooms.outcomes[-1]
        assert (last.outcome, last.reason) == ("failed", "settings_unwritable")
        assert str(target) in last.sentence
        assert rooms.ledger.record.active == "a"
    assert len(rooms.outcomes) == 2
    assert rooms.ledger.quarantine == ()
    target.parent.mkdir()
    stage(rooms)
    flip(rooms)
    assert rooms.ledger.record.phase is Phase.TRIAL
    assert target.read_text() == "depth = 5\n"


def test_a_staged_slot_found_damaged_while_the_baseline_is_taken_is_not_flipped_to(
    rooms: Rooms,
) -> None:
    rooms.ledger.commit(lifecycle.emptied(rooms.ledger.record, "b"))
    flip(rooms)
    assert rooms.outcomes[-1].reason == "transition_refused"
    assert rooms.ledger.record.active == "a"


def test_a_machine_that_cannot_be_looked_at_makes_the_trial_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of file descriptors, say."""
    rooms = ready(Rooms(tmp_path, probation_s=0))

    def blind(*_: object, **__: object) -> None:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE), "/proc")

    with monkeypatch.context() as without:
        without.setattr(rooms.prober, "sample", blind)
        flip(rooms)
        rooms.turns(3)
        assert rooms.ledger.record.phase is Phase.TRIAL
    for _ in range(3):
        rooms.trial._tick()
    assert rooms.ledger.record.phase is Phase.COMMITTED


def test_a_revert_that_cannot_tidy_up_ends_all_the_same(rooms: Rooms) -> None:
    """Once the record says that all is done, nobody would try again."""
    flip(rooms)
    rooms.trial.revert_now("rollback", "asked", quarantined=True)
    refuse("/trial.json", "remove")
    rooms.turns()
    durable.set_fault_hook(None)
    rooms.until_ended()
    assert [item.outcome for item in rooms.outcomes] == ["reverted"]
    assert rooms.ledger.status.state is State.REVERTED


def test_a_release_is_not_kept_before_its_hooks_have_ended(tmp_path: Path) -> None:
    """Keeping it would kill the one that still runs, and what it says is never heard."""
    hook = """
[[activation]]
name = "slow"
command = ["/bin/sh", "-c", "sleep 0.3; exit 3"]
"""
    rooms = ready(Rooms(tmp_path, hook, probation_s=0))
    flip(rooms)
    rooms.turns(2)
    rooms.trial._tick()
    assert rooms.ledger.record.phase is Phase.TRIAL
    rooms.until_ended()
    assert (rooms.outcomes[-1].outcome, rooms.outcomes[-1].reason) == (
        "reverted",
        "activation_failed",
    )


def telling(
    folder: Path, *names: str, failing: str = "", at: str = "revert", probation_s: float = 60
) -> Rooms:
    """Rooms with a hook of each name, that writes its name into `folder`/told.

    The hook `failing` does so too, and fails where its reason is `at`.
    """
    hooks = (
        f"""
[[activation]]
name = "{name}"
command = ["/bin/sh", "-c", "echo {name} $HOLDFAST_REASON >> {folder}/told; \
test {name} != '{failing}' || test $HOLDFAST_REASON != {at}"]
"""
        for name in names
    )
    folder.mkdir(exist_ok=True)
    return Rooms(folder, "".join(hooks), probation_s=probation_s)


def told(folder: Path, reason: str = "revert") -> list[str]:
    """Which hooks were told of `reason`, in order."""
    lines = (folder / "told").read_text().split("\n") if (folder / "told").exists() else []
    return [line.split()[0] for line in lines if line.endswith(f" {reason}")]


def test_a_hook_that_fails_at_a_revert_does_not_silence_those_after_it(tmp_path: Path) -> None:
    """An engine that took the bad release would run on with it and never know."""
    rooms = ready(telling(tmp_path, "bad", "engine", failing="bad"))
    flip(rooms)
    rooms.trial.revert_now("cpu_pinned", "pinned", quarantined=True)
    rooms.until_ended()
    assert told(tmp_path) == ["bad", "engine"]
    assert rooms.outcomes[-1].outcome == "reverted"


def test_a_release_that_is_held_is_told_to_every_engine(tmp_path: Path) -> None:
    rooms = ready(telling(tmp_path, "bad", "engine", failing="bad", at="flip"))
    record = lifecycle.flipped(rooms.ledger.record, ATTEMPT, tries=1, boot_id="one")
    held = Held(reason="tries_used_up", sentence="it hung", since=1.0)
    rooms.ledger.commit(lifecycle.holding(record, held=held))
    rooms.ledger.status = lifecycle.resumed(rooms.ledger.record, now=0.0)
    rooms.trial.settle()
    rooms.until_ended()
    assert told(tmp_path, "flip") == ["bad", "engine"]
    assert rooms.outcomes[-1].outcome == "held"


def test_settings_that_cannot_be_put_back_do_not_keep_the_engines_from_being_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = ready(telling(tmp_path, "engine"))
    tries: list[str] = []

    def fail(_layout: object, *, owner: str) -> None:
        tries.append(owner)
        raise FileNotFoundError(errno.ENOENT, "uninstalled", "/opt/engine/engine.conf")

    monkeypatch.setattr(settings, "revert", fail)
    flip(rooms)
    rooms.trial.revert_now("cpu_pinned", "pinned", quarantined=True)
    rooms.until_ended()
    assert len(tries) == SETTINGS_TRIES
    assert told(tmp_path) == ["engine"]
    assert rooms.ledger.record.phase is Phase.COMMITTED


def starved(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch, *, until: Callable[[], bool]
) -> list[str]:
    """A revert on a machine without a process for its hook; what was done, in order."""
    done: list[str] = []
    real = activation.Child

    def child(*arguments: Any, **options: Any) -> Child:
        if not until():
            done.append("refused")
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return real(*arguments, **options)

    def end_crowd(*_look: object, own: int) -> int:
        done.append("ended")
        return own

    flip(rooms)
    monkeypatch.setattr(activation, "Child", child)
    monkeypatch.setattr(relief, "end_crowd", end_crowd)
    rooms.trial.revert_now("cpu_pinned", "pinned", quarantined=True)
    rooms.until_ended()
    return done


def test_engines_are_told_of_a_revert_once_there_is_a_process_to_tell_them_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fills the process table is ended once, when it doesn't go away by itself."""
    rooms = ready(telling(tmp_path, "engine"))
    tries = iter(range(100))
    done = starved(rooms, monkeypatch, until=lambda: next(tries) >= 5)
    assert done == ["refused"] * relief.ENDED_AFTER + ["ended"] + ["refused"] * 2
    assert told(tmp_path) == ["engine"]
    assert rooms.outcomes[-1].outcome == "reverted"


def test_a_hook_that_waits_for_a_process_does_not_repeat_those_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time would be one more restart of an engine."""
    rooms = ready(telling(tmp_path, "first", "engine"))
    tries = itertools.count()
    done = starved(rooms, monkeypatch, until=lambda: next(tries) not in {1, 2})
    assert done == ["refused"] * 2
    assert told(tmp_path) == ["first", "engine"]


def test_a_hook_that_never_gets_its_process_does_not_silence_those_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = ready(telling(tmp_path, "engine", "other"))
    tries = itertools.count()
    starved(rooms, monkeypatch, until=lambda: next(tries) > relief.TRIES)
    assert told(tmp_path) == ["other"]
    assert rooms.outcomes[-1].outcome == "reverted"


def test_a_machine_that_never_has_a_process_left_is_reverted_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = ready(telling(tmp_path, "engine"))
    done = starved(rooms, monkeypatch, until=lambda: False)
    assert done.count("refused") == relief.TRIES + 1
    assert rooms.outcomes[-1].outcome == "reverted"
    assert rooms.ledger.record.phase is Phase.COMMITTED


ENGINE = Headcount("scanner", threads=60, lives=(Root(pid=4_000_000, create_time=1.0),))
CALM = Census(threads=200, watches=(ENGINE,))
CROWDED = Census(threads=100, watches=(ENGINE,))


def flip_starved(
    rooms: Rooms,
    monkeypatch: pytest.MonkeyPatch,
    *,
    refused: int,
    after: int = 0,
    seen: Census | None = None,
) -> list[str]:
    """A flip that is `refused` so many processes `after` that many, and who has them all."""
    done: list[str] = []
    first = iter(range(after))
    real = activation.Child

    def child(*arguments: Any, **options: Any) -> Child:
        in_trial = rooms.ledger.record.phase is Phase.TRIAL
        if in_trial and next(first, None) is None and len(done) < refused:
            done.append("refused")
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return real(*arguments, **options)

    monkeypatch.setattr(activation, "Child", child)
    monkeypatch.setattr(rooms.prober, "census", lambda _now: seen or CALM)
    flip(rooms)
    return done


def test_a_flip_waits_for_a_process_to_tell_the_engines_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the release kept before they have been told."""
    rooms = ready(telling(tmp_path, "updater", "scanner", probation_s=0))
    done = flip_starved(rooms, monkeypatch, refused=5, after=1)
    while len(done) < 5:
        assert rooms.ledger.record.phase is Phase.TRIAL
        rooms.trial._tick()
        rooms.turns(1)
    rooms.until_ended()
    assert rooms.outcomes[-1].outcome == "committed"
    assert (tmp_path / "told").read_text() == "updater flip\nscanner flip\n"


def test_a_machine_without_a_process_for_a_flip_goes_back_and_quarantines_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = ready(telling(tmp_path, "engine"))
    done = flip_starved(rooms, monkeypatch, refused=1000)
    rooms.until_ended()
    assert len(done) == relief.TRIES + 1
    assert rooms.outcomes[-1].reason == "activation_failed"
    assert rooms.ledger.record.active == "a"
    assert rooms.ledger.quarantine == ()


def test_an_engine_that_takes_every_process_at_the_flip_costs_its_release_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = ready(telling(tmp_path, "engine"))
    done = flip_starved(rooms, monkeypatch, refused=1000, seen=CROWDED)
    rooms.until_ended()
    assert len(done) == relief.ENDED_AFTER
    assert rooms.outcomes[-1].outcome == "reverted"
    assert [entry.reason for entry in rooms.ledger.quarantine] == ["activation_failed"]


@pytest.mark.parametrize("seen", [CALM, CROWDED])
def test_a_probe_without_a_process_is_owed_by_the_engine_that_has_them_all(
    seen: Census, rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = ProbeResult(name="scanner", ok=False, elapsed_s=0.0, starved=True)
    real = rooms.prober.sample

    def sample(*arguments: Any, **options: Any) -> Sample:
        return msgspec.structs.replace(real(*arguments, **options), probes=(late,))

    monkeypatch.setattr(rooms.prober, "sample", sample)
    monkeypatch.setattr(rooms.prober, "census", lambda _now: seen)
    (answer,) = rooms.trial._sample().probes
    assert answer.starved is (seen is CALM)


def hooks_run(
    folder: Path, *, back_to: tuple[str, ...] | None, left: tuple[str, ...] | None
) -> list[str]:
    """The hooks told when a release that asked for `left` is left for one with `back_to`."""
    rooms = telling(folder, "engine", "driver", "other")
    build(rooms.layout.slot("a"), "r171", OLD, Activation(hooks=back_to))
    build(rooms.layout.slot("b"), "r173", NEW, Activation(hooks=left))
    before = BootRecord(active="a", slots=rooms.ledger.sealed_slots())
    record = lifecycle.flipped(before, ATTEMPT, tries=1, boot_id="one")
    rooms.ledger.commit(
        lifecycle.reverting(record, reason="cpu_pinned", sentence="", quarantine=True)
    )
    rooms.ledger.status = lifecycle.resumed(rooms.ledger.record, now=0.0)
    notes = rooms.trial._load_notes()
    Settlement(rooms.ledger, notes, flipped_at=None, on_end=rooms.outcomes.append).start()
    rooms.until_ended()
    return told(folder)


def test_engines_that_took_the_bad_release_hear_of_its_end(tmp_path: Path) -> None:
    """Though the release that comes back asked for other hooks, or for none."""
    assert hooks_run(tmp_path / "1", back_to=(), left=("engine",)) == ["engine"]
    both = hooks_run(tmp_path / "2", back_to=("driver",), left=("engine",))
    assert both == ["engine", "driver"]
    everybody = hooks_run(tmp_path / "3", back_to=("driver",), left=None)
    assert everybody == ["engine", "driver", "other"]


def test_what_was_reverted_before_the_clock_was_set_stays_quarantined_when_it_is(
    rooms: Rooms,
) -> None:
    """At a boot without a battery the clock stands in the past until the network has set it."""
    flipped_at = 1.8e9
    rooms.ledger.wall = lambda: flipped_at
    attempt = msgspec.structs.replace(ATTEMPT, flipped_at=flipped_at)
    trial = lifecycle.flipped(rooms.ledger.record, attempt, tries=1, boot_id="an earlier one")
    rooms.ledger.commit(lifecycle.booted(trial, boot_id="this"))
    rooms.ledger.status = lifecycle.resumed(rooms.ledger.record, now=0.0)
    rooms.ledger.wall = lambda: flipped_at - 365 * 86400
    rooms.trial.settle()
    rooms.until_ended()
    for hours in (-1, 1, 24 * 29):
        (entry,) = quarantine.in_force(rooms.ledger.quarantine, now=flipped_at + hours * 3600)
        assert entry.release == "r173"
    assert quarantine.in_force(rooms.ledger.quarantine, now=flipped_at + 31 * 86400) == ()


def at_rest_on_b(rooms: Rooms) -> None:
    """What slot b holds is committed, slot a is the way back."""
    rooms.ledger.commit(BootRecord(active="b", slots=rooms.ledger.record.slots))
    rooms.ledger.switch_link()


def test_a_repair_that_is_left_does_not_take_the_settings_of_what_runs(tmp_path: Path) -> None:
    """The same release in both slots has the same seal, which is what settings are owned by."""
    rooms, target = Rooms(tmp_path), tmp_path / "engine.conf"
    same = rooms.install("a", "r173", NEW)
    assert rooms.install("b", "r173", NEW) == same
    at_rest_on_b(rooms)
    before = settings.Previous(file=str(target), content=None, mode=0o644)
    undo = settings.Undo(owner=same.seal, previous=(before,))
    rooms.layout.settings_undo.write_bytes(msgspec.json.encode(undo))
    target.write_text("depth = 9\n")
    repair = msgspec.structs.replace(ATTEMPT, from_release="r173", cause="repair", quarantine=False)
    rooms.ledger.commit(lifecycle.flipped(rooms.ledger.record, repair, tries=1, boot_id="one"))
    rooms.ledger.status = lifecycle.resumed(rooms.ledger.record, now=0.0)
    rooms.trial.revert_now("crash_loop", "crashes", quarantined=True)
    rooms.until_ended()
    assert rooms.ledger.record.active == "b"
    assert target.read_text() == "depth = 9\n"
    assert rooms.layout.settings_undo.exists()  # they are still to be undone when r173 is left


def test_what_was_gone_back_to_is_not_quarantined_under_the_name_that_was_left(
    tmp_path: Path,
) -> None:
    """A release that only gave a file another name has nothing of its own to be told by."""
    rooms = Rooms(tmp_path)
    rooms.install("a", "r171", OLD)
    rooms.install("b", "r172", OLD)
    at_rest_on_b(rooms)
    record = rooms.ledger.record
    attempt = recovery.return_attempt(
        rooms.ledger, record, "rollback", "asked", "test", quarantined=True
    )
    rooms.ledger.commit(lifecycle.returning(record, attempt))
    rooms.trial.settle()
    rooms.until_ended()
    assert (rooms.ledger.record.active, rooms.outcomes[-1].outcome) == ("a", "reverted")
    assert rooms.ledger.quarantine == ()


def test_a_release_that_only_left_a_component_out_is_not_tried_again(tmp_path: Path) -> None:
    """Nothing in it is new, so nothing but the whole of it can be quarantined."""
    rooms = Rooms(tmp_path)
    rooms.install("a", "r171", {**OLD, "cleanup": "5"})
    left = rooms.install("b", "r173", OLD)
    attempt = msgspec.structs.replace(ATTEMPT, changed={})
    record = lifecycle.flipped(rooms.ledger.record, attempt, tries=1, boot_id="one")
    rooms.ledger.commit(record)
    rooms.ledger.status = lifecycle.resumed(record, now=0.0)
    rooms.trial.revert_now("crash_loop", "crashes", quarantined=True)
    rooms.until_ended()
    (entry,) = rooms.ledger.quarantine
    assert list(entry.changed) == ["virus-pattern"]
    assert content_digest(entry.changed) == left.digest

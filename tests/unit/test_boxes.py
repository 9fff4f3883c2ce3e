"""Boxes use the control groups that a machine has: version 1, version 2, or some of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import boxes
from tests.support.boxes import CONTROLLERS, COUNTERS, Box, Home, Limits, homes, refusals, words

LIMITS = Limits(pids=120, memory_bytes=400 << 20, cores=1.5)


def first(root: Path, *controllers: str) -> None:
    """Hierarchies of version 1."""
    for name in controllers:
        (root / name).mkdir(parents=True)
        (root / name / "cgroup.procs").touch()


def second(folder: Path, *controllers: str) -> Path:
    """The hierarchy of version 2, with nothing handed down yet."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.procs").touch()
    (folder / "cgroup.controllers").write_text(" ".join(controllers) + "\n")
    (folder / "cgroup.subtree_control").write_text("\n")
    return folder


def test_every_controller_of_version_1_has_a_hierarchy_of_its_own(tmp_path: Path) -> None:
    first(tmp_path, *CONTROLLERS)
    second(tmp_path / "unified", "hugetlb")
    assert homes(tmp_path) == {name: Home(tmp_path / name, 1) for name in CONTROLLERS}
    assert Box(LIMITS, root=tmp_path).inside is None


def test_all_controllers_of_version_2_are_in_one_hierarchy(tmp_path: Path) -> None:
    second(tmp_path, "cpuset", "cpu", "io", "memory", "pids")
    assert homes(tmp_path) == {name: Home(tmp_path, 2) for name in CONTROLLERS}
    inside = Box(LIMITS, root=tmp_path).inside
    assert inside is not None
    assert inside.parent == tmp_path


def test_a_machine_may_have_controllers_of_each_version(tmp_path: Path) -> None:
    first(tmp_path, "cpu", "memory", "pids")
    unified = second(tmp_path / "unified", "pids", "io")
    found = homes(tmp_path)
    assert found["pids"] == Home(unified, 2)
    assert found["memory"] == Home(tmp_path / "memory", 1)
    box = Box(LIMITS, root=tmp_path)
    assert box.inside is not None
    assert box.inside.parent == unified
    entering = box.prefix[2]
    assert [entering.count(f"{home.folder}/") for home in found.values()] == [1, 1, 1]


def test_a_command_in_a_box_of_version_2_enters_one_group(tmp_path: Path) -> None:
    second(tmp_path, *CONTROLLERS)
    assert Box(LIMITS, root=tmp_path).prefix[2].count("cgroup.procs") == 1


@pytest.mark.parametrize(
    ("controller", "version", "expected"),
    [
        ("pids", 1, {"pids.max": "120"}),
        ("pids", 2, {"pids.max": "120"}),
        ("memory", 1, {"memory.limit_in_bytes": "419430400"}),
        ("memory", 2, {"memory.max": "419430400", "memory.swap.max": "0"}),
        ("cpu", 1, {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000"}),
        ("cpu", 2, {"cpu.max": "150000 100000"}),
    ],
)
def test_limits_are_written_in_the_words_of_their_version(
    controller: str, version: int, expected: dict[str, str]
) -> None:
    assert words(controller, version, LIMITS) == expected


@pytest.mark.parametrize(
    ("controller", "version", "file", "text", "count"),
    [
        ("pids", 1, "pids.events", "max 7\n", 7),
        ("pids", 2, "pids.events", "max 7\n", 7),
        (
            "memory",
            1,
            "memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
            3,
        ),
        (
            "memory",
            2,
            "memory.events",
            "low 0\nhigh 0\nmax 91\noom 4\noom_kill 3\noom_group_kill 0\n",
            3,
        ),
    ],
)
def test_refusals_are_read_from_the_files_of_their_version(
    controller: str, version: int, file: str, text: str, count: int
) -> None:
    assert COUNTERS[controller, version][0] == file
    assert refusals(controller, version, text) == count


@pytest.fixture
def root_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)


@pytest.mark.usefixtures("root_user")
def test_a_machine_without_a_controller_says_which(tmp_path: Path) -> None:
    first(tmp_path, "cpu", "memory")
    assert boxes.missing(tmp_path) == f"no control groups for pids in {tmp_path}"


@pytest.mark.usefixtures("root_user")
def test_controllers_of_version_2_are_handed_down(tmp_path: Path) -> None:
    second(tmp_path, *CONTROLLERS)
    assert boxes.missing(tmp_path) == ""
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu"  # the last one's word


@pytest.mark.usefixtures("root_user")
def test_controllers_that_cannot_be_handed_down_are_told_with_the_kernels_word(
    tmp_path: Path,
) -> None:
    second(tmp_path, *CONTROLLERS)
    (tmp_path / "cgroup.subtree_control").unlink()
    (tmp_path / "cgroup.subtree_control").mkdir()
    assert "Is a directory" in boxes.missing(tmp_path)

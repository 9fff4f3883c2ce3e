"""What the kernel accounts to a unit, on fake trees as each kind of kernel has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.guardian import cgroups
from agent.guardian.cgroups import Hierarchy, Meter, Reading

GROUP = "/system.slice/engine.service"
V2_CPU = "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\n"
V2_MEMORY = "anon 4096\nfile 1000000\nkernel 10\nshmem 1024\n"
V1_MEMORY = "cache 5\nrss 6\ntotal_cache 1000000\ntotal_rss 8192\ntotal_shmem 1024\n"


def write(root: Path, place: str, **files: str) -> Path:
    folder = root / place / GROUP.strip("/")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def test_cgroup_v2_has_it_all_in_one_place(tmp_path: Path) -> None:
    write(tmp_path, "", cpu_stat=V2_CPU, memory_stat=V2_MEMORY, cgroup_procs="12\n13\n")
    groups = Hierarchy(tmp_path)
    assert groups.read(GROUP) == Reading(cpu_s=2.5, memory_bytes=5120)
    assert groups.members(GROUP) == (12, 13)


def test_cgroup_v1_has_a_place_for_each_controller(tmp_path: Path) -> None:
    write(tmp_path, "systemd", cgroup_procs="12\n")
    write(tmp_path, "cpu,cpuacct", cpuacct_usage="2500000000\n")
    write(tmp_path, "memory", memory_stat=V1_MEMORY)
    groups = Hierarchy(tmp_path)
    assert groups.read(GROUP) == Reading(cpu_s=2.5, memory_bytes=9216)
    assert groups.members(GROUP) == (12,)


def test_v2_beside_v1_still_counts_cpu(tmp_path: Path) -> None:
    write(tmp_path, "unified", cgroup_procs="12\n", cpu_stat="usage_usec 1000000\n")
    groups = Hierarchy(tmp_path)
    assert groups.read(GROUP) == Reading(cpu_s=1.0, memory_bytes=None)
    assert groups.members(GROUP) == (12,)


def test_groups_below_belong_to_it(tmp_path: Path) -> None:
    folder = write(tmp_path, "", cgroup_procs="1\n")
    (folder / "worker").mkdir()
    (folder / "worker" / "cgroup.procs").write_text("2\n3")  # the last line is cut
    assert Hierarchy(tmp_path).members(GROUP) == (1, 2)


@pytest.mark.parametrize("group", ["", "/", "/..", "/a/../../etc", "/no.service"])
def test_a_group_that_isnt_one_reads_as_nothing(tmp_path: Path, group: str) -> None:
    (tmp_path / "cgroup.procs").write_text("1\n")
    (tmp_path / "cpu.stat").write_text(V2_CPU)
    root = tmp_path / "root"
    root.mkdir()
    (root / "cpu.stat").write_text(V2_CPU)
    assert Hierarchy(root).members(group) == ()
    assert Hierarchy(root).read(group) == Reading()


@pytest.mark.parametrize("text", ["", "nonsense\n", "usage_usec x\n", "usage_usec 1 2\n", "-5"])
def test_figures_that_arent_there_are_none(text: str) -> None:
    assert cgroups.cpu_of_v2(text) is None
    assert cgroups.cpu_of_v1(text) is None
    assert cgroups.memory_of(text) is None


def test_a_meter_counts_from_its_first_look(tmp_path: Path) -> None:
    write(tmp_path, "", cpu_stat=V2_CPU)
    meter = Meter(Hierarchy(tmp_path))
    assert meter.look(GROUP).cpu_s == 0.0
    write(tmp_path, "", cpu_stat="usage_usec 4000000\n")
    assert meter.look(GROUP).cpu_s == 1.5


def test_a_group_that_was_made_anew_counts_whole(tmp_path: Path) -> None:
    write(tmp_path, "", cpu_stat=V2_CPU)
    meter = Meter(Hierarchy(tmp_path))
    meter.look(GROUP)
    write(tmp_path, "", cpu_stat="usage_usec 300000\n")
    assert meter.look(GROUP).cpu_s == 0.3
    (tmp_path / GROUP.strip("/") / "cpu.stat").unlink()
    assert meter.look(GROUP).cpu_s is None
    write(tmp_path, "", cpu_stat="usage_usec 900000\n")
    assert meter.look(GROUP).cpu_s == 0.9

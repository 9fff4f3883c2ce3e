"""Folders that belong to the unprivileged fetcher, in root's hands."""

from __future__ import annotations

import os
import threading
import tracemalloc
from pathlib import Path

import pytest

from agent import host
from agent.host.posix import User

DEEPER_THAN_PYTHON_RECURSES = 3000
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
SOMEBODY = User(uid=65534, gid=65534)


def dig(folder: Path, depth: int) -> None:
    """Nested folders; made by descriptors, since no path is long enough."""
    at = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("x", dir_fd=at)
        deeper = os.open("x", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = deeper
    os.close(at)


def test_a_folder_nested_deeper_than_any_recursion_is_emptied(tmp_path: Path) -> None:
    dig(tmp_path, DEEPER_THAN_PYTHON_RECURSES)
    assert host.empty(tmp_path, seconds=60.0)  # pytest's own clean-up would recurse
    assert list(tmp_path.iterdir()) == []


def test_what_links_point_to_is_not_emptied(tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "incoming"
    (elsewhere / "inner").mkdir(parents=True)
    (elsewhere / "inner" / "file").write_text("kept")
    (folder / "attempt").mkdir(parents=True)
    (folder / "link").symlink_to(elsewhere)
    (folder / "attempt" / "link").symlink_to(elsewhere)
    assert host.empty(folder)
    assert list(folder.iterdir()) == []
    assert (elsewhere / "inner" / "file").read_text() == "kept"


def test_a_folder_that_is_a_link_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("kept")
    (tmp_path / "incoming").symlink_to("real")
    assert not host.empty(tmp_path / "incoming")
    assert (tmp_path / "real" / "file").exists()


def test_who_fills_a_folder_as_fast_as_it_is_emptied_costs_limited_time(tmp_path: Path) -> None:
    done = threading.Event()

    def fill() -> None:
        number = 0
        while not done.is_set():
            number += 1
            (tmp_path / str(number)).touch()

    filler = threading.Thread(target=fill)
    filler.start()
    try:
        host.empty(tmp_path, seconds=0.3)  # returns at all
    finally:
        done.set()
        filler.join()


def test_a_folder_of_many_names_takes_no_memory_for_them(tmp_path: Path) -> None:
    names = 20_000
    for number in range(names):
        (tmp_path / str(number)).touch()
    tracemalloc.start()
    try:
        host.empty(tmp_path, seconds=60.0)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert list(tmp_path.iterdir()) == []
    assert peak_bytes < names * 10


@AS_ROOT
def test_a_hard_link_in_the_fetchers_folder_is_not_given_to_the_fetcher(tmp_path: Path) -> None:
    """chown changes the file, wherever its other names are."""
    secret, folder = tmp_path / "shadow", tmp_path / "incoming"
    secret.write_text("root's")
    folder.mkdir()
    host.give_to(folder, SOMEBODY)
    os.link(secret, folder / "mine")
    host.give_to(folder, SOMEBODY)
    assert secret.stat().st_uid == 0
    assert folder.stat().st_uid == SOMEBODY.uid


@AS_ROOT
def test_a_folder_that_changes_hands_is_emptied_first(tmp_path: Path) -> None:
    secret, folder = tmp_path / "shadow", tmp_path / "incoming"
    secret.write_text("root's")
    folder.mkdir()
    os.link(secret, folder / "mine")
    host.give_to(folder, SOMEBODY)
    assert list(folder.iterdir()) == []
    assert (secret.read_text(), secret.stat().st_uid) == ("root's", 0)

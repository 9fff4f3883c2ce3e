"""Tests that share a machine which takes long to make are run by one worker, one after another.

The largest groups are begun first, so that no worker is left with one at the end.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

# Where they are, and what they share.
GROUPS = {
    "tests/system/systemd/": "guest",
    "tests/system/windows/": "wine",
    "tests/system/packaging/test_windows_installer.py": "wine",
}


def group_of(nodeid: str) -> str:
    """What is run as a whole: a group, else the test itself."""
    for place, group in GROUPS.items():
        if nodeid.startswith(place):
            return group
    return nodeid


class Grouped(LoadScopeScheduling):
    """A test is its own scope, unless it is of a group."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)

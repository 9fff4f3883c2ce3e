"""Tests that belong together are run by one worker, one after another.

Those that share a machine which takes long to make; and those marked `alone`, so that
the other workers are kept waiting once. The largest groups are begun first, so that no
worker is left with one at the end.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

# How their names begin, and what they share.
GROUPS = {
    "tests/system/systemd/": "guest",
    "tests/system/windows/": "wine",
    "tests/system/packaging/test_windows_installer.py": "wine",
    "tests/system/pressure/": "alone",
    "tests/integration/test_bench.py": "alone",
    "tests/integration/test_guardian_modules.py::test_guardian_and_fetcher_rest": "alone",
    "tests/integration/test_security_server.py::test_guardian_fetcher_and_link": "alone",
    "tests/unit/test_health.py::test_the_busiest_programs_are_named": "alone",
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

"""What every test runs under.

* Hypothesis draws the same examples each time (profile `ci`), unless
  HYPOTHESIS_PROFILE=dev asks for fresh ones.
* Nothing connects beyond this machine: a socket that tries raises.
* `alone` and `system` tests run as tests.support.markers says, on the workers that
  tests.support.groups says.
* Every test of the server's database runs on both kinds (tests.support.databases).
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support import boxes, crashing, groups, illness, loopback, markers, powercuts

pytest_plugins = ("tests.support.databases",)

settings.register_profile(
    "ci",
    derandomize=True,
    max_examples=60,
    deadline=None,  # shared processors make any deadline a matter of luck
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("dev", deadline=None, max_examples=300)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure() -> None:
    loopback.only()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> groups.Grouped:
    return groups.Grouped(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if (marker := item.get_closest_marker("system")) and (why := markers.missing(marker.args)):
        pytest.skip(why)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    def failed(words: str) -> int:
        return sum(words in item.nodeid for item in terminalreporter.getreports("failed"))

    passed = [item for item in terminalreporter.getreports("passed") if item.when == "call"]
    properties = [pair for item in passed for pair in item.user_properties]
    seed = os.environ.get("POWER_SEED", "1")
    lines = [
        crashing.summary(properties, failed=failed("crash_walk")),
        illness.summary(properties, failed=failed("bad_calls"), seed=seed),
        *powercuts.summary(properties, failed=failed("power_cuts"), seed=seed),
        boxes.summary(properties),
    ]
    for line in filter(None, lines):
        terminalreporter.write_line(line)


# Outermost, so that waiting for a turn doesn't count towards the timeout.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, Any, Any]:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with _turns.take(alone=_is_alone(item), next_alone=_is_alone(nextitem)):
        return (yield)


def _is_alone(item: pytest.Item | None) -> bool:
    return item is not None and item.get_closest_marker("alone") is not None


_turns = markers.Turns(Path(__file__), Path(markers.__file__))

"""What the agent's processes load: the guardian little, none of them another program's needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import idle
from tests.support.endpoint import Endpoint
from tests.support.feedserver import FeedServer
from tests.support.vendor import Vendor

ROOT = Path(__file__).parents[2]
LISTED = "import sys; known = set(sys.modules); {0}; print(*sorted(set(sys.modules) - known))"
EVERY_MODULE = (
    "import agent, importlib, pkgutil; [importlib.import_module(found.name) for found in "
    "pkgutil.walk_packages(agent.__path__, 'agent.') "
    "if not found.name.rpartition('.')[2].startswith(('__main__', 'windows'))]"
)

# Beyond the standard library and the agent itself: what watches, what parses
# the guardian's own files, what logs, and the feed's words without its network.
GUARDIAN_NEEDS = {"msgspec", "psutil", "structlog", "typing_extensions"}
GUARDIAN_FEED = {
    "feed",
    "feed.durable",
    "feed.errors",
    "feed.log",
    "feed.manifest",
    "feed.misfit",
    "feed.roads",
    "feed.rollout",
    "feed.servicemanager",
    "feed.version",
}
NETWORK_AND_WEIGHT = {
    "anyio",
    "asyncio",
    "bsdiff4",
    "click",
    "concurrent",
    "cryptography",
    "email",
    "ftplib",
    "http",
    "httpcore",
    "httpx",
    "multiprocessing",
    "rich",
    "securesystemslib",
    "sqlite3",
    "ssl",
    "tenacity",
    "tuf",
    "unittest",
    "urllib.request",
    "xml",
}
OTHER_PROGRAMS = {
    "alembic",
    "click",
    "litestar",
    "prometheus_client",
    "publisher",
    "rich",
    "server",
    "sqlalchemy",
    "starlette",
    "uvicorn",
}


@pytest.fixture(autouse=True)
def _without_coverage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring lines would load modules of its own into the measured processes."""
    for name in ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter loads for `statement`."""
    found = subprocess.run(
        [sys.executable, "-c", LISTED.format(statement)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(found.stdout.split())


def among(unwanted: set[str], loaded: set[str]) -> set[str]:
    """What of `loaded` is one of the unwanted modules, or inside one."""
    return {name for name in loaded if any(f"{name}.".startswith(f"{u}.") for u in unwanted)}


def foreign(loaded: set[str]) -> set[str]:
    """The top-level packages that are neither the standard library's nor the agent's."""
    tops = {name.partition(".")[0] for name in loaded}
    return tops - sys.stdlib_module_names - {"agent", "feed"}


def test_the_guardian_imports_only_what_is_listed_here() -> None:
    loaded = loaded_by("import agent.guardian.main")
    assert foreign(loaded) <= GUARDIAN_NEEDS
    assert {name for name in loaded if name.partition(".")[0] == "feed"} <= GUARDIAN_FEED
    assert among(NETWORK_AND_WEIGHT, loaded) == set()


def test_the_resting_fetcher_imports_nothing_of_the_network() -> None:
    loaded = loaded_by("import agent.fetcher.main")
    assert foreign(loaded) <= GUARDIAN_NEEDS
    assert among(NETWORK_AND_WEIGHT, loaded) == set()


def test_asyncio_is_there_for_whoever_needs_it_after_the_logs() -> None:
    statement = "import agent.log, asyncio, rich; asyncio.run(asyncio.sleep(0)); rich.get_console()"
    assert "asyncio.events" in loaded_by(statement)
    logged = "import agent.log, asyncio, structlog; asyncio.run(structlog.get_logger().ainfo('x'))"
    assert "asyncio.events" in loaded_by(
        f"import sys; sys.stdout = sys.stderr; {logged}; sys.stdout = sys.__stdout__"
    )


def test_agentctl_status_loads_no_parser_of_the_whole_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('state_dir = "state"\n')
    located = f"pathlib.Path({str(tmp_path / 'config.toml')!r})"
    statement = (
        "import pathlib; from agent.ctl import main, places; main._parser(); "
        f"places.locate({located})"
    )
    loaded = loaded_by(statement)
    assert foreign(loaded) == set()
    assert among({"dataclasses", "inspect", "shutil", "subprocess"}, loaded) == set()


def test_every_module_of_the_agent_loads_without_the_other_programs_dependencies() -> None:
    # httpx loads click and rich by itself where they are installed, so they are absent here.
    absent = f"sys.modules.update(dict.fromkeys({sorted(OTHER_PROGRAMS)}))"
    loaded = loaded_by(f"{absent}; {EVERY_MODULE}; [sys.modules.pop(x) for x in {OTHER_PROGRAMS}]")
    assert {"agent.guardian.main", "agent.fetcher.cycle", "agent.stager.main"} <= loaded
    assert among(OTHER_PROGRAMS, loaded) == set()


@pytest.mark.alone
@pytest.mark.timeout(400)
def test_guardian_and_fetcher_rest_within_their_memory(tmp_path: Path) -> None:
    vendor = Vendor(tmp_path / "vendor")
    vendor.ship("r171", {"virus-pattern": ("171", bytes(1 << 20))})
    with FeedServer(vendor.feed) as server:
        endpoint = Endpoint(tmp_path / "endpoint", url=server.url, root=vendor.root)
        with endpoint.running():
            endpoint.wait_for_release("r171", seconds=300)  # a busy machine extends the trial
            endpoint.wait_for(lambda status: not status["verifying"])
            assert endpoint.ctl("check").returncode == 0
            guardian, fetcher = idle.processes(endpoint)
            assert idle.pss_mb(guardian) <= idle.GUARDIAN_MB
            assert idle.pss_mb(guardian) + idle.pss_mb(fetcher) <= idle.TOGETHER_MB
            for pid in (guardian, fetcher):
                mapped = Path(f"/proc/{pid}/maps").read_text()
                assert "libssl" not in mapped
                assert "_asyncio" not in mapped

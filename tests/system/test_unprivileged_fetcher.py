"""Run as root, the agent talks to the network as somebody else."""

from __future__ import annotations

import os
import pwd
import shutil
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.endpoint import ROOT, Endpoint
from tests.support.securityserver import SecurityServer
from tests.support.vendor import Vendor

USER = "nobody"


def _open_python() -> str | None:
    """An interpreter of this version that an ordinary user may run."""
    found = shutil.which(
        f"python{sys.version_info.major}.{sys.version_info.minor}", path="/usr/bin"
    )
    if found is None or not os.access(ROOT, os.X_OK):
        return None
    paths = os.pathsep.join([str(ROOT), *site.getsitepackages()])
    probe = subprocess.run(
        [found, "-c", "import msgspec, tuf, httpx, psutil, structlog, bsdiff4"],
        env={"PYTHONPATH": paths, "PATH": os.defpath},
        user=USER,
        capture_output=True,
        check=False,
    )
    return found if probe.returncode == 0 else None


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may pass through, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.system
def test_the_fetcher_runs_without_privileges_and_the_slots_are_not_its_own(
    open_folder: Path,
) -> None:
    python = _open_python()
    if python is None:
        pytest.skip("no interpreter here that an ordinary user can run with these packages")
    vendor = Vendor(open_folder / "vendor")
    vendor.ship("r171", {"virus-pattern": ("171", b"pattern 171 " * 500)})
    endpoint = Endpoint(
        open_folder / "endpoint", url=vendor.url, root=vendor.root, python=(python,)
    )
    text = endpoint.config.read_text().replace('fetcher_user = ""', f'fetcher_user = "{USER}"')
    endpoint.config.write_text(text)
    for path in (open_folder / "endpoint", *vendor.feed.rglob("*"), vendor.feed, vendor.folder):
        path.chmod(0o755 if path.is_dir() else 0o644)
    endpoint.environment["PYTHONPATH"] = os.pathsep.join(site.getsitepackages())
    uid = pwd.getpwnam(USER).pw_uid
    with SecurityServer(vendor.feed) as server, endpoint.running() as guardian:
        status = endpoint.wait_for_release("r171")
        assert psutil.Process(status["fetcher"]["pid"]).uids().effective == uid
        assert psutil.Process(guardian.pid).uids().effective == 0
        done = endpoint.ctl("enroll", server.url, server.token())
        assert done.returncode == 0, done.stderr
        endpoint.wait_for(lambda status: status["server"] and status["server"]["connected"])
        vendor.ship("r173", {"virus-pattern": ("173", b"pattern 173 " * 500)})
        server.notify()
        endpoint.wait_for_release("r173")
        server.wait_for(lambda: server.reports)
        for path in (endpoint.layout.server, endpoint.layout.credential):
            assert path.stat().st_uid == uid
            assert not path.stat().st_mode & 0o077
    assert endpoint.slot_problems() == []
    assert endpoint.layout.incoming.stat().st_uid == uid
    assert endpoint.layout.slots.stat().st_uid == 0
    assert endpoint.layout.stager_trust.stat().st_uid == 0

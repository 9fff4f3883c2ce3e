"""The recipe of the agent's image: its steps, taken in a Debian without a runtime."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import containerfile, packages, rootfs

RECIPE = packages.ROOT / "packaging" / "container" / "Containerfile.agent"
STEPS = containerfile.read(RECIPE)


def step(word: str) -> str:
    (found,) = [step.text for step in STEPS if step.word == word]
    return found


def test_the_base_is_named_by_a_digest_that_has_to_be_given() -> None:
    assert containerfile.arguments(STEPS)["BASE_DIGEST"] == ""
    assert step("FROM") == "${BASE}@${BASE_DIGEST}"


def test_the_image_runs_as_an_ordinary_user_and_asks_the_agent_how_it_is() -> None:
    assert step("USER") == "holdfast"
    assert "agentctl status" in step("HEALTHCHECK")


@pytest.mark.system("debootstrap", "dpkg-deb", "rpmbuild", "mount", "chroot")
@pytest.mark.timeout(rootfs.MAKING_S + 300)
def test_the_steps_make_a_system_whose_agent_starts_as_that_user(dist: Path) -> None:
    with rootfs.overlay() as system:
        for sources, place in containerfile.copied(STEPS):
            copy(dist, sources, system.root / place.lstrip("/"))
        # What apt would fetch is there already; without an index it says so and goes on.
        script = step("RUN").replace("apt-get update", "true")
        system.run("sh", "-ec", script)
        (system.root / "etc/holdfast/config.toml").write_text(
            '[[sources]]\nurl = "file:///nowhere"\n'
        )
        environment = step("ENV").split()
        as_user = ["setpriv", "--reuid=holdfast", "--regid=holdfast", "--clear-groups", "env", "-i"]
        (entry,) = json.loads(step("ENTRYPOINT"))
        with subprocess.Popen(
            ["chroot", str(system.root), *as_user, "PATH=/usr/bin", *environment, entry]
        ) as agent:
            try:
                assert healthy(system, as_user, environment) in (1, 2)
                assert (system.root / "var/lib/holdfast/host-id").stat().st_uid != 0
            finally:
                agent.terminate()


def healthy(system: rootfs.System, as_user: list[str], environment: list[str]) -> int:
    """What agentctl status says once the guardian answers: late, or at risk."""
    asked = [*as_user, "PATH=/usr/bin", *environment, "agentctl", "status", "--json"]
    for _ in range(100):
        done = system.run(*asked, ok=False)
        if done.stdout and json.loads(done.stdout)["state"]["reason"] != "guardian_down":
            return done.returncode
    raise AssertionError(done.stdout + done.stderr)


def copy(dist: Path, sources: list[str], place: Path) -> None:
    place.mkdir(parents=True)
    for source in sources:
        folder, _, pattern = containerfile.filled(
            source, containerfile.arguments(STEPS)
        ).rpartition("/")
        assert folder == "dist"
        found = list(dist.glob(pattern))
        assert found, source
        for path in found:
            shutil.copy(path, place)

"""The recipes of the images: their steps, taken in a Debian without a runtime."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server import layout
from tests.support import containerfile, packages, rootfs
from tests.support.containerfile import Instruction

RECIPES = packages.ROOT / "packaging" / "container"
DOCUMENTS = packages.ROOT / "docs"
AGENT, SERVER = (containerfile.read(RECIPES / f"Containerfile.{it}") for it in packages.PRODUCTS)
BOTH = pytest.mark.parametrize("steps", [AGENT, SERVER], ids=list(packages.PRODUCTS))

NEEDS = pytest.mark.system("debootstrap", "dpkg-deb", "rpmbuild", "mount", "chroot", "setpriv")
LIMIT = pytest.mark.timeout(rootfs.MAKING_S + 300)


def step(steps: list[Instruction], word: str) -> str:
    (found,) = [step.text for step in steps if step.word == word]
    return found


@BOTH
def test_the_base_is_named_by_a_digest_that_has_to_be_given(steps: list[Instruction]) -> None:
    assert containerfile.arguments(steps)["BASE_DIGEST"] == ""
    assert step(steps, "FROM") == "${BASE}@${BASE_DIGEST}"


@pytest.mark.parametrize(
    ("steps", "user", "asks"),
    [(AGENT, "holdfast", "agentctl status"), (SERVER, "holdfast-server", "serverctl status")],
    ids=list(packages.PRODUCTS),
)
def test_the_image_runs_as_an_ordinary_user_and_asks_the_program_how_it_is(
    steps: list[Instruction], user: str, asks: str
) -> None:
    assert step(steps, "USER") == user
    assert asks in step(steps, "HEALTHCHECK")
    assert "[ $? -le 1 ]" in step(steps, "HEALTHCHECK")  # what people should look at, too


@pytest.mark.parametrize("page", ["install.md", "server.md"])
def test_every_image_is_built_in_the_format_that_keeps_its_health_check(page: str) -> None:
    recipes = [(RECIPES / f"Containerfile.{it}").read_text() for it in packages.PRODUCTS]
    builds = re.findall("podman build.*", "\n".join([*recipes, (DOCUMENTS / page).read_text()]))
    assert len(builds) == 3
    assert [line for line in builds if "--format docker" not in line] == []


@NEEDS
@LIMIT
def test_the_steps_make_a_system_whose_agent_starts_as_that_user(dist: Path) -> None:
    with rootfs.overlay() as system:
        take(AGENT, system, dist)
        (system.root / "etc/holdfast/config.toml").write_text(
            '[[sources]]\nurl = "file:///nowhere"\n'
        )

        def is_up() -> int | None:
            """What agentctl status says once the guardian answers: late, or at risk."""
            done = system.run(*as_user(AGENT), "agentctl", "status", "--json", ok=False)
            if done.stdout and json.loads(done.stdout)["state"]["reason"] != "guardian_down":
                return done.returncode
            return None

        with started(AGENT, system) as agent:
            assert wait_for(is_up, agent) in (1, 2)
            assert (system.root / "var/lib/holdfast/host-id").stat().st_uid != 0


def test_the_servers_image_is_made_as_the_agents_and_takes_the_machines_folders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its package is started in a booted guest (tests/system/systemd/test_server.py)."""
    agents, _, folders = step(AGENT, "RUN").partition(" && install -d")
    assert folders
    assert step(SERVER, "RUN") == agents.replace("/holdfast_", "/holdfast-server_")
    for line in step(SERVER, "ENV").split():
        monkeypatch.setenv(*line.split("=", 1))
    config = layout.default_config()
    assert config == layout.SYSTEM_CONFIG
    assert layout.resolve(None, config).state == Path(step(SERVER, "VOLUME"))
    assert json.loads(step(SERVER, "ENTRYPOINT")) == ["serverctl", "run"]


def take(steps: list[Instruction], system: rootfs.System, dist: Path) -> None:
    """Take the steps COPY and RUN."""
    for sources, place in containerfile.copied(steps):
        copy(steps, dist, sources, system.root / place.lstrip("/"))
    # What apt would fetch is there already; without an index it says so and goes on.
    system.run("sh", "-ec", step(steps, "RUN").replace("apt-get update", "true"))


def as_user(steps: list[Instruction]) -> list[str]:
    """What comes before a command that the image runs: its user and its environment."""
    user = step(steps, "USER")
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    return [*become, "env", "-i", "PATH=/usr/bin", *step(steps, "ENV").split()]


@contextmanager
def started(steps: list[Instruction], system: rootfs.System) -> Iterator[subprocess.Popen[bytes]]:
    """The image's entry point, until it isn't wanted any more."""
    entry = json.loads(step(steps, "ENTRYPOINT"))
    with subprocess.Popen(["chroot", str(system.root), *as_user(steps), *entry]) as process:
        try:
            yield process
        finally:
            process.terminate()


def wait_for(is_up: Callable[[], int | None], process: subprocess.Popen[bytes]) -> int:
    """The first exit code that means that the process answers."""
    for _ in range(100):
        if (code := is_up()) is not None:
            return code
        assert process.poll() is None, process.returncode
    raise AssertionError("the process doesn't answer")


def copy(steps: list[Instruction], dist: Path, sources: list[str], place: Path) -> None:
    place.mkdir(parents=True)
    for source in sources:
        filled = containerfile.filled(source, containerfile.arguments(steps))
        folder, _, pattern = filled.rpartition("/")
        assert folder == "dist"
        found = list(dist.glob(pattern))
        assert found, source
        for path in found:
            shutil.copy(path, place)

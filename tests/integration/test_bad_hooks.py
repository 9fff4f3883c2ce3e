"""Activation commands that fail, hang, flood their output, or can't be started."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support import machines
from tests.support.endpoint import Endpoint

LOG_BYTES_MAX = 100_000


@pytest.fixture
def hook(tmp_path: Path) -> Path:
    """A command that is fine with r171; a test adds what it does with another release."""
    path = tmp_path / "hook"
    _write(path, "exit 0")
    return path


def _write(path: Path, body: str) -> None:
    path.write_text(f'#!/bin/sh\n[ "$HOLDFAST_RELEASE" = r171 ] && exit 0\n{body}\n')
    path.chmod(0o755)


def machine(folder: Path, command: str, *, timeout_s: float = 1.5) -> Endpoint:
    vendor = machines.vendor(folder, upto="r173")
    extra = (
        f'[[activation]]\nname = "engine"\ncommand = ["{command}"]\n'
        f"timeout_s = {timeout_s}\noutput_bytes_max = 2000\n"
    )
    return machines.installed(folder, vendor.url, extra=extra)


def reverted(endpoint: Endpoint, *words: str) -> str:
    """The update is reverted for activation_failed, and quarantined; its sentence."""
    done = endpoint.ctl("update")
    assert done.returncode == 1, done.stdout
    status = endpoint.status()
    state = status["state"]
    assert (state["name"], state["reason"]) == ("reverted", "activation_failed"), state
    assert [word for word in ("hook 'engine'", *words) if word not in state["sentence"]] == []
    assert [item["release"] for item in status["quarantine"]] == ["r173"]
    line = endpoint.history()[-1]
    assert (line["outcome"], line["reason"]) == ("reverted", "activation_failed")
    machines.untouched(endpoint)
    assert endpoint.log.stat().st_size < LOG_BYTES_MAX
    return str(state["sentence"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo the engine refused the pattern; exit 7", ("status 7", "the engine refused")),
        ("kill -SEGV $$", ("status -11",)),
        ("exec sleep 600", ("within 1.5 s", "killed")),
        ("trap '' TERM HUP INT; while :; do :; done", ("within 1.5 s", "killed")),
        ("yes flood; exit 3", ("within 1.5 s", "killed")),
        ("exec tr '\\0' x < /dev/zero", ("engine",)),
        ("yes flood | head -c 20000000; exit 3", ("status 3",)),
        ("head -c 20000000 /dev/zero | tr '\\0' x; exit 3", ("engine",)),
    ],
    ids=[
        "fails",
        "crashes",
        "hangs",
        "hangs on",
        "floods for ever",
        "one line for ever",
        "floods and fails",
        "one long line",
    ],
)
def test_a_hook_that_goes_wrong_reverts_the_release(
    tmp_path: Path, hook: Path, body: str, words: tuple[str, ...]
) -> None:
    _write(hook, body)
    ends = words[0].startswith("status")
    endpoint = machine(tmp_path, str(hook), timeout_s=30 if ends else 1.5)
    with machines.up(endpoint):
        began = time.monotonic()
        sentence = reverted(endpoint, *words)
        assert time.monotonic() - began < (60 if ends else 20)
    assert len(sentence) < 600


def test_a_hook_that_is_not_there_reverts_and_the_next_release_works(
    tmp_path: Path, hook: Path
) -> None:
    kept = hook.read_bytes()
    endpoint = machine(tmp_path, str(hook))
    hook.unlink()
    with machines.up(endpoint):
        reverted(endpoint, "No such file")
        hook.write_bytes(kept)
        hook.chmod(0o755)
        assert "was reverted here" in endpoint.ctl("update").stdout
        machines.Vendor(tmp_path / "vendor").ship("r175", machines.components(175))
        machines.updated(endpoint, "r175")


def test_a_hook_that_talks_too_much_and_works_is_fine(tmp_path: Path, hook: Path) -> None:
    _write(hook, "yes flood | head -c 20000000; exit 0")
    endpoint = machine(tmp_path, str(hook), timeout_s=30)
    with machines.up(endpoint):
        machines.updated(endpoint, "r173")
    assert endpoint.log.stat().st_size < LOG_BYTES_MAX


def test_a_hook_that_starts_an_engine_does_not_wait_for_its_end(tmp_path: Path, hook: Path) -> None:
    _write(hook, "sleep 8 & exit 0")
    endpoint = machine(tmp_path, str(hook))
    with machines.up(endpoint):
        machines.updated(endpoint, "r173")


def test_a_hook_that_fails_at_the_revert_too_does_not_stop_it(tmp_path: Path, hook: Path) -> None:
    endpoint = machine(tmp_path, str(hook))
    hook.write_text("#!/bin/sh\nexit 9\n")
    with machines.up(endpoint):
        reverted(endpoint, "status 9")
    assert '"settling_hook_failed"' in endpoint.log.read_text()

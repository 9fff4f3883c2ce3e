"""The example engine on real rules: what it costs, and that it obeys."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bsdiff4
import psutil
import pytest

from agent import config

pytest.importorskip("yara_x", reason="yara-x has no wheel for this platform")

from examples.yara import engine, make_rules

EXAMPLE = Path(engine.__file__).parent
ENGINE = str(EXAMPLE / "engine.py")
PACE_S = 1.0
PATIENCE_S = 40.0  # two cores shared with other tests
GOOD = (171, 173, 177)
TINY = b'// rules release 5\nrule tiny { strings: $a = "tiny marker" condition: $a }\n'

# Over all files in path order. Whoever changes rules or samples changes these,
# and measures the figures in README.md again.
RULES_DIGEST = "32abf99fd1c8de34b5085e4cf91cb85fa02755602922a14c22e66ea38ed30247"
SAMPLES_DIGEST = "c635daa906b08e162af0139adf2a1edf185282b61c2c4a3cc38b3abcfda82f71"


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rules")
    make_rules.main(["rules", str(folder)])
    return folder


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    make_rules.main(["samples", str(folder)])
    return folder


@pytest.fixture(scope="module")
def compiled(releases: Path) -> dict[int, engine.Rules]:
    return {version: engine.Rules.load(rules_of(releases, version)) for version in (*GOOD, 175)}


def rules_of(releases: Path, version: int) -> Path:
    return releases / str(version) / make_rules.RULES_FILE


def whole_round(rules: engine.Rules, folder: Path) -> engine.Round:
    *_, result = engine.scan_folder(rules, folder)
    return result


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not so within {PATIENCE_S} s"
        time.sleep(0.02)


@dataclass
class Running:
    """An engine process in `folder`, and the rules file it was told to use."""

    folder: Path
    process: subprocess.Popen[str]

    @property
    def rules(self) -> Path:
        return self.folder / "rules.yar"

    @property
    def socket(self) -> Path:
        return self.folder / "health.sock"

    def health(self) -> dict[str, Any]:
        assert self.process.poll() is None, self.process.communicate()
        try:
            return engine.ask(self.socket, timeout_s=PATIENCE_S)
        except OSError:
            return {}

    def activate(self, text: bytes) -> None:
        self.rules.write_bytes(text)
        self.process.send_signal(signal.SIGHUP)


def start(folder: Path, samples: Path) -> Running:
    arguments = ["--rules", "rules.yar", "--folder", str(samples), "--pace", str(PACE_S)]
    arguments += ["--pid-file", "engine.pid", "--health-socket", "health.sock"]
    process = subprocess.Popen(
        [sys.executable, ENGINE, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return Running(folder, process)


@pytest.fixture
def running(tmp_path: Path, samples: Path) -> Iterator[Running]:
    """An engine that answers and has no rules yet."""
    started = start(tmp_path, samples)
    until(lambda: bool(started.health()))
    yield started
    started.process.kill()
    started.process.communicate()


def cpu_share(process: psutil.Process, *, wall_s: float) -> tuple[float, bool]:
    """The share of a core it gets over `wall_s`, and whether the machine had CPU left."""
    started, before = time.monotonic(), sum(process.cpu_times()[:2])
    psutil.cpu_percent()
    time.sleep(wall_s)  # the measurement itself
    spare = psutil.cpu_percent() < 85
    return (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - started), spare


def _is_pinned(share: float, spare: bool) -> bool:
    return share > 0.7 or not spare


def test_the_generator_writes_the_same_bytes_everywhere(releases: Path, samples: Path) -> None:
    def digest(folder: Path) -> str:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()

    assert digest(releases) == RULES_DIGEST
    assert digest(samples) == SAMPLES_DIGEST


def test_a_release_is_large_and_its_incremental_small(releases: Path) -> None:
    old, new = (rules_of(releases, version).read_bytes() for version in (171, 173))
    assert len(new) > 300_000
    assert len(bsdiff4.diff(old, new)) < len(new) / 50


def test_each_release_finds_what_it_has_rules_for(
    compiled: dict[int, engine.Rules], samples: Path
) -> None:
    found = {version: whole_round(compiled[version], samples).detections for version in GOOD}
    assert [len(found[version]) for version in GOOD] == [2, 3, 5]
    assert set(found[171]) < set(found[173]) < set(found[177])
    assert "implant-table.bin: Demo_Implant_LinkedTable" in found[177]


def test_release_175_costs_more_than_twenty_times_the_cpu_of_the_good_ones(
    compiled: dict[int, engine.Rules], samples: Path
) -> None:
    good = max(whole_round(compiled[version], samples).cpu_seconds for version in GOOD)
    bad = whole_round(compiled[175], samples)
    assert bad.cpu_seconds > 20 * good
    assert bad.skipped == 0  # slow, yet within the engine's patience for each file


@pytest.mark.parametrize("version", GOOD)
def test_good_rules_leave_the_core_alone(running: Running, releases: Path, version: int) -> None:
    running.activate(rules_of(releases, version).read_bytes())
    until(lambda: running.health().get("rounds", 0) >= 1)
    share, _ = cpu_share(psutil.Process(running.process.pid), wall_s=3)
    assert share < 0.35


def test_release_175_pins_a_core_while_health_and_signals_go_on(
    running: Running, releases: Path
) -> None:
    running.activate(rules_of(releases, 175).read_bytes())
    until(lambda: running.health()["rules"] == "175")
    engine = psutil.Process(running.process.pid)
    seen = [cpu_share(engine, wall_s=3)]
    while not _is_pinned(*seen[-1]) and len(seen) < 5:  # others may work now and then
        seen.append(cpu_share(engine, wall_s=3))
    assert _is_pinned(*seen[-1]), seen
    asked = time.monotonic()
    health = running.health()
    assert time.monotonic() - asked < 5
    assert health["rounds"] == 0 or health["last_round_cpu_s"] > PACE_S  # it never rests
    running.activate(TINY)
    until(lambda: running.health()["rules"] == "5")
    until(lambda: running.health()["rounds"] >= 1)


def test_without_rules_the_engine_waits_and_says_so(running: Running) -> None:
    health = running.health()
    assert (health["rules"], health["rounds"]) == (None, 0)
    assert "rules.yar: can't be read" in str(health["load_error"])
    running.activate(TINY)
    until(lambda: running.health()["rules"] == "5")
    assert running.health()["load_error"] is None


def test_rules_that_do_not_compile_leave_the_loaded_ones_at_work(running: Running) -> None:
    running.activate(TINY)
    until(lambda: running.health()["rules"] == "5")
    running.activate(b"rule torn { condition: ")
    until(lambda: running.health()["load_error"] is not None)
    health = running.health()
    assert health["rules"] == "5"
    assert "doesn't compile" in str(health["load_error"])
    assert "release 5 stays" in str(health["load_error"])
    rounds = health["rounds"]
    until(lambda: running.health()["rounds"] > rounds)


def test_a_termination_leaves_neither_pid_file_nor_socket(running: Running) -> None:
    pid_file = running.folder / "engine.pid"
    assert int(pid_file.read_text()) == running.process.pid
    running.process.terminate()
    assert running.process.wait(PATIENCE_S) == 0
    assert not pid_file.exists()
    assert not running.socket.exists()


def test_a_second_engine_does_not_take_the_socket_of_a_living_one(
    running: Running, samples: Path
) -> None:
    second = start(running.folder, samples)
    _, said = second.process.communicate(timeout=PATIENCE_S)
    assert second.process.returncode == 1
    assert "another process listens there" in said
    assert running.health()["pid"] == running.process.pid
    assert (running.folder / "engine.pid").exists()


def test_an_engine_starts_over_what_a_killed_one_left(running: Running, samples: Path) -> None:
    running.process.kill()
    running.process.wait()
    assert running.socket.exists()
    following = start(running.folder, samples)
    try:
        until(lambda: following.health().get("pid") == following.process.pid)
    finally:
        following.process.kill()
        following.process.communicate()


def test_a_client_that_never_reads_holds_up_nobody(running: Running) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(running.socket))
        assert running.health()["pid"] == running.process.pid


def test_only_regular_files_are_scanned(tmp_path: Path) -> None:
    (tmp_path / "rules.yar").write_bytes(TINY)
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "hit.txt").write_bytes(b"tiny marker")
    (folder / "empty").touch()
    (folder / "link").symlink_to(folder / "below" / "hit.txt")
    os.mkfifo(folder / "fifo")
    result = whole_round(engine.Rules.load(tmp_path / "rules.yar"), folder)
    assert (result.files, result.skipped) == (2, 0)
    assert result.detections == ["hit.txt: tiny"]


def test_a_file_that_takes_too_long_is_given_up_and_the_round_goes_on(
    releases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "FILE_TIMEOUT_S", 1)
    (tmp_path / "1-slow.log").write_bytes(b"beacon=lost\n" * 40_000)
    (tmp_path / "2-quick.txt").write_bytes(make_rules.marker(12))
    result = whole_round(engine.Rules.load(rules_of(releases, 175)), tmp_path)
    assert (result.files, result.skipped) == (1, 1)
    assert result.detections == ["2-quick.txt: Demo_Fenzimfen_0012"]


def test_asking_an_engine_that_is_not_there_exits_non_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert engine.main(["--ask", str(tmp_path / "health.sock")]) == 1
    assert "no answer" in capsys.readouterr().err


def test_asking_a_running_engine_prints_its_health(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    assert engine.main(["--ask", str(running.socket)]) == 0
    assert json.loads(capsys.readouterr().out)["pid"] == running.process.pid


def test_without_yara_x_the_engine_says_what_is_missing() -> None:
    program = f"import runpy, sys; sys.modules['yara_x'] = None; runpy.run_path({ENGINE!r})"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "pip install yara-x" in ended.stderr


def test_the_ready_configuration_is_one_the_agent_takes() -> None:
    ready = config.load(EXAMPLE / "config.toml")
    assert ready.watch[0].probe is not None
    assert ready.watch[0].pid_file == ready.activation[0].pid_file

"""Publish, fetch, rebuild, flip, watch, go back: real processes, real signatures."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from tests.support.endpoint import Endpoint
from tests.support.vendor import Vendor

BASE = random.Random(171).randbytes(200_000)  # nothing that compresses


def test_a_release_is_installed_updated_by_incremental_and_rolled_back(tmp_path: Path) -> None:
    vendor = Vendor(tmp_path / "vendor")
    vendor.ship("r171", {"virus-pattern": ("171", BASE)})
    endpoint = Endpoint(tmp_path / "endpoint", url=vendor.url, root=vendor.root)
    with endpoint.running():
        endpoint.wait_for_release("r171")
        vendor.ship("r173", {"virus-pattern": ("173", BASE[:1000] + b"173" + BASE[1000:])})
        updated = endpoint.ctl("update")
        assert updated.returncode == 0, updated.stderr
        status = endpoint.status()
        assert status["release"] == "r173"
        assert endpoint.slot_problems() == []
        last = endpoint.history()[-1]
        assert last["outcome"] == "committed"
        assert last["wire_bytes"] < last["full_bytes"] / 100
        assert endpoint.ctl("rollback").returncode == 0
        assert endpoint.status()["release"] == "r171"
        assert endpoint.slot_problems() == []
        held = endpoint.ctl("update")
        assert "was reverted here" in held.stdout
        assert endpoint.ctl("quarantine", "clear").returncode == 0
        endpoint.ctl("update")
        assert endpoint.status()["release"] == "r173"


def test_a_release_that_pins_its_engine_is_reverted_and_quarantined(tmp_path: Path) -> None:
    vendor = Vendor(tmp_path / "vendor")
    engine = tmp_path / "engine.py"
    engine.write_text(
        "import os, sys, time, pathlib\n"
        "pathlib.Path(sys.argv[2]).write_text(str(os.getpid()))\n"
        "while True:\n"
        "    text = pathlib.Path(sys.argv[1]).read_text() if os.path.exists(sys.argv[1]) else ''\n"
        "    end = time.monotonic() + 0.05\n"
        "    while 'spin' in text and time.monotonic() < end: pass\n"
        "    if 'spin' not in text: time.sleep(0.05)\n"
    )
    import subprocess

    endpoint_folder = tmp_path / "endpoint"
    pid_file = tmp_path / "engine.pid"
    endpoint = Endpoint(
        endpoint_folder,
        url=vendor.url,
        root=vendor.root,
        health={"warmup_s": 0.5, "window_s": 2.0, "probation_s": 3.0, "baseline_s": 2.0},
        extra=f'[[watch]]\nname = "engine"\npid_file = "{pid_file}"\n',
    )
    content = endpoint.layout.current / "virus-pattern" / "virus-pattern.dat"
    process = subprocess.Popen([sys.executable, str(engine), str(content), str(pid_file)])
    try:
        vendor.ship("r171", {"virus-pattern": ("171", b"calm" * 100)})
        with endpoint.running():
            endpoint.wait_for_release("r171", seconds=60)
            vendor.ship("r175", {"virus-pattern": ("175", b"spin" * 100)})
            assert endpoint.ctl("update").returncode == 1
            status = endpoint.status()
            assert status["release"] == "r171"
            assert status["state"]["name"] == "reverted"
            assert status["state"]["reason"] == "cpu_pinned"
            assert [item["release"] for item in status["quarantine"]] == ["r175"]
            evidence = endpoint.layout.evidence / status["quarantine"][0]["evidence"]
            assert evidence.exists()
            assert endpoint.slot_problems() == []
            vendor.ship("r177", {"virus-pattern": ("177", b"calm again" * 50)})
            assert endpoint.ctl("update").returncode == 0
            assert endpoint.status()["release"] == "r177"
    finally:
        process.kill()
        process.wait()

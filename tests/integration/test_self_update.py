"""The agent's program is a component: tried, compared with the one before it, reverted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support import agentprogram
from tests.support.agentprogram import COMPONENT
from tests.support.endpoint import Endpoint
from tests.support.vendor import Content, Vendor

KINDS = {COMPONENT: "program"}
PATTERN = b"pattern" * 100


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    return Vendor(tmp_path / "vendor")


def program(tmp_path: Path, version: str, fault: str | None = None) -> tuple[str, Content]:
    tree = agentprogram.copy(tmp_path / f"program-{version}", version=version)
    return version, agentprogram.spoil(tree, fault) if fault else tree


def ship(vendor: Vendor, release: str, **components: tuple[str, Content]) -> None:
    named = {name.replace("_", "-"): given for name, given in components.items()}
    vendor.ship(release, named, kinds={name: KINDS.get(name, "pattern") for name in named})


def machine(tmp_path: Path, vendor: Vendor, *, answer_s: float = 20.0) -> Endpoint:
    return Endpoint(
        tmp_path / "endpoint",
        url=vendor.url,
        root=vendor.root,
        extra=agentprogram.configured(answer_s=answer_s),
    )


def reasons(endpoint: Endpoint) -> list[tuple[str, str]]:
    return [(item["outcome"], item["reason"]) for item in endpoint.history()]


def test_a_new_program_is_kept_and_does_the_next_update(tmp_path: Path, vendor: Vendor) -> None:
    ship(vendor, "r171", virus_pattern=("171", PATTERN))
    endpoint = machine(tmp_path, vendor)
    with endpoint.running():
        endpoint.wait_for_release("r171", seconds=60)
        ship(vendor, "r173", agent_program=program(tmp_path, "0.2.0"))
        assert endpoint.ctl("update").returncode == 0, endpoint.log.read_text()[-3000:]
        status = endpoint.wait_for(lambda seen: seen["fetcher"]["version"] == "0.2.0")
        assert status["program"] == {
            "component": COMPONENT,
            "slot": status["active_slot"],
            "version": "0.2.0",
            "problem": "",
        }
        assert "fetcher and stager from slot" in endpoint.ctl("status").stdout
        ship(vendor, "r175", virus_pattern=("175", PATTERN + b"175"))
        assert endpoint.ctl("update").returncode == 0
        status = endpoint.wait_for(lambda seen: seen["fetcher"]["version"] == "0.2.0")
        assert status["release"] == "r175"
        assert status["program"]["slot"] == status["active_slot"]
        assert endpoint.slot_problems() == []  # not even a compiled module was written there
        assert endpoint.ctl("verify").returncode == 0
        assert endpoint.ctl("rollback").returncode == 0
        endpoint.wait_for(lambda seen: seen["fetcher"]["version"] == "0.2.0")
        assert endpoint.status()["release"] == "r173"


@pytest.mark.parametrize(
    ("fault", "reason", "answer_s"),
    [
        ("crash", "program_not_started", 20.0),
        ("stager", "program_not_started", 20.0),
        ("blind", "program_cut_off", 20.0),
        ("hang", "program_silent", 4.0),
    ],
)
@pytest.mark.timeout(300)
def test_a_program_that_fails_where_the_prior_one_doesnt_is_reverted(
    tmp_path: Path, vendor: Vendor, fault: str, reason: str, answer_s: float
) -> None:
    ship(vendor, "r171", virus_pattern=("171", PATTERN), agent_program=program(tmp_path, "0.2.0"))
    endpoint = machine(tmp_path, vendor, answer_s=answer_s)
    with endpoint.running():
        endpoint.wait_for_release("r171", seconds=60)
        ship(vendor, "r173", agent_program=program(tmp_path, "0.3.0", fault))
        known = len(reasons(endpoint))
        endpoint.ctl("update", "--no-wait")
        endpoint.wait_for(lambda _: len(reasons(endpoint)) > known, seconds=150)
        assert reasons(endpoint)[-1] == ("reverted", reason)
        status = endpoint.wait_for(lambda seen: seen["fetcher"]["version"] == "0.2.0")
        assert status["release"] == "r171"
        assert [set(item["changed"]) for item in status["quarantine"]] == [{COMPONENT}]
        assert endpoint.slot_problems() == []
        ship(vendor, "r175", agent_program=program(tmp_path, "0.4.0"))
        assert endpoint.ctl("update").returncode == 0
        endpoint.wait_for(lambda seen: seen["fetcher"]["version"] == "0.4.0")


def test_a_source_that_is_gone_for_both_programs_lengthens_the_trial(
    tmp_path: Path, vendor: Vendor
) -> None:
    ship(vendor, "r171", virus_pattern=("171", PATTERN))
    endpoint = machine(tmp_path, vendor)
    gone = vendor.folder / "feed-gone"

    def in_trial(seen: dict[str, Any]) -> bool:
        return seen["trial"] is not None

    # A hook in the trial takes the source away: nobody can reach it then.
    endpoint.configure(
        vendor.url,
        extra=agentprogram.configured()
        + f'[[activation]]\nname = "cut"\ncommand = ["/bin/sh", "-c", '
        f"'test $HOLDFAST_RELEASE != r173 || mv {vendor.feed} {gone}']\n",
    )
    with endpoint.running():
        endpoint.wait_for_release("r171", seconds=60)
        ship(vendor, "r173", agent_program=program(tmp_path, "0.2.0"))
        assert endpoint.ctl("update", "--no-wait").returncode == 0
        endpoint.wait_for(in_trial, seconds=60)
        status = endpoint.wait_for(
            lambda seen: (
                in_trial(seen)
                and any(
                    gate["name"] == "program_unproven"
                    and "so does the prior one" in gate["sentence"]
                    for gate in seen["trial"]["gates"]
                )
            ),
            seconds=60,
        )
        assert status["trial"]["healthy_s"] == 0
        assert "Held by program_unproven" in endpoint.ctl("explain").stdout
        shutil.move(gone, vendor.feed)
        endpoint.wait_for_release("r173", seconds=60)
        assert reasons(endpoint)[-1] == ("committed", "healthy")


def test_a_program_for_another_guardian_is_never_started(tmp_path: Path, vendor: Vendor) -> None:
    ship(vendor, "r171", virus_pattern=("171", PATTERN))
    endpoint = machine(tmp_path, vendor)
    with endpoint.running():
        endpoint.wait_for_release("r171", seconds=60)
        ship(vendor, "r173", agent_program=program(tmp_path, "0.2.0", "foreign"))
        refused = endpoint.ctl("update")
        assert refused.returncode == 1
        assert "speaks protocol 99" in refused.stdout
        assert reasons(endpoint)[-1] == ("failed", "program_incompatible")
        assert "was reverted here" in endpoint.ctl("update").stdout  # not fetched again
        assert endpoint.status()["release"] == "r171"


def test_a_program_that_stops_working_at_rest_is_replaced_by_the_packages(
    tmp_path: Path, vendor: Vendor
) -> None:
    ship(vendor, "r171", virus_pattern=("171", PATTERN), agent_program=program(tmp_path, "0.2.0"))
    endpoint = machine(tmp_path, vendor)
    with endpoint.running():
        endpoint.wait_for_release("r171", seconds=60)
    spoiled = endpoint.layout.slot("a") / COMPONENT / "agent" / "fetcher" / "__main__.py"
    spoiled.chmod(0o644)
    spoiled.write_text("raise SystemExit(3)\n")
    with endpoint.running():
        status = endpoint.wait_for(
            lambda seen: seen["program"]["problem"] and seen["fetcher"]["version"] == "0.1.0",
            seconds=60,
        )
        assert status["program"]["slot"] is None
        assert status["standing"]["code"] in {1, 2}
        assert "The package's own program 0.1.0" in endpoint.ctl("explain").stdout
        # What is damaged is fetched again by the package's own, and used again then.
        endpoint.wait_for(
            lambda seen: seen["fetcher"]["version"] == "0.2.0" and not seen["program"]["problem"],
            seconds=60,
        )
        assert endpoint.slot_problems() == []


def falling_sick(tmp_path: Path) -> tuple[str, Content]:
    """Program 0.2.0, whose checks die once there is a file called `sick`."""
    version, tree = program(tmp_path, "0.2.0")
    assert isinstance(tree, Path)
    cycle = tree / "agent" / "fetcher" / "cycle.py"
    last = 'if __name__ == "__main__":\n'
    head, found, end = cycle.read_text().partition(last)
    assert found
    sick = str(tmp_path / "sick")
    dies = f"import os\nif os.path.exists({sick!r}):\n    raise SystemExit(9)\n\n"
    cycle.write_text(head + dies + last + end)
    return version, tree


@pytest.mark.parametrize(("failures", "way_out"), [(1, "repair"), (3, "update")])
def test_a_program_that_can_fetch_no_more_is_helped_by_repair_and_after_a_while_by_itself(
    tmp_path: Path, vendor: Vendor, failures: int, way_out: str
) -> None:
    ship(vendor, "r171", virus_pattern=("171", PATTERN), agent_program=falling_sick(tmp_path))
    endpoint = machine(tmp_path, vendor)
    with endpoint.running():
        endpoint.wait_for_release("r171", seconds=60)
        endpoint.wait_for(lambda seen: seen["fetcher"]["version"] == "0.2.0")
        (tmp_path / "sick").touch()
        ship(vendor, "r173", agent_program=program(tmp_path, "0.3.0"))
        for _ in range(failures):
            failed = endpoint.ctl("update")
            assert failed.returncode == 1
            assert "ended with status 9" in failed.stdout
        if way_out == "update":
            status = endpoint.wait_for(lambda seen: seen["fetcher"]["version"] == "0.1.0")
            assert "3 times in a row" in status["program"]["problem"]
        helped = endpoint.ctl(way_out)
        assert helped.returncode == 0, helped.stdout
        assert endpoint.status()["release"] == "r173"
        endpoint.wait_for(lambda seen: seen["fetcher"]["version"] == "0.3.0")

"""Plans: what a region falls back to, what is refused, which keys are needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from feed.rollout import RolloutPlan, RolloutState
from publisher.errors import RefusedError, SigningError
from tests.support.vendor import Vendor


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    made = Vendor(tmp_path / "vendor", regions=("global", "japan"))
    for number in (1, 2, 3):
        made.release(f"r{number}", {"pattern": (str(number), b"content %d" % number)})
        made.publish()
    return made


def _said(plans: list[RolloutPlan]) -> list[tuple[str, str, str, str | None]]:
    return [(plan.region, plan.state.value, plan.release, plan.fallback) for plan in plans]


def test_everyone_everywhere_is_offered_it_now(vendor: Vendor) -> None:
    plans = vendor.offer("r1")
    assert _said(plans) == [
        ("global", "rolling", "r1", None),
        ("japan", "rolling", "r1", None),
    ]
    assert all(not plan.phases for plan in plans)


def test_the_release_before_is_the_fallback(vendor: Vendor) -> None:
    vendor.offer("r1")
    assert _said(vendor.offer("r2", "japan")) == [("japan", "rolling", "r2", "r1")]
    assert _said(vendor.offer("r3"))[0] == ("global", "rolling", "r3", "r1")


def test_a_halted_release_is_no_fallback(vendor: Vendor) -> None:
    vendor.offer("r1")
    vendor.offer("r2")
    vendor.halt()
    assert _said(vendor.offer("r3"))[0] == ("global", "rolling", "r3", "r1")


def test_a_withdrawn_release_is_no_fallback(vendor: Vendor) -> None:
    vendor.offer("r2")
    vendor.withdraw(to="r1")
    assert _said(vendor.offer("r3"))[0] == ("global", "rolling", "r3", "r1")


def test_a_release_does_not_fall_back_to_itself(vendor: Vendor) -> None:
    vendor.offer("r1")
    assert _said(vendor.offer("r1"))[0] == ("global", "rolling", "r1", None)
    vendor.offer("r2")
    vendor.withdraw(to="r1")
    assert _said(vendor.offer("r1"))[0] == ("global", "rolling", "r1", None)


def test_halt_and_resume_are_everywhere_unless_a_region_is_named(vendor: Vendor) -> None:
    vendor.offer("r1")
    assert _said(vendor.halt("too hot", "japan")) == [("japan", "halted", "r1", None)]
    assert [plan.region for plan in vendor.halt("too hot")] == ["global"]
    resumed = vendor.resume()
    assert {plan.state for plan in resumed} == {RolloutState.ROLLING}
    assert {plan.reason for plan in resumed} == {""}


def test_withdraw_reaches_the_regions_that_are_past_it(vendor: Vendor) -> None:
    vendor.offer("r1", "japan")
    vendor.offer("r3", "global")
    plans = vendor.withdraw(to="r1", reason="burns a core")
    assert _said(plans) == [("global", "withdrawn", "r3", "r1")]
    assert plans[0].reason == "burns a core"


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda v: v.offer("r9"), r"r9 isn't published \(the newest are: r1, r2, r3\)"),
        (lambda v: v.offer("r1", "mars"), r"region mars isn't configured; add it to `regions`"),
        (lambda v: v.halt(), "nothing is being rolled out; see `publisher rollout show`"),
        (lambda v: v.resume("japan"), "nothing is halted in japan"),
        (lambda v: v.withdraw(to="r9"), "r9 isn't published"),
        (lambda v: v.withdraw(to="r3"), "no region is on a release newer than r3"),
    ],
)
def test_what_makes_no_sense_is_refused_and_signs_nothing(
    vendor: Vendor, ask: Callable[[Vendor], object], said: str
) -> None:
    before = (vendor.feed / "metadata" / "timestamp.json").read_bytes()
    with pytest.raises(RefusedError, match=said):
        ask(vendor)
    assert (vendor.feed / "metadata" / "timestamp.json").read_bytes() == before


def test_a_rollout_needs_no_other_keys_than_its_own_and_the_online_ones(vendor: Vendor) -> None:
    for role in ("root", "targets", "releases", "pattern"):
        vendor.key_file(role).unlink()
    vendor.offer("r2")
    vendor.halt()
    vendor.resume()
    vendor.withdraw(to="r1")


def test_without_the_rollout_key_nothing_is_written(vendor: Vendor) -> None:
    vendor.key_file("rollout").unlink()
    with pytest.raises(SigningError, match="keys rotate rollout --lost"):
        vendor.offer("r1")
    assert not (vendor.feed / "targets" / "rollout").exists()

"""Preparing a release: what is refused, reused, carried over, and left out."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from feed import delta
from feed.delta import Effort
from feed.errors import ManifestError
from feed.manifest import Form, Kind, Release
from feed.rollout import RolloutState
from publisher import home, release, staging
from publisher.errors import DamageError, HomeError, RefusedError, SigningError
from publisher.settings import ComponentInput, HealthInput, ReleaseInput
from tests.support.vendor import Vendor

OLD = random.Random(1).randbytes(5_000)
NEW = OLD + b"more"


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    made = Vendor(tmp_path / "vendor")
    made.ship("r171", {"pattern": ("171", OLD), "engine": ("1.0", b"engine")})
    return made


def _component(release: Release, name: str) -> tuple[str, tuple[str, ...]]:
    found = release.component(name)
    assert found is not None
    return found.version, found.predecessors


def test_a_version_never_changes_its_content(vendor: Vendor) -> None:
    with pytest.raises(RefusedError) as raised:
        vendor.release("r173", {"pattern": ("171", NEW)})
    digests = {word.strip(".;") for word in str(raised.value).split() if len(word) >= 64}
    assert len(digests) == 2
    assert staging.listed(vendor.folder / "staging") == []


def test_an_older_version_is_refused(vendor: Vendor) -> None:
    with pytest.raises(RefusedError, match="169 isn't newer than the published 171"):
        vendor.release("r173", {"pattern": ("169", NEW)})


def test_another_spelling_of_a_version_is_refused(vendor: Vendor) -> None:
    with pytest.raises(RefusedError, match=r"1\.0\.0 isn't newer than the published 1\.0"):
        vendor.release("r173", {"engine": ("1.0.0", b"engine")})


def test_an_older_version_with_its_own_content_is_reused(vendor: Vendor) -> None:
    vendor.ship("r173", {"pattern": ("173", NEW)})
    staged = vendor.release("back", {"pattern": ("171", OLD)})
    report = next(item for item in staged.components if item.name == "pattern")
    assert report.origin == "reused"
    assert [target.role for target in staged.targets] == ["releases"]


def test_a_component_that_is_not_named_is_carried_over(vendor: Vendor) -> None:
    staged = vendor.release("r173", {"pattern": ("173", NEW)})
    assert _component(staged.release, "engine") == ("1.0", ())
    assert {item.name: item.origin for item in staged.components} == {
        "engine": "carried",
        "pattern": "new",
    }


def test_only_drops_what_is_not_named(vendor: Vendor) -> None:
    staged = vendor.release("r173", {"pattern": ("173", NEW)}, only=True)
    assert [item.name for item in staged.release.components] == ["pattern"]


def test_carried_components_keep_their_predecessors(vendor: Vendor) -> None:
    vendor.ship("r173", {"pattern": ("173", NEW)})
    staged = vendor.release("r174", {"engine": ("2.0", b"engine two")})
    assert _component(staged.release, "pattern") == ("173", ("171",))


def test_an_incremental_as_large_as_the_full_file_is_left_out(vendor: Vendor) -> None:
    other = random.Random(2).randbytes(3_000)
    staged = vendor.release("r173", {"pattern": ("173", other)})
    report = next(item for item in staged.components if item.name == "pattern")
    assert [made.keep for made in report.increments] == [False]
    assert _component(staged.release, "pattern") == ("173", ())
    assert not [target for target in staged.targets if target.path.endswith(".delta")]


def test_an_incremental_that_is_not_worth_it_is_left_out(vendor: Vendor) -> None:
    mixed = OLD[:2_000] + random.Random(2).randbytes(3_000)  # three fifths are new
    vendor.configure(worth_share=0.5)
    (report,) = vendor.release("r173", {"pattern": ("173", mixed)}, only=True).components
    assert [made.why_not for made in report.increments] == ["over 50% of the full"]
    assert 0.6 < report.increments[0].share < 0.7
    vendor.configure(worth_share=0.7)
    (report,) = vendor.release("r173", {"pattern": ("173", mixed)}, only=True).components
    assert [made.keep for made in report.increments] == [True]


@pytest.mark.parametrize(
    ("lines", "given", "passed"),
    [
        ({}, None, Effort.USUAL),
        ({"effort": "'quick'"}, None, Effort.QUICK),
        ({"effort": "'quick'"}, Effort.THOROUGH, Effort.THOROUGH),
    ],
)
def test_the_effort_reaches_the_codec(
    vendor: Vendor,
    monkeypatch: pytest.MonkeyPatch,
    lines: dict[str, str],
    given: Effort | None,
    passed: Effort,
) -> None:
    efforts = []
    create = delta.create

    def watched(*files: Path, effort: Effort, memory_limit_bytes: int, threads: int) -> str:
        efforts.append(effort)
        return create(*files, effort=effort, memory_limit_bytes=memory_limit_bytes, threads=threads)

    monkeypatch.setattr(delta, "create", watched)
    vendor.configure(workers=1, **lines)
    _prepare(vendor, lambda: None, effort=given)
    assert efforts == [passed]


def test_the_memory_limit_reaches_the_codec(
    vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []
    create = delta.create

    def watched(*files: Path, effort: Effort, memory_limit_bytes: int, threads: int) -> str:
        limits.append(memory_limit_bytes)
        return create(*files, effort=effort, memory_limit_bytes=memory_limit_bytes, threads=threads)

    monkeypatch.setattr(delta, "create", watched)
    vendor.configure(workers=1, memory_limit_mb=512)
    vendor.release("r173", {"pattern": ("173", NEW)})
    assert 0 < limits[0] < 512 << 20


def test_a_folder_becomes_a_tree(vendor: Vendor, tmp_path: Path) -> None:
    (tmp_path / "tree" / "bin").mkdir(parents=True)
    (tmp_path / "tree" / "bin" / "scan").write_text("scan")
    staged = vendor.release("r173", {"engine": ("2.0", tmp_path / "tree")})
    found = staged.release.component("engine")
    assert found is not None
    assert (found.form, found.filename) == (Form.TREE, "")


def test_a_tree_that_no_agent_would_take_is_refused(vendor: Vendor, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to("/etc/passwd")
    with pytest.raises(ManifestError, match="link"):
        vendor.release("r173", {"engine": ("2.0", tmp_path / "tree")})
    assert list((vendor.folder / "staging").iterdir()) == []


@pytest.mark.parametrize(
    ("release_id", "components", "said"),
    [
        ("a/b", {"pattern": ("173", NEW)}, "release id 'a/b'"),
        ("r171", {"pattern": ("173", NEW)}, "r171 is already published"),
        ("r173", {"rollout": ("173", NEW)}, "no role's name"),
        ("r173", {"pattern": ("173", Path("/nowhere"))}, "/nowhere is no file or folder"),
    ],
)
def test_what_cannot_be_released_is_refused(
    vendor: Vendor, release_id: str, components: dict[str, tuple[str, bytes | Path]], said: str
) -> None:
    with pytest.raises(RefusedError, match=said):
        vendor.release(release_id, components)


def test_a_version_that_does_not_parse_is_refused(vendor: Vendor) -> None:
    with pytest.raises(ManifestError, match="version 'new' doesn't parse"):
        vendor.release("r173", {"pattern": ("new", NEW)})


def test_a_file_name_that_windows_refuses_is_refused(vendor: Vendor) -> None:
    with pytest.raises(RefusedError, match=r"'con'.*give `filename`"):
        vendor.release("r173", {"pattern": ("173", NEW)}, filenames={"pattern": "con"})


def test_a_first_release_needs_components(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="has no components; add --component"):
        Vendor(tmp_path / "vendor").release("r1", {})


def test_a_health_policy_enters_the_manifest(vendor: Vendor) -> None:
    staged = vendor.release(
        "r173", {"pattern": ("173", NEW)}, health=HealthInput(warmup_s=2.0, tries=1)
    )
    assert staged.release.health.warmup_s == 2.0
    assert staged.release.health.tries == 1


def test_a_missing_targets_key_is_noticed_before_anything_is_built(vendor: Vendor) -> None:
    vendor.key_file("targets").unlink()
    vendor.release("r173", {"pattern": ("173", NEW)})
    with pytest.raises(SigningError, match="will need targets's key"):
        vendor.release("r174", {"cleanup": ("1", b"new component")})


def test_preparing_again_replaces_the_earlier_try(vendor: Vendor) -> None:
    vendor.release("r173", {"pattern": ("173", NEW)})
    vendor.release("r173", {"pattern": ("173", NEW + b"!")})
    assert vendor.inventory().staged == ("r173",)
    vendor.publish()
    assert vendor.inventory().components[1].full_bytes == len(NEW) + 1


def test_a_damaged_published_base_is_noticed(vendor: Vendor) -> None:
    (full,) = (vendor.feed / "targets/components/pattern/171").glob("*.full")
    full.write_bytes(b"damaged")
    with pytest.raises(DamageError, match="isn't what was signed"):
        vendor.release("r173", {"pattern": ("173", NEW)})


class Interrupting:
    """A progress that does something else at the first step."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action: Callable[[], object] | None = action

    def expect(self, steps: int, *, size: int = 0) -> None:
        """Nothing."""

    def begin(self, name: str) -> None:
        """Nothing."""

    def step(self, text: str, *, size: int = 0, begun_as: str = "") -> None:
        action, self._action = self._action, None
        if action:
            action()


def _prepare(vendor: Vendor, action: Callable[[], object], *, effort: Effort | None = None) -> None:
    path = vendor.folder.parent / "new.ptn"
    path.write_bytes(NEW)
    item = ComponentInput(name="pattern", kind=Kind.PATTERN, version="173", path=str(path))
    desk = home.look(vendor.folder)
    wanted = ReleaseInput(components=(item,))
    release.prepare(desk, "r173", wanted, effort=effort, progress=Interrupting(action))


def test_a_rollout_is_halted_while_a_release_is_being_built(vendor: Vendor) -> None:
    _prepare(vendor, lambda: vendor.halt("burns a core"))
    assert vendor.inventory().rollouts[0].state is RolloutState.HALTED
    vendor.publish("r173")
    assert vendor.inventory().rollouts[0].state is RolloutState.HALTED


def test_the_heartbeat_beats_while_a_release_is_being_built(vendor: Vendor) -> None:
    _prepare(vendor, vendor.refresh)


def test_one_release_is_prepared_at_a_time(vendor: Vendor) -> None:
    with pytest.raises(HomeError, match="another publisher is preparing a release"):
        _prepare(vendor, lambda: vendor.release("r174", {"pattern": ("174", NEW)}))
    with pytest.raises(HomeError, match="another publisher is preparing a release"):
        _prepare(vendor, vendor.publish)


def test_the_heartbeat_releases_nothing(vendor: Vendor) -> None:
    vendor.release("r173", {"pattern": ("173", NEW)})
    assert vendor.refresh().signed == ("timestamp",)
    assert [item.id for item in vendor.inventory().releases] == ["r171"]


def test_what_is_too_large_for_an_incremental_is_said(
    vendor: Vendor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(delta, "SIZE_MAX", 100)
    staged = vendor.release("r173", {"pattern": ("173", NEW)})
    report = next(item for item in staged.components if item.name == "pattern")
    assert [made.format for made in report.increments] == [""]


def test_no_incrementals_are_made_when_none_are_wanted(vendor: Vendor) -> None:
    vendor.configure(incrementals_kept=0)
    staged = vendor.release("r173", {"pattern": ("173", NEW)})
    assert _component(staged.release, "pattern") == ("173", ())

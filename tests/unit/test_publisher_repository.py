"""The signed metadata: what is loaded has to verify, what is saved too."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata

from feed import durable
from publisher import home, setup
from publisher.errors import DamageError, HomeError, RefusedError, SettingsError, SigningError
from tests.support.vendor import Vendor


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    made = Vendor(tmp_path / "vendor")
    made.ship("r1", {"pattern": ("1", b"one")})
    return made


def _metadata(vendor: Vendor) -> Path:
    return vendor.feed / "metadata"


def _newest(vendor: Vendor, role: str) -> Path:
    files = _metadata(vendor).glob(f"*.{role}.json")
    return max(files, key=lambda path: int(path.name.split(".")[0]))


def test_metadata_altered_on_disk_is_never_signed_again(vendor: Vendor) -> None:
    path = _newest(vendor, "targets")
    path.write_bytes(path.read_bytes().replace(b'"terminating":true', b'"terminating":false'))
    with pytest.raises(DamageError, match="targets was signed by 0/1 keys"):
        vendor.publish()


def test_metadata_that_is_missing_or_rubbish_is_named(vendor: Vendor) -> None:
    path = _newest(vendor, "snapshot")
    path.write_bytes(b"rubbish")
    with pytest.raises(DamageError, match=r"snapshot\.json: not TUF metadata"):
        vendor.publish()
    path.unlink()
    with pytest.raises(DamageError, match=r"snapshot\.json: can't be read \(No such file"):
        vendor.publish()


def test_a_feed_without_a_root_is_named(vendor: Vendor) -> None:
    for path in _metadata(vendor).glob("*.root.json"):
        path.unlink()
    with pytest.raises(DamageError, match=r"there is no 1\.root\.json"):
        vendor.publish()


def test_a_folder_without_a_desk_is_named(tmp_path: Path) -> None:
    with pytest.raises(HomeError, match="run `publisher init` there"):
        home.look(tmp_path)
    with pytest.raises(HomeError, match="doesn't exist"), home.work(tmp_path / "nowhere"):
        pass


def test_two_publishers_cannot_work_in_one_folder(vendor: Vendor) -> None:
    with vendor.desk(), pytest.raises(HomeError, match="another publisher is changing the feed"):
        vendor.publish()


def test_looking_needs_no_lock(vendor: Vendor) -> None:
    with vendor.desk():
        assert vendor.inventory().releases[0].id == "r1"


def test_a_desk_is_never_overwritten(vendor: Vendor) -> None:
    before = vendor.root
    with pytest.raises(HomeError, match="nothing was changed"):
        setup.create(vendor.folder)
    assert vendor.root == before


def test_a_threshold_above_the_number_of_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="threshold of 3 can't be reached with 2 root keys"):
        setup.create(tmp_path / "vendor", root_keys=2, root_threshold=3)
    assert not (tmp_path / "vendor").exists()


def test_a_region_that_is_no_file_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--region: regions"):
        setup.create(tmp_path / "vendor", regions=("a/b",))


def test_a_heartbeat_signs_the_timestamp_alone(vendor: Vendor) -> None:
    assert vendor.publish().signed == ("timestamp",)


def test_a_heartbeat_signs_what_expires_soon(vendor: Vendor) -> None:
    vendor.now_offset = timedelta(days=11)
    assert vendor.publish().signed == ("snapshot", "timestamp")
    vendor.now_offset = timedelta(days=150)
    assert vendor.publish().signed == (
        *("pattern", "releases", "rollout"),
        *("targets", "snapshot", "timestamp"),
    )
    vendor.now_offset = timedelta(days=300)
    assert "root" in vendor.publish().signed


def test_a_heartbeat_without_an_offline_key_warns_and_goes_on(vendor: Vendor) -> None:
    vendor.key_file("root").unlink()
    vendor.now_offset = timedelta(days=300)
    done = vendor.publish()
    assert "timestamp" in done.signed
    assert "root" not in done.signed
    (warning,) = done.warnings
    assert "root expires in 64 days and its key isn't here" in warning


def test_without_the_timestamp_key_nothing_is_published(vendor: Vendor) -> None:
    vendor.key_file("timestamp").unlink()
    before = (_metadata(vendor) / "timestamp.json").read_bytes()
    vendor.release("r2", {"pattern": ("2", b"two")})
    with pytest.raises(SigningError, match="keys rotate timestamp --lost"):
        vendor.publish()
    assert (_metadata(vendor) / "timestamp.json").read_bytes() == before
    assert vendor.inventory().staged == ("r2",)


def test_a_root_with_a_threshold_is_signed_by_that_many_keys(tmp_path: Path) -> None:
    vendor = Vendor(tmp_path / "vendor", root_keys=3, root_threshold=2)
    assert len(Metadata.from_bytes(vendor.root).signatures) == 3
    first, *_ = sorted((vendor.folder / "keys").glob("root-*.pem"))
    first.unlink()
    vendor.rotate("timestamp")
    newest = Metadata.from_bytes(_newest(vendor, "root").read_bytes())
    assert len(newest.signatures) == 2


def test_a_key_of_several_has_to_be_named_to_be_replaced(tmp_path: Path) -> None:
    vendor = Vendor(tmp_path / "vendor", root_keys=2, root_threshold=1)
    with pytest.raises(RefusedError, match="name one of them with --key"):
        vendor.rotate("root")
    old = Metadata.from_bytes(vendor.root).signed.roles["root"].keyids[0]
    assert vendor.rotate("root", keyid=old[:10]).old == old


def test_too_few_root_keys_are_noticed_before_a_key_is_made(tmp_path: Path) -> None:
    vendor = Vendor(tmp_path / "vendor")
    keys = sorted((vendor.folder / "keys").iterdir())
    with pytest.raises(SigningError, match="no client can follow"):
        vendor.rotate("root", lost=True)
    vendor.key_file("root").rename(tmp_path / "safe.pem")
    with pytest.raises(SigningError, match="bring the missing keys back"):
        vendor.rotate("timestamp")
    assert sorted((vendor.folder / "keys").iterdir()) == [
        path for path in keys if not path.name.startswith("root-")
    ]


def test_a_missing_key_is_replaced_only_as_lost(vendor: Vendor) -> None:
    vendor.key_file("rollout").unlink()
    with pytest.raises(SigningError, match="add --lost if it is gone for good"):
        vendor.rotate("rollout")
    assert vendor.rotate("rollout", lost=True).deleted is False


def test_a_manifest_altered_on_disk_is_named(vendor: Vendor) -> None:
    (path,) = (vendor.feed / "targets" / "releases").glob("*.json")
    path.write_bytes(b"{}")
    with pytest.raises(DamageError, match=r"r1\.json: isn't what was signed"):
        vendor.inventory()
    path.unlink()
    with pytest.raises(DamageError, match=r"r1\.json: can't be read"):
        vendor.inventory()


def test_an_unknown_signature_is_not_excused_by_an_earlier_root(vendor: Vendor) -> None:
    vendor.rotate("root")
    path = _metadata(vendor) / "timestamp.json"
    path.write_bytes(path.read_bytes().replace(b'"version":3', b'"version":9'))
    with pytest.raises(DamageError, match="timestamp was signed by 0/1 keys"):
        vendor.publish()


def test_a_role_that_does_not_exist_has_no_key_to_replace(vendor: Vendor) -> None:
    with pytest.raises(RefusedError, match="no role 'mirror'; they are root, targets"):
        vendor.rotate("mirror")


def test_an_interrupted_publish_leaves_no_second_key_for_a_new_component(
    vendor: Vendor,
) -> None:
    vendor.release("r2", {"cleanup": ("1", b"new")})
    durable.set_fault_hook(_fail_at("timestamp.json"))
    with pytest.raises(KeyboardInterrupt):
        vendor.publish()
    durable.set_fault_hook(None)
    vendor.publish()
    assert len(list((vendor.folder / "keys").glob("cleanup-*.pem"))) == 1


def test_a_role_missing_from_the_snapshot_is_named(vendor: Vendor) -> None:
    with vendor.desk() as desk:
        desk.repository.change("snapshot").meta.pop("pattern.json")
        desk.repository.save()
    with pytest.raises(DamageError, match="the snapshot has no role 'pattern'"):
        vendor.inventory()


def _fail_at(name: str) -> durable.FaultHook:
    def hook(_point: str, where: str) -> None:
        if where.endswith(name):
            raise KeyboardInterrupt

    return hook

"""tufup's part, in its own environment, by its own repository and client.

    python -P job.py publish FOLDER OLD NEW       a repository with both versions, and a patch
    python -P job.py update FOLDER URL patch|full an update of the machine in FOLDER

A machine is what an application with tufup has on its disk: `installed`,
`metadata` with the root, and `targets` with the archive that is installed.
update says in one line of JSON how long it took from the client's start to
the new files in their place.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

NAME = "component"
CONTENT = "content"
YEARS = 3650  # days: the repository is kept between runs


def publish(folder: str, old: str, new: str) -> None:
    from tufup.repo import Repository  # noqa: PLC0415

    place = Path(folder)
    roles = ("root", "targets", "snapshot", "timestamp")
    repository = Repository(
        app_name=NAME,
        repo_dir=place / "repository",
        keys_dir=place / "keys",
        expiration_days=dict.fromkeys(roles, YEARS),
    )
    repository.initialize()
    for version, file in (("1.0", old), ("2.0", new)):
        bundle = place / "bundle"
        bundle.mkdir()
        shutil.copyfile(file, bundle / CONTENT)
        repository.add_bundle(bundle, version)
        shutil.rmtree(bundle)
    repository.publish_changes([place / "keys"])


def update(folder: str, url: str, road: str) -> None:
    from tufup.client import Client  # noqa: PLC0415

    place = Path(folder)
    began = time.perf_counter()
    client = Client(
        app_name=NAME,
        app_install_dir=place / "installed",
        current_version="1.0",
        metadata_dir=place / "metadata",
        metadata_base_url=f"{url}metadata/",
        target_dir=place / "targets",
        target_base_url=f"{url}targets/",
        extract_dir=place / "extracted",
    )
    assert client.check_for_updates(patch=road == "patch")
    (place / "extracted").mkdir()
    client.download_and_apply_update(skip_confirmation=True, install=_install)
    wall_s = time.perf_counter() - began
    fetched = sum(path.stat().st_size for path in client.downloaded_target_files.values())
    print(json.dumps({"wall_s": wall_s, "fetched": fetched}))


def _install(src_dir: Path, dst_dir: Path) -> None:
    """Its own knows Windows and macOS only and copies; a rename is cheaper."""
    (src_dir / CONTENT).replace(dst_dir / CONTENT)


if __name__ == "__main__":
    {"publish": publish, "update": update}[sys.argv[1]](*sys.argv[2:])

"""A vendor in a few lines: a real release desk, with real keys and signatures.

    vendor = Vendor(tmp_path / "vendor")
    vendor.ship("r171", {"virus-pattern": ("171", b"...")})       # release, publish, start
    vendor.ship("r173", {"virus-pattern": ("173", b"...")})
    vendor.halt("burns a core")
    vendor.withdraw(to="r171", reason="burns a core")

vendor.root is what clients trust, vendor.url the feed as file://.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from feed.manifest import Kind
from feed.rollout import RolloutPlan
from publisher import home, inventory, publish, release, rollout, rotation, settings, setup
from publisher.home import Desk
from publisher.publish import Published
from publisher.rotation import Rotated
from publisher.settings import ComponentInput, ReleaseInput
from publisher.staging import Staged

Content = bytes | Path


class Vendor:
    """A release desk in `folder`, made on first use and reopened for every call.

    now_offset moves its clock, so that signatures expire when a test wants it.
    """

    def __init__(
        self, folder: Path, *, regions: tuple[str, ...] = ("global",), **init: int
    ) -> None:
        self.folder = folder
        self.now_offset = timedelta()
        self._inputs = folder.parent / f"{folder.name}-inputs"
        if not (folder / "publisher.toml").exists():
            setup.create(folder, regions=regions, clock=self.now, **init)
            self.configure(workers=1, compression_level=3)

    def now(self) -> datetime:
        """The vendor's clock."""
        return datetime.now(UTC) + self.now_offset

    @property
    def feed(self) -> Path:
        """The folder that holds metadata/ and targets/."""
        return self.folder / "feed"

    @property
    def url(self) -> str:
        """The feed for clients without a server."""
        return self.feed.as_uri()

    @property
    def root(self) -> bytes:
        """What clients trust from the start."""
        return (self.feed / "metadata" / "1.root.json").read_bytes()

    def key_file(self, role: str) -> Path:
        """A role's private key, of a role with one key."""
        (found,) = (self.folder / "keys").glob(f"{role}-*.pem")
        return found

    def configure(self, **values: Any) -> None:
        """Write publisher.toml anew: regions as they are, numbers as given."""
        regions = settings.load(self.folder / "publisher.toml").regions
        lines = [
            f"regions = {list(regions)}",
            *(f"{key} = {value}" for key, value in values.items()),
        ]
        (self.folder / "publisher.toml").write_text("\n".join(lines).replace("'", '"') + "\n")

    @contextmanager
    def desk(self) -> Iterator[Desk]:
        """The opened desk, locked."""
        with home.work(self.folder, clock=self.now) as desk:
            yield desk

    def release(
        self,
        release_id: str,
        components: Mapping[str, tuple[str, Content]],
        *,
        kinds: Mapping[str, str] | None = None,
        filenames: Mapping[str, str] | None = None,
        only: bool = False,
        **more: Any,
    ) -> Staged:
        """Prepare a release of {component: (version, bytes or a path)}.

        Everything is a pattern unless `kinds` says otherwise; bytes become a
        file `<component>.dat` unless `filenames` does. `more` goes to
        publisher.settings.ReleaseInput (health, activation, compatibility).
        """
        inputs = []
        for name, (version, content) in components.items():
            inputs.append(
                ComponentInput(
                    name=name,
                    kind=Kind((kinds or {}).get(name, "pattern")),
                    version=version,
                    path=str(self._path(release_id, name, content)),
                    filename=(filenames or {}).get(name),
                )
            )
        wanted = ReleaseInput(components=tuple(inputs), **more)
        desk = home.look(self.folder, clock=self.now)
        return release.prepare(desk, release_id, wanted, only=only)

    def _path(self, release_id: str, name: str, content: Content) -> Path:
        if isinstance(content, Path):
            return content
        path = self._inputs / release_id / f"{name}.dat"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def publish(self, release_id: str | None = None) -> Published:
        """Publish what is prepared, or refresh the feed."""
        with self.desk() as desk:
            return publish.publish(desk, release_id)

    def refresh(self) -> Published:
        """The heartbeat."""
        with self.desk() as desk:
            return publish.refresh(desk)

    def offer(self, release_id: str, *regions: str) -> list[RolloutPlan]:
        """Offer a published release to everyone."""
        with self.desk() as desk:
            return rollout.start(desk, release_id, regions=regions)

    def ship(
        self, release_id: str, components: Mapping[str, tuple[str, Content]], **more: Any
    ) -> Staged:
        """release, publish and offer in one go."""
        staged = self.release(release_id, components, **more)
        self.publish(release_id)
        self.offer(release_id)
        return staged

    def halt(self, reason: str = "a test says so", *regions: str) -> list[RolloutPlan]:
        """Stop offering."""
        with self.desk() as desk:
            return rollout.halt(desk, reason=reason, regions=regions)

    def resume(self, *regions: str) -> list[RolloutPlan]:
        """Go on offering."""
        with self.desk() as desk:
            return rollout.resume(desk, regions=regions)

    def withdraw(self, *regions: str, to: str, reason: str = "a test says so") -> list[RolloutPlan]:
        """Send everyone back."""
        with self.desk() as desk:
            return rollout.withdraw(desk, to=to, reason=reason, regions=regions)

    def rotate(self, role: str, **options: Any) -> Rotated:
        """Replace a key; options as publisher.rotation.rotate."""
        with self.desk() as desk:
            return rotation.rotate(desk, role, **options)

    def inventory(self) -> inventory.Inventory:
        """What `publisher show` shows."""
        return inventory.take(home.look(self.folder, clock=self.now))

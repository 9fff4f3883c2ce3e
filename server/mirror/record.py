"""What the mirror knows of its served folder between two runs: mirror.json.

Nothing here is trusted to be signed; every run verifies the feed anew. A
record that is missing or can't be read costs no more than that nothing is
pruned until the switch after next.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from feed import durable
from feed.manifest import Release
from feed.rollout import RolloutPlan
from server.mirror.served import TIMESTAMP
from server.mirror.signed import Catalogue

SCHEMA = 1


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """snapshot is the SHA-256 of the snapshot that is served, "" for none or one of two.

    served: what is offered under it, previous: under the one before; paths
    below the feed's folder. metadata: {file name: SHA-256}. waits_since: since when
    (Unix seconds) what is newer waits for increments, whatever came after it.
    oldest_root: no root before that version is to be had.
    """

    schema: int = SCHEMA
    snapshot: str = ""
    switched_at: float = 0.0
    catalogue: Catalogue = Catalogue()
    plans: dict[str, RolloutPlan] = {}
    releases: dict[str, Release] = {}
    served: frozenset[str] = frozenset()
    previous: frozenset[str] = frozenset()
    metadata: dict[str, str] = {}
    waits_since: float | None = None
    oldest_root: int | None = None

    def offered(self) -> str:
        """The releases that are served, for a sentence."""
        found = [f"{plan.release} ({region})" for region, plan in sorted(self.plans.items())]
        return ", ".join(found)


def unsettled(record: Record) -> Record:
    """The record while another snapshot takes the place of its own.

    Which of both is served isn't known then: files are judged by their names,
    and none is nobody's. What was offered before is remembered.
    """
    metadata = {name: digest for name, digest in record.metadata.items() if name != TIMESTAMP}
    return msgspec.structs.replace(record, snapshot="", metadata=metadata)


def load(path: Path) -> Record | None:
    """The record; None if there is none that can be used."""
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return record if record.schema == SCHEMA else None


def store(path: Path, record: Record) -> None:
    """Keep it, durably."""
    durable.replace(path, msgspec.json.encode(record))

"""The stager's process: one job on standard input, one result on standard output.

It leaves the network first, then reads. Whatever goes wrong, the slot it was
given stays unsealed and the active slot untouched.
"""

from __future__ import annotations

import errno
import shutil
import sys
import time
from pathlib import Path

import msgspec

from agent import __version__, channel, host, worker
from agent.channel import (
    Greet,
    Greeting,
    Handover,
    Job,
    NeedsFull,
    Result,
    Staged,
    StageJob,
    StageRefused,
    Verified,
    VerifyJob,
)
from agent.errors import AgentError, SlotError
from agent.layout import Layout
from agent.slots import record as records
from agent.slots import seal as seals
from agent.slots.record import Phase, SlotContent
from agent.stager import incoming, inspect, verify
from agent.stager.rebuild import Rebuilder
from feed.errors import FeedError, RoomError
from feed.manifest import Release
from feed.roads import Limits
from feed.rollout import Decision, Offer

HANDOVER_BYTES_MAX = 1 << 20


def main(arguments: list[str] | None = None) -> int:
    """Serve one job; the exit status is 0 whenever a result was said."""
    settings, places = worker.begin("agent.stager", __doc__, arguments, program="stager")
    host.drop_network()
    channel.send(sys.stdout.buffer, serve(worker.order(Job), places, settings.download.limits))
    return 0


def serve(job: Job, places: Layout, limits: Limits | None = None) -> Result:
    """Do `job` within `limits`; every expected problem becomes a StageRefused.

    A stager whose guardian was killed may still be at work: they take turns.
    """
    if isinstance(job, Greet):
        return Greeting(version=__version__, protocol=channel.PROTOCOL)
    turn = host.hold(places.slots_lock)
    try:
        if isinstance(job, VerifyJob):
            return Verified(reports=inspect.inspect(places, job))
        return _staged_alone(job, places, limits or Limits())
    finally:
        turn.release()


def _staged_alone(job: StageJob, places: Layout, limits: Limits) -> Result:
    try:
        _check_spare(job, places)
        return _stage(job, places, limits)
    except (FeedError, AgentError) as error:
        return StageRefused(code=error.code, sentence=str(error))
    except OSError as error:
        return _refused_by_disk(error, places)
    finally:
        shutil.rmtree(places.staging, ignore_errors=True)


def _check_spare(job: StageJob, places: Layout) -> None:
    """The order may be older than the record, whose active slot is never written to.

    Raises SlotError, or RecordError when there is no telling.
    """
    record = records.load(places.boot_record)
    if record.phase is not Phase.COMMITTED or record.active == job.slot:
        raise SlotError(
            f"slot {job.slot} isn't spare any more: slot {record.active} is active, "
            f"{record.phase}; nothing was staged"
        )


def _stage(job: StageJob, places: Layout, limits: Limits) -> Result:
    shutil.rmtree(places.staging, ignore_errors=True)
    places.staging.mkdir(mode=0o700)
    folder = places.incoming / job.attempt
    handed = verify.verify(places, folder)
    release, offer = verify.offered(handed, job.host, now=time.time())
    if release is None or offer.release != release.id:
        return StageRefused(code=offer.decision, sentence=offer.sentence)
    if job.reuse:
        return _reuse(job, places, release, offer)
    rebuilder = Rebuilder(places, handed, _handover(folder), job.host, job.active, limits)
    content, failed = rebuilder.fill(places.slot(job.slot), release)
    if failed:
        return NeedsFull(
            components=failed,
            sentence=f"what is installed of {', '.join(failed)}, and the incrementals, "
            "don't lead to the signed content",
        )
    return _staged(job, release, offer, content, reused=False)


def _reuse(job: StageJob, places: Layout, release: Release, offer: Offer) -> Result:
    """The spare slot already holds the release: hold it against its seal, and that is all."""
    slot = places.slot(job.slot)
    seal, content = seals.read(slot)
    damage = seals.verify(slot, seal)
    named = {item.name: item.filename for item in seal.components}
    wanted = {item.name: item.filename for item in release.components}
    if content.digest != release.digest or named != wanted or damage:
        return StageRefused(
            code="spare_slot_unusable",
            sentence=f"slot {job.slot} doesn't hold {release.id} intact; it will be built anew",
        )
    return _staged(job, release, offer, content, reused=True)


def _staged(
    job: StageJob, release: Release, offer: Offer, content: SlotContent, *, reused: bool
) -> Staged:
    installed = job.host.digests
    changed = {
        item.name: item.digest
        for item in release.components
        if installed.get(item.name) != item.digest
    }
    return Staged(
        release=release.id,
        content=content,
        changed=changed,
        activation=release.activation,
        health=release.health,
        decision=Decision(offer.decision),
        reused=reused,
    )


def _handover(folder: Path) -> Handover:
    with incoming.opened(folder, "handover.json") as file:
        data = file.read(HANDOVER_BYTES_MAX)
    try:
        return msgspec.json.decode(data, type=Handover)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Handover()  # a hint only: without it, components count as whole or kept


def _refused_by_disk(error: OSError, places: Layout) -> StageRefused:
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    where = error.filename or places.state
    return StageRefused(
        code=RoomError.code if full else "io_error",
        sentence=f"{where}: {error.strerror}; nothing was sealed, the active slot is untouched",
    )

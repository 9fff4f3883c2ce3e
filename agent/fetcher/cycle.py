"""One check, from the list of sources to a handover: the fetcher's worker process.

Sources are tried in order, the Security Server's feed first where there is one;
the first that can be used and trusted answers. What the signed plan offers is
fetched into incoming/<attempt>, where the stager verifies all of it again. A
process of its own, so nothing outlives a check.
"""

from __future__ import annotations

import ssl
import sys
import time
from typing import NamedTuple

import structlog

import agent.fetcher.road  # noqa: F401 - before any other import of httpx; see there
from agent import channel, worker
from agent.channel import (
    Begin,
    Checked,
    CycleFailed,
    HandedOver,
    Reach,
    Reached,
    Word,
)
from agent.config import Config, Source
from agent.errors import AgentError
from agent.fetcher import membership
from agent.fetcher.handover import Feed, Fetch
from agent.layout import Layout
from feed import rollout, serverclient
from feed.errors import FeedError, RoomError, TransferError
from feed.rollout import Offer
from feed.room import full_disk_told
from feed.source import public_url
from feed.transport import Transport

REACH_BYTES_MAX = 64 << 10
TIMESTAMP = "metadata/timestamp.json"

_log = structlog.get_logger()


def main(arguments: list[str] | None = None) -> int:
    """Carry out the order on standard input; words go to standard output."""
    settings, places = worker.begin("agent.fetcher.cycle", __doc__, arguments, program="fetcher")
    order = worker.order(Begin | Reach)
    word = reach(settings, places) if isinstance(order, Reach) else check(order, settings, places)
    say(word)
    return 0


def say(word: Word) -> None:
    """One line to the guardian."""
    channel.send(sys.stdout.buffer, word)


class Road(NamedTuple):
    """A source, and what its certificate is held against; None: what the system trusts."""

    source: Source
    tls: ssl.SSLContext | None = None


def roads(settings: Config, places: Layout) -> list[Road]:
    """The sources in the order in which they are asked."""
    configured = [Road(source) for source in settings.sources]
    try:
        server = membership.enrolment(places)
        if server is None:
            return configured
        is_plain = server.url.startswith("http:")
        tls = None if is_plain else serverclient.trust(server.authority)
    except (AgentError, FeedError) as error:
        _log.error("enrolment_unusable", problem=str(error))
        return configured
    return [Road(server.source, tls), *configured]


def reach(settings: Config, places: Layout) -> Reached:
    """Whether any source answers at all; whatever it answers counts."""
    problem = "no source"
    for road in roads(settings, places):
        source = road.source
        url = f"{source.url.rstrip('/')}/{TIMESTAMP}"
        try:
            with _transport(settings, road, attempts=1) as transport:
                transport.fetch(url, limit=REACH_BYTES_MAX)
        except FeedError as error:
            problem = str(error)
        else:
            return Reached(ok=True, detail=public_url(source.url))
    return Reached(ok=False, detail=problem)


def check(order: Begin, settings: Config, places: Layout) -> Word:
    """Ask the sources in order; the last word about the attempt."""
    failures: list[tuple[str, FeedError | OSError]] = []
    for road in roads(settings, places):
        try:
            with full_disk_told("the download"):
                return _with_source(order, settings, places, road)
        except (FeedError, OSError) as error:
            name = public_url(road.source.url)
            _log.warning("source_failed", source=name, problem=str(error))
            failures.append((name, error))
            if isinstance(error, RoomError):
                break
    return _failed(order, failures) if failures else _no_source(order)


def _no_source(order: Begin) -> CycleFailed:
    sentence = "there is no update source; agentctl enroll URL TOKEN, or [[sources]] in the file"
    return CycleFailed(attempt=order.attempt, source="", code="no_source", sentence=sentence)


def _failed(order: Begin, failures: list[tuple[str, FeedError | OSError]]) -> CycleFailed:
    """What is reported of several failures: one about trust before one about the road."""
    telling = next(
        (item for item in failures if not isinstance(item[1], TransferError | OSError)), failures[0]
    )
    source, error = telling
    code = error.code if isinstance(error, FeedError) else "io_error"
    tried = f" ({len(failures)} sources tried)" if len(failures) > 1 else ""
    return CycleFailed(attempt=order.attempt, source=source, code=code, sentence=f"{error}{tried}")


def _transport(settings: Config, road: Road, *, attempts: int) -> Transport:
    limits = settings.download
    return Transport(
        connect_timeout_s=limits.connect_timeout_s,
        read_timeout_s=limits.read_timeout_s,
        attempts=attempts,
        bandwidth_bytes_per_s=limits.bandwidth_bytes_per_s,
        proxy=road.source.proxy,
        verify=road.tls,
    )


def _with_source(order: Begin, settings: Config, places: Layout, road: Road) -> Word:
    name = public_url(road.source.url)
    with _transport(settings, road, attempts=settings.download.attempts) as transport:
        feed = Feed(places, road.source, transport)
        feed.refresh()
        now = time.time()
        plan = feed.rollout_plan(order.host.region)
        wanted = rollout.target(
            plan,
            active=order.host.active_release,
            host_id=order.host.host_id,
            quarantine=order.host.quarantine,
            now=now,
        )
        release = feed.release(wanted).for_host(order.host.traits) if wanted else None
        offer = rollout.decide(
            plan,
            release,
            host_id=order.host.host_id,
            platform=order.host.platform,
            agent_version=order.host.agent_version,
            active_id=order.host.active_release,
            active=order.host.digests,
            filenames=order.host.filenames,
            quarantine=order.host.quarantine,
            now=now,
        )
        if offer.release is None or release is None:
            return _checked(order, name, transport, offer)
        fetch = Fetch(order, settings, places, feed, release, say=say)
        fetch.check_limit()
        if not order.download:
            return _checked(order, name, transport, offer, fetch)
        fetch.run()
        return HandedOver(
            attempt=order.attempt,
            source=name,
            release=release.id,
            digest=release.digest,
            decision=offer.decision,
            wire_bytes=fetch.wire_bytes,
            full_bytes=fetch.plan.full_bytes,
            fetch_bytes=fetch.fetch_bytes,
            requests=transport.requests,
        )


def _checked(
    order: Begin, source: str, transport: Transport, offer: Offer, fetch: Fetch | None = None
) -> Checked:
    return Checked(
        attempt=order.attempt,
        source=source,
        decision=offer.decision,
        sentence=offer.sentence,
        release=offer.release,
        ready_at=offer.ready_at,
        fetch_bytes=fetch.fetch_bytes if fetch else 0,
        full_bytes=fetch.plan.full_bytes if fetch else 0,
        wire_bytes=transport.received_bytes,
        requests=transport.requests,
    )


if __name__ == "__main__":
    worker.end(main)

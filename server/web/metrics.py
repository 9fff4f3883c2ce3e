"""Numbers for Prometheus, of this process and of what the database knows.

Those of the database are asked for when they are scraped.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.orm import Session

from server.web import lookups
from server.web.parts import Parts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class Metrics:
    """One registry an application."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._registry = CollectorRegistry()
        self._durations = Histogram(
            "holdfast_request_duration_seconds",
            "Time until a request was answered; streams of notifications apart.",
            ("method", "route", "status"),
            buckets=BUCKETS_S,
            registry=self._registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered; status 0: the client left before."""
        known = method if method in METHODS else "other"
        self._durations.labels(known, route, str(status)).observe(seconds)

    async def text(self) -> bytes:
        """What is scraped."""
        parts = self._parts
        now, silent_after_s = parts.clock(), parts.policy().silent_after_s

        def look(session: Session) -> tuple[lookups.Fleet, lookups.Syncs]:
            found = lookups.fleet(session, now=now, silent_after_s=silent_after_s)
            return found, lookups.syncs(session)

        fleet, syncs = await parts.database.read(look)
        stored = CollectorRegistry()
        stored.register(_Fixed([*_process(parts), *_stored(fleet, syncs)]))
        return generate_latest(self._registry) + generate_latest(stored)


class _Fixed(Collector):
    """Numbers as they are now."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """All of them."""
        return self._metrics


def _process(parts: Parts) -> list[Metric]:
    hub, connections = parts.hub, parts.connections
    return [
        _gauge("holdfast_connections", "Open connections.", connections.open),
        _gauge("holdfast_agents_connected", "Agents that listen.", hub.connected),
        _gauge("holdfast_round", "The newest notification round.", hub.newest),
        _gauge("holdfast_up_seconds", "Since the start.", parts.clock() - parts.started_at),
        _count("holdfast_notifications", "Agents told to look.", hub.told_total),
        _count("holdfast_listeners_dropped", "Streams that nobody read.", hub.dropped_total),
        _count("holdfast_tokens_refused", "Tokens refused.", parts.door.refused_total),
        _count(
            "holdfast_connections_refused",
            "Connections past the limit, or with a head past it.",
            connections.refused,
        ),
        _count("holdfast_connections_late", "Requests that came too slowly.", connections.late),
    ]


def _stored(fleet: lookups.Fleet, syncs: lookups.Syncs) -> list[Metric]:
    states = GaugeMetricFamily("holdfast_agents", "Enrolled agents by state.", labels=["state"])
    for state, count in sorted(fleet.states.items()):
        states.add_metric([state], count)
    outcomes = CounterMetricFamily("holdfast_syncs", "Syncs by outcome.", labels=["outcome"])
    for outcome, count in sorted(syncs.outcomes.items()):
        outcomes.add_metric([outcome], count)
    last = syncs.last.ended_at if syncs.last and syncs.last.ended_at else 0.0
    return [
        states,
        outcomes,
        _gauge("holdfast_agents_silent", "Agents that are silent.", fleet.silent),
        _gauge("holdfast_sync_ended_timestamp_seconds", "When the last sync ended.", last),
        _count("holdfast_sync_fetched_bytes", "What syncs have fetched.", syncs.fetched_bytes),
        _count(
            "holdfast_sync_saved_bytes",
            "What fulls would have cost beyond what was fetched.",
            syncs.saved_bytes,
        ),
    ]


def _gauge(name: str, told: str, value: float) -> Metric:
    return GaugeMetricFamily(name, told, value=value)


def _count(name: str, told: str, value: float) -> Metric:
    return CounterMetricFamily(name, told, value=value)

"""Turns what the fetcher brought into a sealed slot: one job, no network, then gone."""

import agent.log  # noqa: F401 - before any other import of structlog; see there

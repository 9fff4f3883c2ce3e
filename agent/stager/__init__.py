"""Turns what the fetcher brought into a sealed slot: one job, no network, then gone."""

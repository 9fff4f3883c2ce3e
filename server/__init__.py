"""The Security Server: mirrors the feed, notifies its agents and accounts for them."""

__version__ = "0.1.0"

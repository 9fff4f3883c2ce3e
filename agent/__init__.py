"""The endpoint: follows the feed, switches slots, watches, goes back."""

__version__ = "0.1.0"

"""What can go wrong at the release desk.

PublisherError
├── HomeError       the work folder is missing, taken, or in use by another process
├── SettingsError   publisher.toml or a release file can't be used as it stands
├── SigningError    a key isn't here, doesn't fit, or too few of them are
├── RefusedError    the request contradicts what is already published
└── DamageError     the feed on disk isn't what was signed

Every message says what to run next. Exit codes live in publisher.cli only.
"""

from __future__ import annotations


class PublisherError(Exception):
    """Base of everything the publisher raises on purpose."""


class HomeError(PublisherError):
    """There is no work folder here, or somebody else is working in it."""


class SettingsError(PublisherError):
    """Names the file, the key and the expected form."""


class SigningError(PublisherError):
    """A signature can't be made; nothing was published."""


class RefusedError(PublisherError):
    """What was asked for contradicts the feed; nothing was changed."""


class DamageError(PublisherError):
    """A published or staged file is missing, altered, or signed by nobody known."""

"""What can go wrong between a feed and a rebuilt component.

FeedError
├── TrustError       the bytes are not what the vendor signed: never retried
│   └── ExpiredError what the vendor signed is past its date: updates stop
├── TransferError    the road failed: retried, then the next source
├── RebuildError     an incremental doesn't produce the signed result: go full
├── ManifestError    signed, but it doesn't say anything usable: never retried
├── RoomError        the disk can't hold what is planned: nothing was started
├── LimitError       a run would fetch more than the administrator allows
└── SecurityServerError  a Security Server didn't do what it was asked
"""

from __future__ import annotations


class FeedError(Exception):
    """Base of everything the feed package raises on purpose.

    `code` is the stable reason code that status, reports and logs carry.
    """

    code = "feed_error"


class TrustError(FeedError):
    """Metadata or a payload isn't what the vendor signed, or trust has expired."""

    code = "trust_refused"


class ExpiredError(TrustError):
    """Signed metadata is past its date. Protection goes on, updates stop until it is renewed."""

    code = "trust_expired"


class TransferError(FeedError):
    """A source could not be reached, or stopped answering.

    `retry_after_s` is what the source asked for, None if it didn't.
    """

    code = "source_unreachable"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RebuildError(FeedError):
    """An incremental is malformed, has another base, or makes another result."""

    code = "rebuild_failed"


class ManifestError(FeedError):
    """A release manifest or rollout plan can't be used as it stands."""

    code = "manifest_refused"


class RoomError(FeedError):
    """The plan needs more room than the disk has."""

    code = "disk_full"


class LimitError(FeedError):
    """A run would fetch more than it may; `needed` is what it would take in all, in bytes."""

    code = "download_limit"

    def __init__(self, message: str, *, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


class SecurityServerError(FeedError):
    """The Security Server can't be reached, or refuses.

    status is its HTTP answer, None if there was none; code the server's own
    reason code where it gave one; retry_after_s what it asked to wait.
    """

    code = "server_unreachable"

    def __init__(
        self,
        sentence: str,
        *,
        code: str = "server_unreachable",
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(sentence)
        self.code = code
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def is_refusal(self) -> bool:
        """Whether it is the credential, or the token, that isn't taken."""
        return self.status in {401, 403}

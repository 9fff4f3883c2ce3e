"""What administrators change while the server runs, kept whole under one key."""

from __future__ import annotations

import msgspec
from sqlalchemy.orm import Session

from feed.source import public_url
from server.accounts import audit
from server.errors import RefusedError, StorageError
from server.settings import Policy
from server.storage.tables import Setting

KEY = "policy"


def load(session: Session) -> Policy:
    """The policy; all defaults before the first change.

    Raises StorageError: a newer server has stored what this one doesn't know.
    """
    row = session.get(Setting, KEY)
    if row is None:
        return Policy()
    try:
        return msgspec.convert(row.value, Policy)
    except msgspec.ValidationError as error:
        raise StorageError(
            f"the stored policy can't be used: {error}; a newer server may have stored it, "
            "and this one changes nothing of it"
        ) from error


def public(policy: Policy) -> Policy:
    """As it may be shown: without the password that the source may need."""
    source = None if policy.source is None else public_url(policy.source)
    return msgspec.structs.replace(policy, source=source)


def store(session: Session, policy: Policy, *, now: float, by: str) -> None:
    """Replace the policy; the audit names what changed.

    Raises RefusedError 400: a value out of its range.
    """
    value = msgspec.to_builtins(policy)
    try:
        msgspec.convert(value, Policy)
    except msgspec.ValidationError as error:
        raise RefusedError(f"policy: {error}", status=400, code="policy_invalid") from error
    before = msgspec.to_builtins(load(session))
    shown = msgspec.to_builtins(public(policy))
    changed = {key: shown[key] for key, new in value.items() if before.get(key) != new}
    session.merge(Setting(key=KEY, value=value, changed_at=now))
    audit.note(session, who=by, action="policy_changed", detail=changed, now=now)

"""What differs between operating systems, behind one set of names."""

from agent.host.posix import (
    boot_id,
    drop_network,
    empty,
    end_with_parent,
    give_to,
    hold,
    is_root,
    link_target,
    lock_file,
    notify_service,
    points_at,
    raise_priority,
    reset_priority,
    switch_link,
    user_of,
)

__all__ = [
    "boot_id",
    "drop_network",
    "empty",
    "end_with_parent",
    "give_to",
    "hold",
    "is_root",
    "link_target",
    "lock_file",
    "notify_service",
    "points_at",
    "raise_priority",
    "reset_priority",
    "switch_link",
    "user_of",
]

"""What differs between operating systems, behind one set of names."""

import sys

if sys.platform == "win32":
    from agent.host.windows import (
        User,
        boot_id,
        drop_network,
        empty,
        end_with_parent,
        give_to,
        hold,
        is_root,
        link_target,
        lock_file,
        machine_registry,
        notify_service,
        open_below,
        points_at,
        raise_priority,
        remove_tree,
        reset_priority,
        switch_link,
        user_of,
    )
    from agent.host.windows_io import PASSED_ON, Pipe, Process, Wake, listen, own_input
else:
    from agent.host.posix import (
        User,
        boot_id,
        drop_network,
        empty,
        end_with_parent,
        give_to,
        hold,
        is_root,
        link_target,
        lock_file,
        machine_registry,
        notify_service,
        open_below,
        points_at,
        raise_priority,
        remove_tree,
        reset_priority,
        switch_link,
        user_of,
    )
    from agent.host.posix_io import PASSED_ON, Pipe, Process, Wake, listen, own_input

__all__ = [
    "PASSED_ON",
    "Pipe",
    "Process",
    "User",
    "Wake",
    "boot_id",
    "drop_network",
    "empty",
    "end_with_parent",
    "give_to",
    "hold",
    "is_root",
    "link_target",
    "listen",
    "lock_file",
    "machine_registry",
    "notify_service",
    "open_below",
    "own_input",
    "points_at",
    "raise_priority",
    "remove_tree",
    "reset_priority",
    "switch_link",
    "user_of",
]

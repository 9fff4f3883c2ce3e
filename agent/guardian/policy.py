"""What a trial must show before its release is kept: thresholds without gaps.

The defaults, overlaid by the release's own policy, overlaid by the
administrator's. Each default has its reason in docs/adr/0005-health-defaults.md.
"""

from __future__ import annotations

import msgspec

from feed.manifest import HealthPolicy


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Every threshold, resolved. Times in seconds, CPU in cores.

    warmup_s        after the flip nothing but a crash loop reverts
    window_s        how long a figure must be bad before it reverts
    probation_s     healthy seconds that make a release kept
    probation_max_s observed seconds after which a trial is called late
    baseline_s      how long the machine is watched before the flip
    cpu_factor      how many times its own baseline a process may use
    cpu_floor_share below this share of a core nothing is called pinned
    memory_factor   how many times its own baseline a process may hold
    memory_floor_bytes  below this nothing is called growth
    crashes_allowed restarts in a trial, beyond the one of the activation
    probe_failures_allowed  failures in a row
    tries           starts of the machine that a trial is given
    """

    warmup_s: float = 20.0
    window_s: float = 30.0
    probation_s: float = 600.0
    probation_max_s: float = 86400.0
    baseline_s: float = 30.0
    cpu_factor: float = 3.0
    cpu_floor_share: float = 0.5
    memory_factor: float = 2.0
    memory_floor_bytes: int = 256 << 20
    crashes_allowed: int = 1
    probe_failures_allowed: int = 3
    tries: int = 1


DEFAULTS = Policy()


def resolve(release: HealthPolicy, admin: HealthPolicy) -> Policy:
    """DEFAULTS, overlaid by what the release asks, overlaid by the administrator."""
    values = msgspec.structs.asdict(DEFAULTS) | _given(release) | _given(admin)
    return Policy(**values)


def _given(policy: HealthPolicy) -> dict[str, float | int]:
    return {
        name: value for name, value in msgspec.structs.asdict(policy).items() if value is not None
    }

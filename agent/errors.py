"""What can go wrong on the endpoint, outside the feed itself.

AgentError
├── ConfigError      the configuration can't be used: nothing starts
│   └── UnknownNameError   a user or group that the system doesn't know, or not yet
├── RecordError      the boot record can't be read: recovered from the slots
├── SlotError        a slot isn't what its seal says
├── LifecycleError   a transition that the table doesn't list: a bug, refused
├── ActivationError  a hook failed: the trial is reverted
│   └── StarvedError       it couldn't start for want of processes or memory
├── EnrolmentError   what is kept of the Security Server can't be used
└── ControlError     a request on the control socket can't be served
"""

from __future__ import annotations


class AgentError(Exception):
    """Base of everything the agent raises on purpose; `code` is its reason code."""

    code = "agent_error"


class ConfigError(AgentError):
    """Names the file, the key and the expected form."""

    code = "config_invalid"


class UnknownNameError(ConfigError):
    """Names the key and the user or group; a later start may find it."""


class RecordError(AgentError):
    """The boot record is missing, torn, foreign or contradicts itself."""

    code = "boot_record_unreadable"


class SlotError(AgentError):
    """A slot is incomplete, altered or not sealed."""

    code = "slot_damaged"


class LifecycleError(AgentError):
    """A transition that isn't in the table."""

    code = "transition_refused"


class ActivationError(AgentError):
    """An activation hook failed, hung or couldn't start."""

    code = "activation_failed"


class StarvedError(ActivationError):
    """A hook couldn't start: the machine has no process or memory left for it."""


class EnrolmentError(AgentError):
    """Enrolling again mends it; updates go on from the configured sources."""

    code = "enrolment_unusable"


class ControlError(AgentError):
    """A control request is malformed, unknown or refused; the text goes back."""

    code = "request_refused"

"""The privileged, long-lived process: boots, flips, watches, reverts, answers agentctl."""

import agent.log  # noqa: F401 - before any other import of structlog; see there

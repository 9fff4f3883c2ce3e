"""The only process that talks to the network; unprivileged where the system has a user for it."""

import agent.log  # noqa: F401 - before any other import of structlog; see there

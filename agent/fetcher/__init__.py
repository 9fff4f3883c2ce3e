"""The only process that talks to the network; unprivileged where the system has a user for it."""

"""One module a command; each has `command`, which publisher.cli imports when it runs."""

"""A whole update of one large component over loopback, beside tufup.

Both products have version 1 installed and find version 2 on a static HTTP
server of the same kind. Ours is what runs on endpoints, with every process of
it; tufup is its own client in a process of its own.
"""

from bench.endtoend.report import run

__all__ = ["run"]

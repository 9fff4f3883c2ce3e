"""One sync in a process of its own, so that what it takes is its own.

    python -m bench.server.job STATE URL ROOT

Says in one line of JSON how it ended, and what it took.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import structlog

from server.layout import Layout
from server.mirror.mirror import Mirror, SourceSpec


def main(state: str, url: str, root: str) -> None:
    """Sync, and tell."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    mirror = Mirror(Layout(Path(state)))
    source = SourceSpec(url=url, proxy="")
    began, cpu_began = time.perf_counter(), time.process_time()
    done = mirror.sync(source, Path(root).read_bytes())
    told = {
        "outcome": done.outcome,
        "sentence": done.sentence,
        "fetched": done.fetched_bytes,
        "saved": done.saved_bytes,
        "wall_s": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu_began,
        "peak_bytes": _peak_bytes(),
    }
    print(json.dumps(told))


def _peak_bytes() -> int:
    """The highest resident set. That of getrusage has the parent's in it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


if __name__ == "__main__":
    main(*sys.argv[1:])

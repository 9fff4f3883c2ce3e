"""What the one-shot workers share: how they begin, and how they end.

A worker gets its configuration and its parent by arguments, one order on
standard input, and says its last word on standard output.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from agent import channel, config, host, layout, log
from agent.config import Config
from agent.layout import Layout


def begin(
    module: str, description: str | None, arguments: Sequence[str] | None, *, program: str
) -> tuple[Config, Layout]:
    """Read the arguments and the configuration; from here on it ends with its parent.

    module is what `python -m` runs, program what the log calls it.
    Raises ConfigError.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--config", type=Path, default=None)
    parser.add_argument("--parent", type=int, default=None, help="end when this process does")
    given = parser.parse_args(arguments)
    path = given.config or layout.default_path()
    settings = config.load(path)
    log.configure(settings.log_level, program=program)
    host.end_with_parent(given.parent)
    return settings, layout.resolve(settings, path)


def order(kind: Any) -> Any:
    """The one order, of the union `kind`. Raises ControlError."""
    return channel.decode(sys.stdin.buffer.readline(channel.LINE_BYTES_MAX + 1), kind)


def end(main: Callable[[], int]) -> NoReturn:
    """Run `main` and be gone: who waits for its memory and its end doesn't wait for a tidying.

    To take a worker's modules apart again costs as much as a third of importing them.
    """
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

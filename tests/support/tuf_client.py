"""TrustedFeed behind the command line that tuf-conformance drives clients by.

    tuf_client --metadata-dir D init ROOT
    tuf_client --metadata-dir D --metadata-url U refresh
    tuf_client --metadata-dir D --metadata-url U --target-name N
               --target-base-url B --target-dir T download

Exit code 1 and one line on stderr when the client refuses.
Protocol: github.com/theupdateframework/tuf-conformance, CLIENT-CLI.md.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from pathlib import Path

from feed import durable
from feed.errors import FeedError
from feed.transport import Transport
from feed.trust import TrustedFeed


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (FeedError, OSError) as error:
        print(f"tuf_client: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tuf_client")
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url", default="")
    parser.add_argument("--target-name")
    parser.add_argument("--target-base-url", default="")
    parser.add_argument("--target-dir", type=Path)
    commands = parser.add_subparsers(required=True)
    init = commands.add_parser("init")
    init.add_argument("root", type=Path)
    init.set_defaults(run=_init)
    commands.add_parser("refresh").set_defaults(run=_refresh)
    commands.add_parser("download").set_defaults(run=_download)
    return parser


def _init(options: argparse.Namespace) -> None:
    options.metadata_dir.mkdir(parents=True, exist_ok=True)
    durable.replace(options.metadata_dir / "root.json", options.root.read_bytes())


def _refresh(options: argparse.Namespace) -> None:
    with _transport() as transport:
        _feed(options, transport).refresh()


def _download(options: argparse.Namespace) -> None:
    with _transport() as transport:
        _feed(options, transport).download(options.target_name, options.target_dir)


def _transport() -> Transport:
    return Transport(attempts=1, proxy="")


def _feed(options: argparse.Namespace, transport: Transport) -> TrustedFeed:
    return TrustedFeed(
        options.metadata_dir,
        options.metadata_url,
        options.target_base_url,
        (options.metadata_dir / "root.json").read_bytes(),
        transport,
        idle_check=False,
        now=_now,
    )


def _now() -> datetime.datetime:
    """The wall clock; FAKE_NOW (seconds since the epoch) stands in for it in tests."""
    fake = os.environ.get("FAKE_NOW")
    if fake:
        return datetime.datetime.fromtimestamp(float(fake), tz=datetime.UTC)
    return datetime.datetime.now(datetime.UTC)


if __name__ == "__main__":
    sys.exit(main())

"""Where the server keeps things: one place that spells out every path.

<state>/server.db          the embedded database, where no other is configured
<state>/feed/              what is served: metadata/ and targets/, as the vendor's feed
<state>/work/              what is being fetched and rebuilt; emptied at every start
<state>/cache/             partial downloads
<state>/trust/             the mirror's own TUF metadata
<state>/mirror.json        what the mirror serves and served before, for the next run
<state>/root.json          the vendor's first root, when it was given to a running server
<state>/tls/               the own certificate authority and the server's certificate
<state>/upstream.json      the credential for the next server (0600)
<state>/serverctl.json     address and token for serverctl on this machine (0600)
<state>/server.lock        held by the one server of this folder
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import platformdirs

SYSTEM_CONFIG = Path("/etc/holdfast/server.toml")
SYSTEM_STATE = Path("/var/lib/holdfast-server")


class Layout(NamedTuple):
    """Every path, from the state folder."""

    state: Path

    @property
    def database(self) -> Path:
        return self.state / "server.db"

    @property
    def feed(self) -> Path:
        return self.state / "feed"

    @property
    def work(self) -> Path:
        return self.state / "work"

    @property
    def cache(self) -> Path:
        return self.state / "cache"

    @property
    def trust(self) -> Path:
        return self.state / "trust"

    @property
    def mirror(self) -> Path:
        return self.state / "mirror.json"

    @property
    def given_root(self) -> Path:
        return self.state / "root.json"

    @property
    def tls(self) -> Path:
        return self.state / "tls"

    @property
    def local_access(self) -> Path:
        return self.state / "serverctl.json"

    @property
    def upstream(self) -> Path:
        return self.state / "upstream.json"

    @property
    def lock(self) -> Path:
        return self.state / "server.lock"


def default_config() -> Path | None:
    """HOLDFAST_SERVER_CONFIG, else the machine's file for root, else none: all defaults."""
    named = os.environ.get("HOLDFAST_SERVER_CONFIG")
    if named:
        return Path(named)
    return SYSTEM_CONFIG if os.geteuid() == 0 and SYSTEM_CONFIG.exists() else None


def resolve(state_dir: str | None, config_path: Path | None) -> Layout:
    """The layout for the configured state folder; a relative one is the file's neighbour."""
    if state_dir is not None:
        base = config_path.absolute().parent if config_path else Path.cwd()
        return Layout(base / state_dir)
    if config_path == SYSTEM_CONFIG:
        return Layout(SYSTEM_STATE)
    return Layout(platformdirs.user_state_path("holdfast-server"))

"""Where things live on this machine: one place that spells out every path.

<state>/boot.json            the boot record (agent.slots.record)
<state>/current              link to the active slot, derived from the record
<state>/slots/a, slots/b     the two slots; release.json in each is its seal
<state>/incoming/            fetcher → stager, one folder an attempt
<state>/cache/               the fetcher's partial downloads
<state>/trust/fetcher/       the fetcher's TUF metadata
<state>/trust/stager/        the stager's own TUF metadata
<state>/quarantine.json      what was reverted here
<state>/history.jsonl        one line an attempt
<state>/evidence/            what each verdict was based on
<state>/settings-undo.json   previous values of settings a trial changed
<state>/server/              the fetcher's: its Security Server, and reports for it
<state>/host-id              this machine's name in the rollout
<runtime>/control.sock       administrators
<runtime>/status.sock        everybody, read only
<runtime>/fetcher.sock       the fetcher, where it is a service of its own
<state>/guardian.lock        held by the one guardian
<state>/slots.lock           held by the one stager that is at work
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:  # agentctl status finds its socket without loading msgspec
    from agent.slots.record import SlotName

SLOT_NAMES: tuple[SlotName, ...] = ("a", "b")


class Folders(Protocol):
    """The settings that say where things live (agent.config.Config has them)."""

    @property
    def state_dir(self) -> str | None: ...

    @property
    def runtime_dir(self) -> str | None: ...

    @property
    def trust_root(self) -> str | None: ...


class Layout(NamedTuple):
    """Every path, from the state and runtime folders."""

    state: Path
    runtime: Path
    trust_root: Path

    @property
    def boot_record(self) -> Path:
        return self.state / "boot.json"

    @property
    def current(self) -> Path:
        return self.state / "current"

    @property
    def slots(self) -> Path:
        return self.state / "slots"

    def slot(self, name: str) -> Path:
        return self.slots / name

    @property
    def incoming(self) -> Path:
        return self.state / "incoming"

    @property
    def staging(self) -> Path:
        return self.state / "staging"

    @property
    def cache(self) -> Path:
        return self.state / "cache"

    @property
    def fetcher_trust(self) -> Path:
        return self.state / "trust" / "fetcher"

    @property
    def server(self) -> Path:
        return self.state / "server"

    @property
    def enrolment(self) -> Path:
        return self.server / "enrolment.json"

    @property
    def credential(self) -> Path:
        return self.server / "credential"

    @property
    def spool(self) -> Path:
        return self.server / "spool"

    @property
    def stager_trust(self) -> Path:
        return self.state / "trust" / "stager"

    @property
    def quarantine(self) -> Path:
        return self.state / "quarantine.json"

    @property
    def history(self) -> Path:
        return self.state / "history.jsonl"

    @property
    def trial_notes(self) -> Path:
        return self.state / "trial.json"

    @property
    def evidence(self) -> Path:
        return self.state / "evidence"

    @property
    def settings_undo(self) -> Path:
        return self.state / "settings-undo.json"

    @property
    def host_id(self) -> Path:
        return self.state / "host-id"

    @property
    def control_socket(self) -> Path:
        return self.runtime / "control.sock"

    @property
    def status_socket(self) -> Path:
        return self.runtime / "status.sock"

    @property
    def fetcher_socket(self) -> Path:
        return self.runtime / "fetcher.sock"

    @property
    def lock(self) -> Path:
        return self.state / "guardian.lock"

    @property
    def slots_lock(self) -> Path:
        return self.state / "slots.lock"


SYSTEM_CONFIG = Path("/etc/holdfast/config.toml")


def default_path() -> Path:
    """HOLDFAST_CONFIG, else the platform's configuration folder.

    An ordinary user without a configuration of their own means the machine's.
    """
    named = os.environ.get("HOLDFAST_CONFIG")
    if named:
        return Path(named)
    if sys.platform == "win32":
        return machine_folder() / "config.toml"
    if _is_root():
        return SYSTEM_CONFIG
    import platformdirs  # noqa: PLC0415 - 3 ms that agentctl with --config doesn't pay

    own = platformdirs.user_config_path("holdfast") / "config.toml"
    return SYSTEM_CONFIG if SYSTEM_CONFIG.exists() and not own.exists() else own


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def resolve(config: Folders, config_path: Path) -> Layout:
    """The layout that `config`, read from `config_path`, asks for.

    Relative paths in the file are relative to the file's folder. The machine's
    own configuration means the machine's folders, whoever reads it: the
    fetcher isn't root.
    """
    path = config_path.absolute()
    base = path.parent
    system = _is_root() or path == SYSTEM_CONFIG
    state = base / config.state_dir if config.state_dir else _default_state(system=system)
    runtime = (
        base / config.runtime_dir
        if config.runtime_dir
        else _default_runtime(config, state, system=system)
    )
    root = base / (config.trust_root or "root.json")
    return Layout(state=state, runtime=runtime, trust_root=root)


class _Unset(NamedTuple):
    """A configuration that leaves every folder open."""

    state_dir: str | None = None
    runtime_dir: str | None = None
    trust_root: str | None = None


def assumed(config_path: Path) -> Layout | None:
    """Where the machine's agent lives if `config_path`, which can't be read, doesn't move it.

    None: that isn't the machine's configuration.
    """
    machines = machine_folder() / "config.toml" if sys.platform == "win32" else SYSTEM_CONFIG
    return resolve(_Unset(), config_path) if config_path.absolute() == machines else None


def machine_folder() -> Path:
    """The machine's folder on Windows: the agent is the machine's, whoever asks it."""
    return Path(os.environ.get("PROGRAMDATA", "C:\\ProgramData"), "Holdfast")


def _default_state(*, system: bool) -> Path:
    if sys.platform == "win32":
        return machine_folder() / "state"
    if system:
        return Path("/var/lib/holdfast")
    import platformdirs  # noqa: PLC0415 - only where the file leaves it open

    return platformdirs.user_state_path("holdfast")


def _default_runtime(config: Folders, state: Path, *, system: bool) -> Path:
    if config.state_dir or sys.platform == "win32":
        return state / "run"
    if system:
        return Path("/run/holdfast")
    # Without one, platformdirs would offer a name in /tmp that anybody can take first.
    session = os.environ.get("XDG_RUNTIME_DIR")
    return Path(session) / "holdfast" if session else state / "run"

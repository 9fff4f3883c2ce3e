"""The two programs that are installed on Linux: what of each differs from the other.

Of a product's package the name is also that of its folder in /opt, of its state
folder, of its documents and of its account; all else that differs is a field here.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from builder.project import ROOT

UNITS = ROOT / "service" / "systemd"
LINUX = ROOT / "packaging" / "linux"
DOCUMENTS = ROOT / "docs"
SETTINGS = Path("etc/holdfast")  # both products' folder

_AGENT = """\
The agent follows a signed feed, rebuilds incremental patches into one of two
slots, switches in one step, watches CPU, memory and health of the protected
engines after the switch, and goes back to the prior slot by itself when the
update hurts."""
_SERVER = """\
The Security Server follows the vendor's signed feed, rebuilds full payloads
from increments, serves its agents, tells them when there is something new, and
accounts for every machine. It signs nothing: agents verify from the vendor's
root."""
_LIBRARIES = """\
The libraries it needs are in {folder}; the interpreter is the
distribution's."""


class Product(NamedTuple):
    """One program and its package."""

    name: str
    package: str
    summary: str | None  # None: the project's own
    description: tuple[str, ...]  # paragraphs, their lines broken
    parts: tuple[str, ...]  # of the project's wheel
    extra: str  # of the project's dependencies; "": those that it has without any
    lock: Path
    commands: dict[str, str]  # by name: the system's folder that has a link to it
    units: tuple[str, ...]
    service: str  # of the units the one that is stopped while files change
    settings: str  # the file in SETTINGS
    account: str  # what the account's comment says
    manual: tuple[str, ...]
    documents: tuple[Path, ...]

    @property
    def program(self) -> Path:
        """Its virtual environment, below the root."""
        return Path("opt", self.package)

    @property
    def pages(self) -> Path:
        """The folder of its documents, below the root."""
        return Path("usr/share/doc", self.package)

    @property
    def script(self) -> Path:
        """Shell functions of its own, beside lifecycle.sh."""
        return LINUX / f"{self.name}.sh"

    def modules(self, python: str) -> Path:
        """What it imports from, below the root."""
        return self.program / "lib" / f"python{python}" / "site-packages"

    def enabled_units(self) -> list[str]:
        """The names of those that an administrator enables."""
        texts = {name: (UNITS / name).read_text(encoding="utf-8") for name in self.units}
        return [name for name, text in texts.items() if "[Install]" in text]


AGENT = Product(
    name="agent",
    package="holdfast",
    summary=None,
    description=(_AGENT, _LIBRARIES.format(folder="/opt/holdfast")),
    parts=("agent", "feed"),
    extra="",
    lock=ROOT / "requirements" / "agent.txt",
    commands={"agentctl": "usr/bin", "agentd": "usr/sbin"},
    units=("holdfast-agent.service", "holdfast-bootguard.service", "holdfast-fetcher.service"),
    service="holdfast-agent.service",
    settings="config.toml",
    account="Holdfast fetcher",
    manual=("agentctl.1", "agentd.8"),
    documents=(
        ROOT / "config.example.toml",
        DOCUMENTS / "install.md",
        DOCUMENTS / "operations.md",
        DOCUMENTS / "agentctl.md",
        DOCUMENTS / "configuration.md",
        DOCUMENTS / "threat-model.md",
    ),
)
SERVER = Product(
    name="server",
    package="holdfast-server",
    summary="Serves verified updates to the Holdfast agents of a site",
    description=(_SERVER, _LIBRARIES.format(folder="/opt/holdfast-server")),
    parts=("feed", "server"),
    extra="server",
    lock=ROOT / "requirements" / "server.txt",
    commands={"serverctl": "usr/bin"},
    units=("holdfast-serverd.service",),
    service="holdfast-serverd.service",
    settings="server.toml",
    account="Holdfast Security Server",
    manual=("serverctl.1",),
    documents=(
        ROOT / "server.example.toml",
        DOCUMENTS / "server.md",
        DOCUMENTS / "api.md",
        DOCUMENTS / "install.md",
        DOCUMENTS / "threat-model.md",
    ),
)
PRODUCTS = {product.name: product for product in (AGENT, SERVER)}

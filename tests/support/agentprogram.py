"""Copies of the agent's program, as a vendor would publish them, some of them spoiled.

tree = agentprogram.copy(tmp_path / "new", version="0.2.0")
agentprogram.spoil(tree, "crash")
"""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMPONENT = "agent-program"
CONFIGURED = f'[program]\ncomponent = "{COMPONENT}"\nanswer_s = {{answer_s}}\n'

_FAULTS = {
    # fault: (file, what is put before its first statement)
    "crash": ("agent/fetcher/__main__.py", "raise SystemExit(3)\n"),
    "hang": ("agent/fetcher/__main__.py", "import time\ntime.sleep(600)\n"),
    "stager": ("agent/stager/__main__.py", "raise SystemExit(4)\n"),
}
_BLIND = """
from feed.errors import TransferError as _TransferError


def _blind(*_arguments, **_options):
    raise _TransferError("this program has forgotten how to connect")


Transport.fetch = _blind
"""


def configured(*, answer_s: float = 10.0) -> str:
    """The table of the configuration that makes the component the agent's program."""
    return CONFIGURED.format(answer_s=answer_s)


def copy(folder: Path, *, version: str) -> Path:
    """A tree with this checkout's agent and feed, which calls itself `version`."""
    for name in ("agent", "feed"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
    package = folder / "agent" / "__init__.py"
    text = package.read_text()
    head, _, _ = text.partition("__version__")
    package.write_text(f'{head}__version__ = "{version}"\n')
    return folder


def spoil(tree: Path, fault: str) -> Path:
    """Give the program a fault: crash, hang, stager (which crashes), blind, or foreign."""
    if fault == "blind":
        with (tree / "feed" / "transport.py").open("a") as file:
            file.write(_BLIND)
    elif fault == "foreign":
        (tree / "agent" / "program.json").write_text('{"protocol": 99}\n')
    else:
        name, code = _FAULTS[fault]
        path = tree / name
        path.write_text(code + path.read_text().replace("from __future__ import annotations", ""))
    return tree

"""httpx without its command line, imported before anything else imports httpx.

Where click and rich are installed, httpx loads both for a program that nobody
runs here: 5.4 MB and 90 ms of CPU of each check. It provides for their absence.
"""

from __future__ import annotations

import sys
from typing import Any

_COMMAND_LINE = "httpx._main"

if "httpx" not in sys.modules:
    absent: dict[str, Any] = {_COMMAND_LINE: None}
    sys.modules.update(absent)
    import httpx  # noqa: F401 - for what it leaves in sys.modules

    del sys.modules[_COMMAND_LINE]

"""Code that runs inside an endpoint's processes before they start: for faults from within.

    plant(endpoint, "stager", "raise SystemExit(3)")

Programs: guardian, fetcher (its schedule), worker (one check), stager. Python
loads it as sitecustomize, so the processes themselves are the real ones.
"""

from __future__ import annotations

from pathlib import Path

from tests.support.endpoint import Endpoint

_LOADER = """
import sys
from pathlib import Path

_PROGRAMS = {
    "agent.guardian": "guardian",
    "agent.fetcher": "fetcher",
    "agent.fetcher.cycle": "worker",
    "agent.stager": "stager",
}
for _word in sys.orig_argv:
    for _file in sorted(Path(__file__).parent.glob(f"{_PROGRAMS.get(_word, '-')}.*.py")):
        exec(compile(_file.read_text(), str(_file), "exec"), {"__name__": "sabotage"})
"""

# A hook of feed.durable that fails as a disk does.
_DISK = """
import errno, os, re
from pathlib import Path
from feed import durable

def _fail(point, where):
    armed = {armed!r}
    if re.search({pattern!r}, point + " " + where) and (armed is None or Path(armed).exists()):
        raise OSError(errno.{error}, os.strerror(errno.{error}), where)

durable.set_fault_hook(_fail)
"""

# The wall clock, moved by the seconds in a file, which may change while the process runs.
_CLOCK = """
import time
from pathlib import Path

_file, _time = Path({offset!r}), time.time
time.time = lambda: _time() + float(_file.read_text() or 0)
"""

# Metadata's expiry is judged by datetime, which doesn't ask the time module.
_CALENDAR = """
import datetime, types
import feed.trust

class _Moved(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.now(tz) + datetime.timedelta(seconds=time.time() - _time())

feed.trust.datetime = types.ModuleType("datetime")
feed.trust.datetime.__dict__.update(vars(datetime) | {{"datetime": _Moved}})
"""


def plant(endpoint: Endpoint, program: str, code: str, *, first: bool = False) -> None:
    """Run `code` whenever `program` starts, after what was planted before, or `first`."""
    folder = endpoint.folder / "sabotage"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_LOADER)
    count = len(list(folder.glob("*.*.py")))
    (folder / f"{program}.{'' if first else 'x'}{count:02}.py").write_text(code)
    endpoint.environment["PYTHONPATH"] = str(folder)


def uproot(endpoint: Endpoint, program: str) -> None:
    """Processes of `program` start as they are again."""
    for path in (endpoint.folder / "sabotage").glob(f"{program}.*.py"):
        path.unlink()


def break_disk(
    endpoint: Endpoint, program: str, *, pattern: str, error: str, armed: Path | None = None
) -> None:
    """Durable writes fail with `error` (ENOSPC, EROFS, EIO) where `pattern` is in "step path".

    With `armed`, only while that file exists.
    """
    where = str(armed) if armed else None
    plant(endpoint, program, _DISK.format(pattern=pattern, error=error, armed=where))


def move_clock(endpoint: Endpoint, seconds: float) -> Path:
    """All processes see the wall clock off by `seconds`; returns the file that says how far."""
    offset = endpoint.folder / "clock-offset"
    offset.write_text(str(seconds))
    for program in ("guardian", "fetcher"):
        plant(endpoint, program, _CLOCK.format(offset=str(offset)), first=True)
    for program in ("worker", "stager"):
        plant(endpoint, program, (_CLOCK + _CALENDAR).format(offset=str(offset)))
    return offset

"""A vendor's feed and machines that follow it, built once a worker and copied for each test.

    vendor = machines.vendor(tmp_path, upto="r171")
    endpoint = machines.installed(tmp_path, vendor.url)       # runs r171, nothing to go back to
    with machines.up(endpoint):
        machines.refused(endpoint, "trust_refused", "virus-pattern")
    machines.untouched(endpoint)

Two components: virus-pattern changes with every release, cleanup-template never does.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.endpoint import Endpoint
from tests.support.sabotage import plant
from tests.support.vendor import Vendor

RELEASES = ("r171", "r173")
PATTERN, TEMPLATE = "virus-pattern", "cleanup-template"
HEALTH = {"warmup_s": 0.0, "window_s": 0.1, "probation_s": 0.0, "baseline_s": 0.0}
# Ten looks a second, and the load of the tests beside this one holds nothing up.
_BRISK = """
from agent.guardian import conditions, trial

trial.SAMPLE_INTERVAL_S = 0.1
conditions.is_foreign_pressure = lambda sample: False
"""


def pattern(number: int) -> bytes:
    """The content of virus-pattern `number`: 60 kB that don't compress, each close to the next."""
    data = bytearray(random.Random(7).randbytes(60_000))
    data[1000:1016] = f"pattern {number:8}".encode()
    return bytes(data)


def components(number: int) -> dict[str, tuple[str, bytes | Path]]:
    """What release r<number> is made of."""
    return {
        PATTERN: (str(number), pattern(number)),
        TEMPLATE: ("5", random.Random(5).randbytes(8_000)),
    }


@functools.cache
def _shelf() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="holdfast-machines-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _place() -> Path:
    return Path(tempfile.mkdtemp(dir=_shelf()))


@functools.cache
def _vendor(upto: str) -> Path:
    folder = _place() / "vendor"
    if upto == RELEASES[0]:
        Vendor(folder)
    else:
        shutil.copytree(_vendor(RELEASES[RELEASES.index(upto) - 1]), folder)
    Vendor(folder).ship(upto, components(int(upto[1:])))
    return folder


@functools.cache
def state(release: str) -> Path:
    """The state folder of a machine that runs `release`, to be copied."""
    folder = _place() / "machine"
    copy = Vendor(_vendor(release))
    endpoint = Endpoint(folder, url=copy.url, root=copy.root, health=HEALTH, at_start=False)
    plant(endpoint, "guardian", _BRISK)
    if release != RELEASES[0]:
        before = state(RELEASES[RELEASES.index(release) - 1])
        shutil.copytree(before, endpoint.layout.state, symlinks=True)
    with up(endpoint):
        updated(endpoint, release)
    return endpoint.layout.state


def vendor(folder: Path, *, upto: str = "r171") -> Vendor:
    """A vendor of its own below `folder`, that has shipped the releases up to `upto`."""
    shutil.copytree(_vendor(upto), folder / "vendor")
    return Vendor(folder / "vendor")


def bare(folder: Path, url: str, *, name: str = "endpoint", **options: Any) -> Endpoint:
    """A machine that has nothing installed yet and checks when it is told to."""
    given = {"health": HEALTH, "at_start": False, **options}
    root = (_vendor(RELEASES[0]) / "feed" / "metadata" / "1.root.json").read_bytes()
    endpoint = Endpoint(folder / name, url=url, root=root, **given)
    plant(endpoint, "guardian", _BRISK)
    return endpoint


def installed(folder: Path, url: str, *, release: str = "r171", **options: Any) -> Endpoint:
    """A machine that runs `release`; the one before it, if any, is in its spare slot."""
    shutil.copytree(state(release), folder / "endpoint" / "state", symlinks=True)
    return bare(folder, url, **options)


@contextlib.contextmanager
def up(endpoint: Endpoint, *prefix: str) -> Iterator[None]:
    """agentd, past what it does at its start."""
    with endpoint.running(*prefix):
        endpoint.wait_for(settled)
        yield


def settled(status: dict[str, Any]) -> bool:
    """Whether nothing is in progress."""
    resting = status["state"]["name"] in {"idle", "committed", "reverted", "failed"}
    return resting and not status.get("verifying") and status["fetcher"]["running"]


def updated(endpoint: Endpoint, release: str) -> dict[str, Any]:
    """`agentctl update` leads to `release`, kept and whole; its line of the history."""
    before = len(endpoint.history())
    done = endpoint.ctl("update")
    assert done.returncode == 0, done.stdout + done.stderr
    untouched(endpoint, release)
    (line,) = endpoint.history()[before:]
    assert (line["outcome"], line["release"]) == ("committed", release)
    return line


def refused(endpoint: Endpoint, code: str, *words: str) -> str:
    """`agentctl update` fails with `code`; the sentence, which has to contain `words`."""
    done = endpoint.ctl("update")
    assert done.returncode == 1, done.stdout + done.stderr
    status = endpoint.status()
    error = status["check"]["last_error"]
    assert (status["state"]["name"], status["state"]["reason"]) == ("failed", code), status
    assert error["code"] == code
    assert error["sentence"] in done.stdout
    missing = [word for word in words if word not in error["sentence"]]
    assert not missing, f"{missing} not in {error['sentence']!r}"
    return str(error["sentence"])


def untouched(endpoint: Endpoint, release: str = "r171") -> None:
    """The active slot holds `release`, is what its seal says, and engines read it."""
    assert endpoint.slot_problems() == []
    status = endpoint.status()
    assert status["release"] == release
    if release[1:].isdigit():
        content = endpoint.layout.current / PATTERN / f"{PATTERN}.dat"
        assert content.read_bytes() == pattern(int(release[1:]))


def flip_bit(path: Path, at: int = 20) -> None:
    """Alter one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def full_of(given: Vendor, version: str) -> Path:
    """Where the feed has virus-pattern `version` whole."""
    (found,) = (given.feed / "targets" / "components" / PATTERN / version).glob("*.full")
    return found


def delta_of(given: Vendor) -> Path:
    """Where the feed has the incremental from 171 to 173."""
    folder = given.feed / "targets" / "components" / PATTERN / "173"
    (found,) = folder.glob("*.from-171.delta")
    return found

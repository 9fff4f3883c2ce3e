"""A small protected engine: scans a folder over and over with the active slot's rules.

    python examples/yara/engine.py --rules STATE/current/virus-pattern/rules.yar \\
        --folder SAMPLES --pid-file engine.pid --health-socket health.sock

It does what engines in the field do, with yara-x, and nothing for show:

 * A round over the folder starts every `--pace` seconds, or as soon as the one
   before is over when that took longer. New rules start a new round at once.
 * SIGHUP: the rules changed, load them. Rules that don't compile leave the
   loaded ones at work, and the health answer says so. Without any rules it
   waits for the first.
 * SIGTERM and SIGINT: exit 0 after the file being scanned, pid file and socket gone.
 * Whoever connects to the health socket gets one line of JSON.

One thread on purpose. yara-x keeps the interpreter's lock while it scans a
file, so an answering thread would wait just as long. Here requests and signals
are looked at between two files: the answer is as late as the slowest file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import selectors
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

try:
    import yara_x
except ImportError:
    sys.exit("engine: yara-x isn't installed here; pip install yara-x (it has no wheel everywhere)")

FILE_TIMEOUT_S = 10  # a file that takes longer is given up; the round goes on
ANSWER_TIMEOUT_S = 5.0
DETECTIONS_SHOWN = 20
RELEASE_LINE = re.compile(r"\A// rules release (\S+)")


class RulesError(Exception):
    """Rules that can't be read or don't compile; the text names the file and why."""


@dataclass(frozen=True)
class Rules:
    """Compiled rules and the release their first line names."""

    version: str
    scanner: yara_x.Scanner

    @classmethod
    def load(cls, path: Path) -> Rules:
        """The rules in `path`; about 1.3 s of CPU for the example's 400 KB.

        Raises RulesError: unreadable, or not rules.
        """
        try:
            source = path.read_text(encoding="utf-8")
            compiled = yara_x.compile(source)
        except (OSError, UnicodeDecodeError) as error:
            raise RulesError(f"{path}: can't be read: {error}") from error
        except yara_x.CompileError as error:
            raise RulesError(f"{path}: doesn't compile: {str(error).splitlines()[0]}") from error
        scanner = yara_x.Scanner(compiled)
        scanner.set_timeout(FILE_TIMEOUT_S)
        named = RELEASE_LINE.match(source)
        return cls(version=named[1] if named else "unnamed", scanner=scanner)


@dataclass
class Round:
    """What one round over the folder came to."""

    files: int = 0
    skipped: int = 0  # unreadable, gone meanwhile, or given up after FILE_TIMEOUT_S
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    detections: list[str] = field(default_factory=list)  # "file: rule"


def scan_folder(rules: Rules, folder: Path) -> Iterator[Round]:
    """Scan each regular file below `folder`; yields the round so far after each.

    Links are not followed. The caller may stop after any file.
    """
    result = Round()
    started, cpu_started = time.monotonic(), time.process_time()
    for path in _regular_files(folder):
        try:
            found = rules.scanner.scan_file(str(path)).matching_rules
            result.detections += [f"{path.name}: {rule.identifier}" for rule in found]
            result.files += 1
        except (yara_x.ScanError, yara_x.TimeoutError):
            result.skipped += 1
        result.seconds = time.monotonic() - started
        result.cpu_seconds = time.process_time() - cpu_started
        yield result


def _regular_files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            with contextlib.suppress(OSError):
                if stat.S_ISREG(path.lstat().st_mode):  # a fifo would block the engine
                    yield path


class Engine:
    """The rules at work, the rounds they made, and the loop that drives both."""

    def __init__(self, *, rules_path: Path, folder: Path, pace_s: float) -> None:
        self.rules_path = rules_path
        self.folder = folder
        self.pace_s = pace_s
        self.rules: Rules | None = None
        self.load_error: str | None = None
        self.rounds = 0
        self.last = Round()
        self.reload_asked = True
        self.stop_asked = False
        self._selector = selectors.DefaultSelector()

    def run(self, listener: socket.socket) -> None:
        """Load the rules, scan, and answer on `listener` until told to stop."""
        self._selector.register(listener, selectors.EVENT_READ, self._answer)
        due = time.monotonic()
        while not self.stop_asked:
            if self.reload_asked:
                self.load()
                due = time.monotonic()
            if time.monotonic() >= due:
                due = time.monotonic() + self.pace_s
                self._scan_round()
            self._serve(timeout_s=max(0.0, due - time.monotonic()))

    @contextlib.contextmanager
    def obeying_signals(self) -> Iterator[None]:
        """SIGHUP asks for a reload, SIGTERM and SIGINT for the end; each ends a wait at once."""
        reader, writer = socket.socketpair()
        with reader, writer, self._selector:
            reader.settimeout(0)
            writer.settimeout(0)
            # Without it select goes on waiting after the handler, for the whole pace.
            signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            self._selector.register(reader, selectors.EVENT_READ, lambda _: reader.recv(4096))
            signal.signal(signal.SIGHUP, self._ask_reload)
            signal.signal(signal.SIGTERM, self._ask_stop)
            signal.signal(signal.SIGINT, self._ask_stop)
            yield

    def load(self) -> None:
        """Take the rules in `rules_path`; keep the loaded ones if they don't compile."""
        self.reload_asked = False
        try:
            self.rules = Rules.load(self.rules_path)
        except RulesError as error:
            at_work = f"release {self.rules.version} stays" if self.rules else "no rules at work"
            self.load_error = f"{error}; {at_work}"
            print(f"engine: {self.load_error}", file=sys.stderr, flush=True)
            return
        self.load_error = None
        self.rounds, self.last = 0, Round()
        print(f"engine: rules release {self.rules.version} at work", file=sys.stderr, flush=True)

    def health(self) -> dict[str, object]:
        """What the health socket answers; the rounds are those of the rules at work."""
        return {
            "rules": self.rules.version if self.rules else None,
            "load_error": self.load_error,
            "rounds": self.rounds,
            "last_round_s": round(self.last.seconds, 4),
            "last_round_cpu_s": round(self.last.cpu_seconds, 4),
            "files": self.last.files,
            "skipped": self.last.skipped,
            "detections": len(self.last.detections),
            "detected": self.last.detections[:DETECTIONS_SHOWN],
            "pid": os.getpid(),
        }

    def _scan_round(self) -> None:
        """One round; a signal ends it after the file at hand, and it isn't counted."""
        if self.rules is None:
            return
        result = Round()
        for result in scan_folder(self.rules, self.folder):  # noqa: B007 - the last one counts
            self._serve(timeout_s=0.0)
            if self.stop_asked or self.reload_asked:
                return
        self.rounds += 1
        self.last = result

    def _serve(self, *, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            key.data(key.fileobj)

    def _answer(self, listener: socket.socket) -> None:
        # Non-blocking: a client that doesn't read costs the engine nothing. The
        # line fits into any socket buffer.
        with contextlib.suppress(OSError), listener.accept()[0] as connection:
            connection.settimeout(0)
            connection.sendall(json.dumps(self.health()).encode() + b"\n")

    def _ask_reload(self, *_: object) -> None:
        self.reload_asked = True

    def _ask_stop(self, *_: object) -> None:
        self.stop_asked = True


def ask(path: Path, *, timeout_s: float = ANSWER_TIMEOUT_S) -> dict[str, object]:
    """What the engine behind the health socket `path` answers.

    Raises OSError (TimeoutError included) when nobody answers in time, and
    ValueError when the answer is cut short.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(timeout_s)
        client.connect(str(path))
        with client.makefile("rb") as stream:
            answer: dict[str, object] = json.loads(stream.readline())
    return answer


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """The health socket. A living engine keeps it; what a killed one left is removed."""
    if _is_served(path):
        sys.exit(f"engine: {path}: another process listens there; it stays, this one ends")
    if path.is_socket():
        path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(str(path))
        except OSError as error:
            sys.exit(f"engine: {path}: can't listen there: {error}")
        listener.listen()
        listener.settimeout(0)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(ANSWER_TIMEOUT_S)
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _pid_file(path: Path) -> Iterator[None]:
    draft = path.with_name(f"{path.name}.new")
    draft.write_text(f"{os.getpid()}\n", encoding="ascii")
    draft.replace(path)  # a reader sees a whole number or none
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Scan a folder continuously with yara-x.")
    parser.add_argument("--ask", type=Path, metavar="SOCKET", help="print an engine's health, exit")
    parser.add_argument("--rules", type=Path, help="rules file in the active slot")
    parser.add_argument("--folder", type=Path, help="what to scan")
    parser.add_argument("--pid-file", type=Path)
    parser.add_argument("--health-socket", type=Path)
    parser.add_argument("--pace", type=float, default=1.0, help="seconds from round to round")
    options = parser.parse_args(arguments)
    needed = (options.rules, options.folder, options.pid_file, options.health_socket)
    if options.ask is None and None in needed:
        parser.error("--rules, --folder, --pid-file and --health-socket are needed")
    return options


def _print_health(path: Path) -> int:
    try:
        print(json.dumps(ask(path), indent=2))
    except (OSError, ValueError) as error:
        print(f"engine: {path}: no answer: {error}", file=sys.stderr)
        return 1
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the engine, or ask one with --ask: exit 0 if it answered in time."""
    options = _options(arguments)
    if options.ask:
        return _print_health(options.ask)
    engine = Engine(rules_path=options.rules, folder=options.folder, pace_s=options.pace)
    with (
        engine.obeying_signals(),
        _listening(options.health_socket) as listener,
        _pid_file(options.pid_file),  # last: whoever reads it may signal at once
    ):
        engine.run(listener)
    return 0


if __name__ == "__main__":
    sys.exit(main())

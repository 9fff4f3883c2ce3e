"""The whole road once, with real programs: publish, update, break, go back, repair.

    python examples/yara/demo.py            about a minute; `make demo` does the set-up too
    python examples/yara/demo.py --keep     leaves the folder to look around in

A release desk (`publisher`), a Security Server (`serverctl`), a scanning engine
(engine.py) and the agent (`agentd`) run in one temporary folder; the commands are
those that people type. Each step is held against the agent's status and history,
the files in the slots, what the server says, and what the engine itself answers.

Exit codes: 0 everything happened; 1 a step didn't, which is named; 128 + N
stopped by signal N, as Ctrl-C does (130). No process is left behind.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
import urllib.request
from pathlib import Path

import make_rules
from demo_attempt import ENGINE_PACE_S, Attempt, Observer, share_of_a_core, words
from demo_screen import BOLD, FAINT, GREEN, RED, Screen
from demo_server import SecurityServer
from demo_stage import Interrupted, Stage, StepError, free_port

from agent import config, layout
from agent.ctl.client import AskError
from agent.errors import ConfigError
from agent.layout import Layout

EXAMPLE = Path(__file__).resolve().parent
CONFIG = EXAMPLE / "demo.toml"
COMPONENT = "virus-pattern"
PROGRAMS = {
    "publisher": "publisher",
    "serverctl": "server.ctl",
    "agentctl": "agent.ctl",
    "agentd": "agent.guardian",
}
PUSH_PATIENCE_S = 20.0  # from the server's switch to the agent's check
START_PATIENCE_S = 20.0
PORT_TRIES = 5


class Demo:
    """The steps, in order; each raises StepError when what it promises isn't so."""

    places: Layout
    observer: Observer

    def __init__(self, stage: Stage, screen: Screen, config_file: Path) -> None:
        self.stage = stage
        self.screen = screen
        self.attempts: dict[int, Attempt] = {}
        self.saved: dict[int, tuple[int, int]] = {}  # by the server: bytes fetched, bytes saved
        self._number = 0
        self._config_file = config_file
        self.vendor = stage.folder / "vendor"
        self.feed = self.vendor / "feed"
        self.endpoint = stage.folder / "endpoint"
        self.config = self.endpoint / "config.toml"
        self.server = SecurityServer(stage, screen)

    def play(self) -> None:
        """Everything."""
        self._open_the_desk()
        self._begin("Release 171 is published, and the vendor serves it")
        self._publish(171)
        port = self._serve()
        self._begin("A Security Server mirrors it")
        self._start_server(port)
        self._begin("An engine starts, an agent protects it and is enrolled: 171 comes in full")
        self._configure()
        self._start_engine()
        self._start_agent()
        self._enrol()
        self._follow(171, outcome="committed", then=171)
        self._begin("Release 173 comes as an incremental, and is pushed")
        self._publish(173)
        self._push(173, outcome="committed", then=173)
        self._check_incremental(173)
        self._begin("Release 175 burns a whole core, and is taken back")
        self._publish(175)
        self._push(175, outcome="reverted", then=173)
        self._check_taken_back(175)
        self._begin("Release 177 repairs it")
        self._publish(177)
        self._push(177, outcome="committed", then=177)
        self._begin("What an administrator sees")
        for line in ("agentctl status", "agentctl history", "agentctl explain"):
            self._type(line)
        for line in ("serverctl status", "serverctl agents", "serverctl reports"):
            self._type(line)

    # The vendor.

    def _open_the_desk(self) -> None:
        self._begin("A vendor's release desk: keys, and an empty signed feed")
        self.endpoint.mkdir()
        self._aside(f"cd {self.stage.folder}")
        self._aside(f"export HOLDFAST_PUBLISHER_HOME={self.vendor}")
        self._aside(f"export HOLDFAST_CONFIG={self.config}")
        self._aside(f"export HOLDFAST_SERVER_CONFIG={self.server.config}")
        self._type("publisher init")
        self._script("make_rules.py", "rules", "rules")
        self._script("make_rules.py", "samples", "endpoint/samples")
        _expect(self._root().is_file(), f"{self._root()} is missing")
        self.screen.fact("keys and feed are there, and the rules of four releases")

    def _publish(self, version: int) -> None:
        payload = f"rules/{version}/{make_rules.RULES_FILE}"
        component = f"{COMPONENT}:pattern:{version}={payload}"
        self._type(f"publisher release {version} --component {component}")
        self._type(f"publisher publish {version}")
        self._type(f"publisher rollout start {version}")
        manifests = list((self.feed / "targets" / "releases").glob(f"*.{version}.json"))
        _expect(len(manifests) == 1, f"release {version} isn't in {self.feed}")

    def _serve(self) -> int:
        """Serve the feed on a free port; another program may be quicker to take it."""
        for _ in range(PORT_TRIES):
            port = free_port()
            command = f"publisher serve --port {port}"
            server = self.stage.start("publisher-serve", *_python(command), folder=self.vendor)
            try:
                self.stage.wait_until(
                    lambda port=port: self._is_served(port),  # type: ignore[misc]
                    what=f"the feed is served on port {port}",
                    seconds=START_PATIENCE_S,
                )
            except StepError:
                if server.process.poll() is None:
                    raise
                self.stage.drop(server)
                continue
            self.screen.command(f"{command} &")
            self.screen.fact(f"http://127.0.0.1:{port} serves this feed")
            return port
        raise StepError(f"no port was left for the feed, in {PORT_TRIES} tries")

    def _is_served(self, port: int) -> bool:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"http://127.0.0.1:{port}/metadata/timestamp.json", timeout=2) as answer:
            served: bytes = answer.read()
        return served == (self.feed / "metadata" / "timestamp.json").read_bytes()

    # The premises.

    def _start_server(self, port: int) -> None:
        self.screen.command("serverctl run &")
        feed_url = f"http://127.0.0.1:{port}"
        self.server.start(feed_url=feed_url, root=self._root(), command=_python("serverctl run"))
        told = self.server.wait_for_release(171)
        fetched = told["mirror"]["fetched_bytes"]
        self.screen.fact(f"171 is mirrored: {fetched:,} bytes fetched, verified from the root")

    def _push(self, version: int, *, outcome: str, then: int) -> None:
        """The server looks at the vendor's feed; the agent hears of it without being asked."""
        before = self.server.status()["mirror"]
        ended = len(self.observer.history())
        self._type("serverctl sync --wait")
        after = self.server.wait_for_release(version)["mirror"]
        fetched = after["fetched_bytes"] - before["fetched_bytes"]
        saved = after["saved_bytes"] - before["saved_bytes"]
        _expect(saved > fetched, f"the server fetched {fetched:,} bytes and saved {saved:,}")
        self.screen.fact(
            f"the server fetched {fetched:,} bytes and rebuilt {version} from its increment: "
            f"{saved:,} saved"
        )
        self.saved[version] = (fetched, saved)
        self.stage.wait_until(
            lambda: self.observer.is_at_work() or len(self.observer.history()) > ended,
            what=f"the agent hears of {version}",
            seconds=PUSH_PATIENCE_S,
        )
        self._follow(version, outcome=outcome, then=then)
        trigger = self.attempts[version].outcome["trigger"]
        _expect(trigger == "notification", f"{version} came by {trigger}, not by notification")
        self._check_report(version, outcome)

    def _check_report(self, version: int, outcome: str) -> None:
        def is_reported() -> bool:
            (found,) = self.server.ask("/reports", release=version, limit=1)["reports"]
            return bool(found["outcome"] == outcome)

        self.stage.wait_until(
            is_reported, what=f"{version} is reported to the server", seconds=PUSH_PATIENCE_S
        )

    # The endpoint.

    def _enrol(self) -> None:
        """As an administrator pastes it: serverctl prints the whole command."""
        line = self.server.enrolment_command(_python("serverctl tokens create enrol"))
        self.screen.command("serverctl tokens create enrol")
        self.screen.say(line)
        self._type(line)

    def _configure(self) -> None:
        root = self.endpoint / "root.json"
        self.screen.command(f"cp {self._short(self._root())} {self._short(root)}")
        shutil.copy(self._root(), root)
        shutil.copy(self._config_file, self.config)
        self._aside(f"{self._short(self.config)} is {self._config_file.name}: no source in it")
        self._type("agentctl config validate")
        self.places = layout.resolve(config.load(self.config), self.config)
        self.observer = Observer(
            self.stage, self.screen, self.places, self.endpoint / "health.sock"
        )

    def _start_engine(self) -> None:
        arguments = shlex.split(
            f"--rules state/current/{COMPONENT}/{make_rules.RULES_FILE} --folder samples "
            f"--pid-file engine.pid --health-socket health.sock --pace {ENGINE_PACE_S:g}"
        )
        self.screen.command(f"(cd endpoint && python engine.py {shlex.join(arguments)}) &")
        self.stage.start("engine", str(EXAMPLE / "engine.py"), *arguments, folder=self.endpoint)
        self.stage.wait_until(
            lambda: (self.endpoint / "engine.pid").exists() and bool(self.observer.engine()),
            what="the engine answers on its health socket",
            seconds=START_PATIENCE_S,
        )

    def _start_agent(self) -> None:
        self.screen.command("agentd &")
        self.stage.start("agentd", *_python("agentd"), folder=self.endpoint)
        self.stage.wait_until(
            lambda: self.observer.status()["state"]["reason"] != "guardian_down",
            what="agentd answers on its status socket",
            seconds=START_PATIENCE_S,
        )

    def _follow(self, version: int, *, outcome: str, then: int) -> None:
        """Show an attempt until it ends, then hold its end against what it should be."""
        attempt = self.observer.follow()
        self._check_end(attempt, version, outcome=outcome, then=then)
        self.attempts[version] = attempt
        self.observer.wait_for_calm(attempt, then)
        said = attempt.calm
        self.screen.fact(
            f"the engine says: rules {said['rules']}, {said['files']} files scanned in "
            f"{said['last_round_s'] * 1000:.0f} ms, {said['detections']} detections, "
            f"{share_of_a_core(said):.2f} of a core"
        )

    def _check_end(self, attempt: Attempt, version: int, *, outcome: str, then: int) -> None:
        state, release = attempt.status["state"], attempt.status["release"]
        said = words(state)
        _expect(state["name"] == outcome, f"release {version} wasn't {outcome}; {said}")
        _expect(release == str(then), f"the machine runs {release}, not {then}; {said}")
        found = {name: attempt.outcome.get(name) for name in ("outcome", "release")}
        wanted = {"outcome": outcome, "release": str(version)}
        _expect(found == wanted, f"the history's last line says {found}, not {wanted}")
        installed = self.places.current / COMPONENT / make_rules.RULES_FILE
        published = self.stage.folder / "rules" / str(then) / make_rules.RULES_FILE
        same = installed.read_bytes() == published.read_bytes()
        _expect(same, f"{installed} isn't {published}, byte for byte")
        slot = attempt.status["active_slot"]
        self.screen.fact(f"{outcome}; slot {slot} holds the vendor's {then}, byte for byte")

    def _check_incremental(self, version: int) -> None:
        fetched, full = _bytes(self.attempts[version])
        _expect(fetched < full / 2, f"{fetched:,} bytes were fetched; in full: {full:,}")
        self.screen.fact(
            f"{fetched:,} bytes on the wire instead of {full:,}: {1 - fetched / full:.0%} saved"
        )

    def _check_taken_back(self, version: int) -> None:
        attempt = self.attempts[version]
        outcome, quarantine = attempt.outcome, attempt.status["quarantine"]
        ran = ", ".join(sorted(attempt.rules))
        _expect(str(version) in attempt.rules, f"the engine never ran {version}, only {ran}")
        reason = outcome["reason"]
        _expect(reason == "cpu_pinned", f"it was reverted for {reason}, not cpu_pinned")
        held = [item for item in quarantine if item["release"] == str(version)]
        _expect(len(held) == 1, f"{version} isn't in quarantine: {quarantine}")
        evidence = self.places.evidence / str(held[0]["evidence"])
        _expect(evidence.is_file(), f"the evidence {evidence} is missing")
        took = outcome["seconds_in_trial"]
        self.screen.fact(f"{outcome['from_release']} was back {took:.1f} s after the flip")
        self.screen.fact(f"the evidence is in {self._short(evidence)}")
        self._type("agentctl quarantine list")
        self._type("agentctl check")
        self._type(f"publisher rollout halt --reason 'machines revert {version}: {reason}'")
        self._type("serverctl sync --wait")

    # Small things.

    def _begin(self, step: str) -> None:
        self._number += 1
        self.screen.heading(self._number, step)

    def _aside(self, text: str) -> None:
        self.screen.say(self.screen.paint(f"  {text}", FAINT))

    def _type(self, line: str) -> None:
        """Run a command as people type it; its output goes to the audience."""
        self.screen.command(line)
        self.stage.run(line, *_python(line))

    def _script(self, name: str, *arguments: str) -> None:
        line = f"python {name} {shlex.join(arguments)}"
        self.screen.command(line)
        self.stage.run(line, str(EXAMPLE / name), *arguments)

    def _root(self) -> Path:
        return self.feed / "metadata" / "1.root.json"

    def _short(self, path: Path) -> Path:
        return path.relative_to(self.stage.folder)


def _expect(so: bool, otherwise: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not so:
        raise StepError(otherwise)


def _python(line: str) -> list[str]:
    """What Python is to run for a line that begins with one of our programs."""
    program, *arguments = shlex.split(line)
    return ["-P", "-m", PROGRAMS[program], *arguments]


def _bytes(attempt: Attempt) -> tuple[int, int]:
    """What travelled, and what would have travelled in full."""
    return attempt.outcome["wire_bytes"], attempt.outcome["full_bytes"]


def summary(
    attempts: dict[int, Attempt], saved: dict[int, tuple[int, int]], screen: Screen
) -> None:
    """One screen of measured figures."""
    screen.say()
    screen.say(screen.paint(f"Everything happened, in {screen.elapsed_s():.0f} s.", GREEN))
    screen.say(
        screen.paint("  release    on the wire    in full    saved   flip to end   outcome", BOLD)
    )
    for version, attempt in attempts.items():
        fetched, full = _bytes(attempt)
        took = attempt.outcome["seconds_in_trial"]
        screen.say(
            f"  {version:<7} {fetched:>8,} bytes   {full:>8,}   {1 - fetched / full:>6.1%}"
            f"   {took:>9.1f} s   {_ending(attempt)}"
        )
    later = [_bytes(attempt) for attempt in attempts.values() if attempt.outcome["from_release"]]
    fetched, full = (sum(column) for column in zip(*later, strict=True))
    screen.say(f"  Incrementals: {fetched:,} bytes instead of {full:,}, {full - fetched:,} saved.")
    fetched, kept = (sum(column) for column in zip(*saved.values(), strict=True))
    screen.say(f"  The server fetched {fetched:,} bytes for them; duplication saved it {kept:,}.")
    bad = attempts[175]
    took, calm_s = bad.outcome["seconds_in_trial"], bad.calm_at - bad.outcome["flipped"]
    screen.say(
        f"  175 used up to {max(bad.shares):.2f} of a core. {took:.1f} s after its flip 173 was "
        f"back, {calm_s:.1f} s after it the engine used {share_of_a_core(bad.calm):.2f} again."
    )


def _ending(attempt: Attempt) -> str:
    outcome = attempt.outcome
    if outcome["outcome"] == "reverted":
        return f"reverted to {outcome['from_release']} [{outcome['reason']}], quarantined"
    return "committed" if outcome["from_release"] else "committed, the first one"


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="The whole road of an update, with real programs, in about a minute."
    )
    parser.add_argument("--keep", action="store_true", help="leave the folder to look around in")
    parser.add_argument(
        "--config",
        type=Path,
        default=CONFIG,
        metavar="PATH",
        help="the agent's configuration, to try other windows (default: demo.toml beside this)",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Play it; returns the exit code."""
    options = _options(arguments)
    screen = Screen()
    stage = Stage(keep=options.keep)
    left: list[str] = []
    try:
        status = _play(stage, screen, options.config.absolute())
    finally:
        left += stage.close()
    for problem in left:
        print(f"demo: {problem}", file=sys.stderr)
    if options.keep:
        print(f"kept: {stage.folder} (nothing runs there any more)", file=sys.stderr)
    return status or int(bool(left))


def _play(stage: Stage, screen: Screen, config_file: Path) -> int:
    try:
        stage.open()
        demo = Demo(stage, screen, config_file)
        demo.play()
        summary(demo.attempts, demo.saved, screen)
    except Interrupted as asked:
        screen.end_live()
        print(f"demo: stopped by {asked} in {screen.step}; cleaning up", file=sys.stderr)
        return 128 + asked.number
    except BrokenPipeError:  # nobody reads any more, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (StepError, ConfigError, AskError, OSError, ValueError) as error:
        screen.end_live()
        print(screen.paint(f"demo: {screen.step} failed: {error}", RED), file=sys.stderr)
        for item in stage.running:
            print(f"{item.log.name} ends with:\n{item.last_words()}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""agentctl: the command line.

Exit codes of `status` are those of monitoring plugins: 0 current and healthy,
1 late, held or in trial beyond its time, 2 protection at risk, 3 unknown. The
other commands: 0 done, 1 refused or failed, 2 wrong usage, 3 no guardian or no
usable configuration.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent import __version__
from agent.ctl import client, render
from agent.ctl.client import AskError
from agent.errors import ConfigError

if TYPE_CHECKING:
    from agent.layout import Layout

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_UNKNOWN = 3
HISTORY_MAX = 500
HELP_WIDTH = 78  # what argparse takes of a terminal of 80 columns
WATCH_INTERVAL_S = 1.0
WAIT_INTERVAL_S = 0.2
IN_PROGRESS = {"checking", "downloading", "staging", "waiting", "trial", "reverting"}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    given = _parser().parse_args(arguments, argparse.Namespace(config=None, json=False))
    try:
        return int(_COMMANDS[given.command](given))
    except AskError as error:
        refused = error.reachable and given.command != "status"  # where 1 says that it is late
        return _complain(given, str(error), EXIT_REFUSED if refused else EXIT_UNKNOWN)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except ConfigError as error:
        return _complain(given, str(error), EXIT_UNKNOWN)


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Of a fixed width: to ask the terminal, argparse imports shutil, bz2 and lzma."""
    return argparse.HelpFormatter(prog, width=HELP_WIDTH)


def _parser() -> argparse.ArgumentParser:
    # No defaults: those of a command would undo what was given before it.
    common = argparse.ArgumentParser(
        add_help=False, formatter_class=_formatter, argument_default=argparse.SUPPRESS
    )
    common.add_argument(
        "--config",
        type=Path,
        metavar="PATH",
        help="the agent's configuration (default: HOLDFAST_CONFIG or the platform's folder)",
    )
    common.add_argument("--json", action="store_true", help="print JSON")
    parser = argparse.ArgumentParser(
        prog="agentctl",
        description="Look at and steer the Holdfast agent of this machine.",
        parents=[common],
        formatter_class=_formatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=text, description=text, parents=[common], formatter_class=_formatter
        )

    status = add("status", "what runs, what is in progress, what comes next")
    status.add_argument("--watch", action="store_true", help="show it again every second")
    add("check", "look for an update without taking it")
    update = add("update", "look for an update and take it")
    update.add_argument(
        "--no-wait", action="store_true", help="return at once instead of following it"
    )
    repair = add("repair", "fetch the release anew, whole, into the other slot, and try it")
    repair.add_argument(
        "--no-wait", action="store_true", help="return at once instead of following it"
    )
    add("rollback", "go back to the prior slot and quarantine what was changed")
    history = add("history", "how the last attempts ended")
    history.add_argument(
        "-n", "--count", type=_count, default=20, help="how many, 1 to 500 (default 20)"
    )
    add("explain", "why this machine is on this release, and what happens next")
    add("verify", "hold the installed files against their seal, and repair them")
    quarantine = add("quarantine", "what was reverted here and isn't tried again")
    quarantine.add_argument("action", choices=["list", "clear"])
    quarantine.add_argument("what", nargs="?", help="an entry's id or release; none: all")
    enroll = add("enroll", "join a Security Server with an enrolment token of its administrator")
    enroll.add_argument("url", nargs="?", metavar="URL", help="its address, https://name:port")
    enroll.add_argument(
        "token", nargs="?", metavar="TOKEN", help="visible in the list of processes; or:"
    )
    enroll.add_argument(
        "--token-file", metavar="PATH", help="a file that holds the token; -: standard input"
    )
    other = enroll.add_mutually_exclusive_group()
    other.add_argument("--forget", action="store_true", help="leave the server")
    other.add_argument("--rotate", action="store_true", help="get a new credential of it")
    protect = add("protect", "have an engine start after the boot guard")
    protect.add_argument(
        "unit", metavar="UNIT", help="of systemd, as scanner.service; on Windows a service's name"
    )
    protect.add_argument("--remove", action="store_true", help="undo it")
    configuration = add("config", "show or check the configuration")
    configuration.add_argument("action", choices=["show", "validate"])
    add("version", "this program's and the guardian's version")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= HISTORY_MAX:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number from 1 to {HISTORY_MAX}")
    return int(text)


def _layout(given: argparse.Namespace) -> Layout:
    """Where things live, by a configuration that is checked as the guardian checks it.

    Who may not read the machine's own finds the guardian by default, if it is there.
    """
    from agent import config, layout  # noqa: PLC0415 - 40 ms that status doesn't pay

    path = given.config or layout.default_path()
    try:
        return layout.resolve(config.load(path), path)
    except ConfigError as error:
        hidden = isinstance(error.__cause__, PermissionError)
        places = layout.assumed(path) if hidden else None
        if places is None or not client.answers(places.status_socket):
            raise
        return places


def _status(given: argparse.Namespace) -> int:
    from agent.ctl import places as quick  # noqa: PLC0415 - --help stays instant

    places = quick.locate(given.config) or _layout(given)
    while True:
        document = client.status(places)
        if document["state"]["reason"] == "guardian_down":
            _layout(given)  # a configuration that keeps the guardian down is the thing to say
        if given.json:
            print(json.dumps(document, indent=None if given.watch else 2), flush=True)
        else:
            lines = render.status_lines(document, colour=_colour())
            print(("\x1b[2J\x1b[H" if given.watch and _colour() else "") + "\n".join(lines))
        if not given.watch:
            return int(document["standing"]["code"])
        time.sleep(WATCH_INTERVAL_S)


def _check(given: argparse.Namespace) -> int:
    places = _layout(given)
    client.ask(places.control_socket, {"do": "check"})
    document = _follow(given, places, {"checking"})
    last, error = document["check"]["last"], document["check"]["last_error"]
    if given.json:
        print(json.dumps(document["check"], indent=2))
    elif error:
        print(f"agentctl: {render.plain(error['sentence'])}", file=sys.stderr)
    else:
        print(render.plain(last["sentence"]))
        if last["full_bytes"]:
            print(
                f"an update would fetch {last['fetch_bytes']:,} bytes "
                f"(in full: {last['full_bytes']:,}); agentctl update takes it"
            )
    return EXIT_REFUSED if error else 0


def _update(given: argparse.Namespace) -> int:
    """update, and repair: what is asked for has the command's name."""
    places = _layout(given)
    client.ask(places.control_socket, {"do": given.command})
    if given.no_wait:
        _say(given, {"begun": True}, "begun; agentctl status --watch follows it")
        return 0
    document = _follow(given, places, IN_PROGRESS)
    state = document["state"]
    if given.json:
        print(json.dumps(document, indent=2))
    else:
        print(render.plain(f"{state['name']}: {state['sentence']}"))
    ended_badly = state["name"] in {"failed", "reverted"} or state["reason"] == "both_slots_bad"
    if given.command == "repair":  # nothing on offer is no repair
        ended_badly = ended_badly or state["name"] == "idle"
    return EXIT_REFUSED if ended_badly else 0


def _follow(given: argparse.Namespace, places: Layout, busy: set[str]) -> dict[str, Any]:
    """Wait until the state leaves `busy`, showing progress on a terminal.

    Raises AskError: the guardian went away meanwhile.
    """
    shown = ""
    while True:
        document = _guarded_status(places)
        state = document["state"]
        if state["name"] not in busy:
            break
        line = " ".join(render.status_lines(document, colour=False)[3].split()[1:])
        if sys.stderr.isatty() and not given.json and line != shown:
            print(f"\r\x1b[K{line[:100]}", end="", file=sys.stderr, flush=True)
            shown = line
        time.sleep(WAIT_INTERVAL_S)
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr)
    return document


def _guarded_status(places: Layout) -> dict[str, Any]:
    """The guardian's own status. Raises AskError: there is no guardian any more."""
    status: dict[str, Any] = client.ask(places.status_socket, {"do": "status"})
    return status


def _rollback(given: argparse.Namespace) -> int:
    places = _layout(given)
    answer = client.ask(places.control_socket, {"do": "rollback"})
    document = _follow(given, places, {"reverting"})
    sentence = f"back on {document['release']}; agentctl quarantine list shows what is held back"
    _say(given, answer | {"state": document["state"]}, sentence)
    return 0


def _history(given: argparse.Namespace) -> int:
    outcomes = client.ask(_layout(given).status_socket, {"do": "history", "count": given.count})
    if given.json:
        print(json.dumps(outcomes, indent=2))
    else:
        print("\n".join(render.history_lines(outcomes)))
    return 0


def _explain(given: argparse.Namespace) -> int:
    from agent.ctl import explain  # noqa: PLC0415 - only here

    places = _layout(given)
    document = client.status(places)
    guarded = document["state"]["reason"] != "guardian_down"
    past = client.ask(places.status_socket, {"do": "history", "count": 1}) if guarded else []
    found = explain.sentences(document, past)
    if given.json:
        print(json.dumps({"sentences": found, "standing": document["standing"]}, indent=2))
    else:
        print("\n".join(found))
    return 0


def _verify(given: argparse.Namespace) -> int:
    places = _layout(given)
    client.ask(places.control_socket, {"do": "verify"})
    while (document := _guarded_status(places))["verifying"]:
        time.sleep(WAIT_INTERVAL_S)
    slots = document["slots"]
    problems = [f"slot {name}: {text}" for name, slot in slots.items() for text in slot["problems"]]
    repaired = document.get("repaired", [])
    if given.json:
        print(json.dumps({"problems": problems, "repaired": repaired}, indent=2))
    else:
        lines = [*(f"repaired {path}" for path in repaired), *problems]
        if problems:
            lines.append("agentctl explain says what happens next")
        for line in lines or ["every installed file is as it was sealed"]:
            print(render.plain(line))
    return EXIT_REFUSED if problems else 0


def _quarantine(given: argparse.Namespace) -> int:
    places = _layout(given)
    if given.action == "clear":
        request = {"do": "quarantine-clear", "what": given.what}
        answer = client.ask(places.control_socket, request)
        many = "entry" if answer["cleared"] == 1 else "entries"
        sentence = f"{answer['cleared']} {many} cleared; agentctl update tries again"
        _say(given, answer, sentence)
        return 0
    entries = client.ask(places.status_socket, {"do": "status"})["quarantine"]
    if given.what is not None:
        entries = [item for item in entries if _is_meant(item, given.what)]
    if given.json:
        print(json.dumps(entries, indent=2))
    else:
        for item in entries:
            names = ", ".join(sorted(item["changed"]))
            until = render.clock(item["until"])
            print(render.plain(f"{item['id']}  {names} of {item['release']}  until {until}"))
            print("    " + render.plain(f"[{item['reason']}] {item['sentence']}"))
        if not entries:
            asked = given.what is not None
            print("no entry has that id or release" if asked else "nothing is quarantined")
    return 0


def _is_meant(entry: dict[str, Any], what: str) -> bool:
    """Whether `clear` would take the entry: by the beginning of its id, or by its release."""
    return what != "" and (entry["id"].startswith(what) or entry["release"] == what)


def _config(given: argparse.Namespace) -> int:
    from agent import config, layout  # noqa: PLC0415 - only here

    path = given.config or layout.default_path()
    settings = config.load(path)
    if given.action == "validate":
        _say(given, {"valid": True, "path": str(path)}, f"{path}: valid")
        return 0
    shown = config.as_shown(settings)
    places = layout.resolve(settings, path)
    shown["state_dir"], shown["runtime_dir"] = str(places.state), str(places.runtime)
    print(json.dumps(shown, indent=2) if given.json else config.as_text(shown))
    return 0


def _enroll(given: argparse.Namespace) -> int:
    from agent.ctl import enroll  # noqa: PLC0415 - only here

    try:
        request = enroll.request(given)
    except enroll.UsageError as error:
        return _complain(given, str(error), EXIT_USAGE)
    answer = enroll.carry_out(_layout(given).control_socket, request)
    if not answer["ok"]:
        return _complain(given, answer["sentence"], EXIT_REFUSED)
    if answer["warning"]:
        print(f"agentctl: {render.plain(answer['warning'])}", file=sys.stderr)
    _say(given, {name: answer[name] for name in ("sentence", "warning")}, answer["sentence"])
    return 0


def _protect(given: argparse.Namespace) -> int:
    if sys.platform == "win32":
        from agent.ctl import windows_protect as protect  # noqa: PLC0415 - only here
    else:
        from agent.ctl import protect  # noqa: PLC0415 - only here

    done = (protect.unprotect if given.remove else protect.protect)(given.unit)
    if given.json:
        print(json.dumps(done))
    else:
        for line in protect.sentence(done).splitlines():
            print(render.plain(line))
    return 0


def _version(given: argparse.Namespace) -> int:
    try:
        running = client.ask(_layout(given).status_socket, {"do": "version"})["version"]
    except (AskError, ConfigError):
        running = None
    sentence = f"agentctl {__version__}, guardian {running or 'not running'}"
    _say(given, {"agentctl": __version__, "guardian": running}, sentence)
    return 0


def _say(given: argparse.Namespace, value: dict[str, Any], sentence: str) -> None:
    print(json.dumps(value) if given.json else render.plain(sentence))


def _complain(given: argparse.Namespace, text: str, code: int) -> int:
    if given.json:
        print(json.dumps({"error": text}))
    print(f"agentctl: {render.plain(text)}", file=sys.stderr)
    return code


def _colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


_COMMANDS = {
    "status": _status,
    "check": _check,
    "update": _update,
    "repair": _update,
    "rollback": _rollback,
    "history": _history,
    "explain": _explain,
    "verify": _verify,
    "quarantine": _quarantine,
    "enroll": _enroll,
    "protect": _protect,
    "config": _config,
    "version": _version,
}

"""The status and history as people read them on a terminal.

Pure: documents come in, lines go out; colour is a parameter. What a hook
printed or a source said may stand in them, so nothing that steers a terminal
gets through.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

COLOURS = {"current": "32", "late": "33", "at_risk": "31", "unknown": "35"}
LABEL_WIDTH = 12
HISTORY_COLUMNS = ("ended", "outcome", "release", "on trial", "bytes fetched", "in full", "why")
RIGHT_ALIGNED = (False, False, False, True, True, True, False)


def status_lines(status: dict[str, Any], *, colour: bool) -> list[str]:
    """The whole status."""
    standing = status["standing"]
    word = plain(standing["word"].replace("_", " ").upper())
    word = painted(word, standing["word"], colour=colour)
    host = f"{status['host_id']}  region {status['region']}" if status["host_id"] else ""
    lines = [f"{word}  {plain(standing['sentence'])}"]
    rows: list[tuple[str, str]] = [("host", host)] if host else []
    rows.append(("release", _release(status)))
    rows.append(("state", _state(status)))
    rows += _labelled("slots", (_slot(name, slot) for name, slot in status["slots"].items()))
    rows += _labelled("components", (_component(item) for item in status["components"]))
    rows += _labelled("trial", _trial(status))
    rows += _labelled("check", _check(status))
    rows += _labelled("server", _server(status))
    rows += _labelled("quarantine", (_quarantined(item) for item in status["quarantine"]))
    rows += _labelled("processes", (_process(item) for item in status["processes"]))
    rows += _labelled("agent", _agent(status))
    lines += [f"{label:<{LABEL_WIDTH}}{plain(text)}" for label, text in rows]
    return lines


def plain(text: str) -> str:
    """`text` on one line, without anything that a terminal would obey."""
    return "".join(
        mark if mark.isprintable() else " " if mark.isspace() else "\N{REPLACEMENT CHARACTER}"
        for mark in text
    )


def painted(text: str, standing: str, *, colour: bool) -> str:
    """`text` in the standing's colour."""
    return f"\x1b[1;{COLOURS.get(standing, '0')}m{text}\x1b[0m" if colour else text


def _labelled(label: str, texts: Iterable[str]) -> list[tuple[str, str]]:
    return [(label if number == 0 else "", text) for number, text in enumerate(texts)]


def _release(status: dict[str, Any]) -> str:
    if not status["release"]:
        return "none"
    slot = status["active_slot"]
    return f"{status['release']}  in slot {slot}, content {status['slots'][slot]['digest'][:12]}"


def _state(status: dict[str, Any]) -> str:
    state = status["state"]
    text = f"{state['name']} [{state['reason']}]  {state['sentence']}"
    progress = state.get("progress")
    if progress and progress["total"]:
        share = progress["done"] / progress["total"]
        done, total = f"{progress['done']:,.0f}", f"{progress['total']:,.0f}"
        text += f"  {bar(share)} {done} of {total} {progress['unit']}"
    return text + (f"  since {clock(state['since'])}" if state.get("since") else "")


def bar(share: float, width: int = 20) -> str:
    """A progress bar for a share between 0 and 1."""
    filled = round(min(max(share, 0.0), 1.0) * width)
    return f"[{'#' * filled}{'.' * (width - filled)}]"


def _slot(name: str, slot: dict[str, Any]) -> str:
    if not slot["sealed"]:
        return f"{name}  empty"
    facts = ["active, sealed" if slot["active"] else "sealed, to go back to"]
    if slot.get("on_trial"):
        facts.append(f"on trial, {slot['tries_left']} tries left")
    facts += [f"DAMAGED: {problem}" for problem in slot["problems"][:3]]
    return f"{name}  {slot['release']}  {', '.join(facts)}"


def _component(item: dict[str, Any]) -> str:
    damaged = "" if item["intact"] else "  DAMAGED"
    return (
        f"{item['name']} {item['version']}  {item['kind']}, {item['bytes']:,} bytes, "
        f"{item['digest'][:12]}{damaged}"
    )


def _trial(status: dict[str, Any]) -> list[str]:
    trial = status["trial"]
    if not trial:
        return []
    healthy = f"{trial['healthy_s']:.0f} of {trial['needed_s']:.0f} healthy seconds"
    prior = trial["from_release"]
    back = f"back to {prior} if it hurts" if prior else "the first release here"
    return [
        f"{trial['release']}, {back}  {healthy}",
        *(
            f"held by {gate['name']}: {gate['sentence']}"
            for gate in trial["gates"]
            if gate["holding"]
        ),
    ]


def _check(status: dict[str, Any]) -> list[str]:
    check = status["check"]
    lines = []
    if check["last"]:
        last = check["last"]
        said = " ".join(filter(None, [last["decision"], last["release"]]))
        lines.append(f"last {clock(last['at'])}  {said}  {last['source']}")
    if check["next"]:
        lines.append(f"next {clock(check['next'])}")
    if check["last_error"]:
        error = check["last_error"]
        lines.append(f"last error {clock(error['at'])} [{error['code']}] {error['sentence']}")
    return lines


def _server(status: dict[str, Any]) -> list[str]:
    server = status.get("server")
    if not server:
        return []
    heard = "connected" if server["connected"] else "NOT CONNECTED"
    told = server["last_check_in"]
    waiting, dropped = server["reports_waiting"], server["reports_dropped"]
    lines = [
        f"{server['url']}  {heard} since {clock(server['since'])}",
        f"last check-in {clock(told) if told else 'none yet'}; {waiting} reports wait"
        + (f", {dropped} were dropped" if dropped else ""),
    ]
    if server["problem"]:
        lines.append(f"[{server['code']}] {server['problem']}")
    return lines


def _quarantined(item: dict[str, Any]) -> str:
    names = ", ".join(sorted(item["changed"]))
    return (
        f"{item['id']}  {names} of {item['release']}  until {clock(item['until'])}  "
        f"[{item['reason']}]"
    )


def _process(item: dict[str, Any]) -> str:
    if not item["alive"]:
        return f"{item['name']}  not running"
    memory = item["rss_bytes"] / (1 << 20)
    share = item["cpu_share"] * 100
    return f"{item['name']}  pid {item['pid']}, {memory:.0f} MiB, {share:.1f} % of a core"


def _agent(status: dict[str, Any]) -> list[str]:
    guardian, fetcher = status.get("guardian"), status.get("fetcher")
    if not guardian or not fetcher:
        return []
    network = f"fetcher pid {fetcher['pid']}" if fetcher["running"] else "fetcher NOT RUNNING"
    up = duration(guardian["uptime_s"])
    own = f"{status['agent_version']}  guardian pid {guardian['pid']}, up {up}; {network}"
    return [own, *_program(status)]


def _program(status: dict[str, Any]) -> list[str]:
    """Where the fetcher and the stager come from, when that isn't only the package."""
    program = status.get("program")
    if not program or not program["component"]:
        return []
    place = f"slot {program['slot']}" if program["slot"] else "the package"
    text = f"{program['version']}  fetcher and stager from {place}"
    return [f"{text}: {program['problem']}" if program["problem"] else text]


def history_lines(outcomes: list[dict[str, Any]]) -> list[str]:
    """A heading, then one line an attempt, newest last; the columns are as wide as needed."""
    if not outcomes:
        return ["no attempt has ended yet"]
    rows = [HISTORY_COLUMNS, *(tuple(map(plain, _outcome(item))) for item in outcomes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(_padded, row, widths, RIGHT_ALIGNED)).rstrip() for row in rows]


def _padded(text: str, width: int, right: bool) -> str:  # noqa: FBT001 - mapped
    return text.rjust(width) if right else text.ljust(width)


def _outcome(item: dict[str, Any]) -> tuple[str, ...]:
    took, fetched, full = (
        item.get(name) for name in ("seconds_in_trial", "wire_bytes", "full_bytes")
    )
    return (
        clock(item["ended"]),
        item["outcome"],
        f"{item['from_release'] or 'nothing'} → {item['release'] or '?'}"
        + (" (repair)" if item.get("cause") == "repair" else ""),
        "" if took is None else duration(took),
        "" if fetched is None else f"{fetched:,}",
        "" if full is None else f"{full:,}",
        f"[{item['reason']}] {item['sentence']}",
    )


def duration(seconds: float) -> str:
    """A stretch of time in the unit that suits it."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def clock(moment: float) -> str:
    """A Unix time in this machine's own time zone."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
    except (OverflowError, ValueError, OSError):
        return f"@{moment:g}"  # no calendar goes that far

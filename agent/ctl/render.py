"""The status and history as people read them on a terminal.

Pure: documents come in, lines go out; colour is a parameter.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

COLOURS = {"current": "32", "late": "33", "at_risk": "31", "unknown": "35"}
LABEL_WIDTH = 12


def status_lines(status: dict[str, Any], *, colour: bool) -> list[str]:
    """The whole status."""
    standing = status["standing"]
    word = painted(standing["word"].replace("_", " ").upper(), standing["word"], colour=colour)
    host = f"host {status['host_id']}  region {status['region']}" if status["host_id"] else ""
    lines = [f"{word}  {standing['sentence']}"]
    rows: list[tuple[str, str]] = [("host", host)] if host else []
    rows.append(("release", _release(status)))
    rows.append(("state", _state(status)))
    rows += _labelled("slots", (_slot(name, slot) for name, slot in status["slots"].items()))
    rows += _labelled("components", (_component(item) for item in status["components"]))
    rows += _labelled("trial", _trial(status))
    rows += _labelled("check", _check(status))
    rows += _labelled("quarantine", (_quarantined(item) for item in status["quarantine"]))
    rows += _labelled("processes", (_process(item) for item in status["processes"]))
    lines += [f"{label:<{LABEL_WIDTH}}{text}" for label, text in rows]
    return lines


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
    return text


def bar(share: float, width: int = 20) -> str:
    """A progress bar for a share between 0 and 1."""
    filled = round(min(max(share, 0.0), 1.0) * width)
    return f"[{'#' * filled}{'.' * (width - filled)}]"


def _slot(name: str, slot: dict[str, Any]) -> str:
    if not slot["sealed"]:
        return f"{name}  empty"
    facts = ["active"] if slot["active"] else []
    facts.append("sealed")
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
    return [
        f"{trial['release']}, back to {trial['from_release']} if it hurts  {healthy}",
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
        lines.append(f"last {clock(last['at'])}  {last['decision']}  {last['source']}")
    if check["next"]:
        lines.append(f"next {clock(check['next'])}")
    if check["last_error"]:
        error = check["last_error"]
        lines.append(f"last error {clock(error['at'])} [{error['code']}] {error['sentence']}")
    return lines


def _quarantined(item: dict[str, Any]) -> str:
    names = ", ".join(sorted(item["changed"]))
    return (
        f"{item['id']}  {names} of {item['release']} until {clock(item['until'])}: {item['reason']}"
    )


def _process(item: dict[str, Any]) -> str:
    if not item["alive"]:
        return f"{item['name']}  not running"
    memory = item["rss_bytes"] / (1 << 20)
    share = item["cpu_share"] * 100
    return f"{item['name']}  pid {item['pid']}, {memory:.0f} MiB, {share:.0f} % of a core"


def history_lines(outcomes: list[dict[str, Any]]) -> list[str]:
    """One line an attempt, newest last."""
    if not outcomes:
        return ["no attempt has ended yet"]
    return [_outcome(item) for item in outcomes]


def _outcome(item: dict[str, Any]) -> str:
    came = f"{item['from_release'] or 'nothing'} → {item['release'] or '?'}"
    took = item.get("seconds_in_trial")
    figures = f"  {took:.1f} s in trial" if took is not None else ""
    if item.get("wire_bytes") is not None:
        figures += f"  {item['wire_bytes']:,} bytes fetched (full: {item.get('full_bytes') or 0:,})"
    return (
        f"{clock(item['ended'])}  {item['outcome']:<9}  {came}  [{item['reason']}] "
        f"{item['sentence']}{figures}"
    )


def clock(moment: float) -> str:
    """A Unix time in this machine's own time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))

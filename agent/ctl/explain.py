"""Why this machine is on this release, and what happens next, in sentences.

Pure: a status document and the history come in, sentences go out.
"""

from __future__ import annotations

from typing import Any

from agent.ctl.render import clock, plain

HELD = {"rollout_halted", "waiting_for_phase", "quarantined", "incompatible"}


def sentences(status: dict[str, Any], history: list[dict[str, Any]]) -> list[str]:
    """The explanation, most important first."""
    found = [
        _what_runs(status),
        *([] if status["trial"] else _how_it_came(history)),
        *_trial(status),
        *_held(status),
        *_quarantine(status),
        *_damage(status),
        *_both_bad(status),
        *_program(status),
        *_server(status),
        _next(status),
    ]
    return [plain(sentence) for sentence in found]


def _server(status: dict[str, Any]) -> list[str]:
    server = status.get("server")
    if not server or not server["problem"]:
        return []
    return [f"Its Security Server isn't told of it [{server['code']}]: {server['problem']}."]


def _what_runs(status: dict[str, Any]) -> str:
    if status["state"]["reason"] == "guardian_down":
        return f"Nobody watches this machine: {status['state']['sentence']}."
    if not status["release"]:
        return "No release is installed; the first one that the feed offers will be."
    listed = ", ".join(f"{item['name']} {item['version']}" for item in status["components"])
    place = f"release {status['release']} from slot {status['active_slot']}"
    return f"This machine runs {place} ({listed})."


def _how_it_came(history: list[dict[str, Any]]) -> list[str]:
    if not history:
        return []
    last = history[-1]
    if last["outcome"] == "committed":
        before = f"after {last['from_release']}" if last["from_release"] else "the first one here"
        came = f"It came on {clock(last['ended'])}, {before}{_fetched(last)}"
        return [f"{came}, and was kept because: {last['sentence']}."]
    if last["outcome"] == "held":
        return [
            (
                f"It came on {clock(last['ended'])} and failed its trial [{last['reason']}], but "
                f"is kept: {last['sentence']}."
            )
        ]
    if last["outcome"] == "reverted":
        back = last.get("from_release")
        returned = f"went back to {back}" if back else "took it away again: there was no prior one"
        took = last.get("seconds_in_trial")
        after = f" {took:.0f} s after the flip" if took is not None else ""
        return [
            (
                f"It tried {last['release']} and {returned}{after} because: {last['sentence']} "
                f"[{last['reason']}]."
            )
        ]
    return [f"The last attempt at {last['release'] or 'an update'} failed: {last['sentence']}."]


def _fetched(outcome: dict[str, Any]) -> str:
    fetched, full = outcome.get("wire_bytes"), outcome.get("full_bytes")
    if fetched is None or full is None:
        return ""
    instead = f" instead of {full:,}" if fetched < full else ""
    return f", with {fetched:,} bytes fetched{instead}"


def _trial(status: dict[str, Any]) -> list[str]:
    trial = status["trial"]
    if not trial:
        return []
    healthy = f"{trial['healthy_s']:.0f} of {trial['needed_s']:.0f} healthy seconds observed"
    left = trial["tries_left"]
    tries = f"{left} more start{'' if left == 1 else 's'} of the machine allowed meanwhile"
    prior = trial["from_release"]
    back = f"reverted to {prior}" if prior else "taken away again"
    back += " when a check fails" + ("" if prior else ", for there is no prior one")
    found = [
        f"Release {trial['release']} is on probation: {healthy}.",
        f"It is kept when all are observed, and {back}; {tries}.",
    ]
    for gate in trial["gates"]:
        mark = "Held by" if gate["holding"] else "Passing"
        found.append(f"{mark} {gate['name']}: {gate['sentence']}{_figures(gate)}.")
    return found


def _figures(gate: dict[str, Any]) -> str:
    measured, threshold = gate.get("measured"), gate.get("threshold")
    if measured is None:
        return ""
    limit = f", threshold {_figure(threshold)}" if threshold is not None else ", not judged"
    return f" (measured {_figure(measured)} {gate.get('unit', '')}{limit})"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _held(status: dict[str, Any]) -> list[str]:
    check = status["check"]["last"]
    if not check or check["decision"] not in HELD:
        return []
    return [f"Held [{check['decision']}]: {check['sentence']}."]


def _quarantine(status: dict[str, Any]) -> list[str]:
    return [
        f"Quarantined until {clock(item['until'])}: {', '.join(sorted(item['changed']))} as in "
        f"{item['release']}, which was reverted here [{item['reason']}]: {item['sentence']}. "
        f"`agentctl quarantine clear {item['id']}` allows it again."
        for item in status["quarantine"]
        if item["until"] > status["now"]
    ]


def _damage(status: dict[str, Any]) -> list[str]:
    next_step = (
        "nothing more is tried on it"
        if status.get("held")
        else "it is repaired from the other slot or the feed"
    )
    return [
        f"Slot {name} isn't as it was sealed: {slot['problems'][0]}; {next_step}."
        for name, slot in status["slots"].items()
        if slot["problems"]
    ]


def _both_bad(status: dict[str, Any]) -> list[str]:
    held = status.get("held")
    if not held:
        return []
    return [
        (
            f"Both slots are bad; slot {status['active_slot']} is held as the less bad one since "
            f"{clock(held['since'])} [{held['reason']}]: {held['sentence']}."
        ),
        (
            "Nothing is tried any more but a newer release. `agentctl repair` fetches the release "
            "of this region whole into the other slot and tries it."
        ),
    ]


def _program(status: dict[str, Any]) -> list[str]:
    program = status.get("program")
    if not program or not program["component"]:
        return []
    if program["problem"]:
        return [
            (
                f"The package's own program {program['version']} fetches and stages, because "
                f"{program['problem']}. The next release brings another."
            )
        ]
    place = f"slot {program['slot']}" if program["slot"] else "the package"
    return [f"The program {program['version']} of {place} fetches and stages."]


def _next(status: dict[str, Any]) -> str:
    state, check = status["state"], status["check"]
    if state["reason"] == "guardian_down":
        return "Next: start the guardian; it takes up where it stopped."
    if state["name"] in {"checking", "downloading", "staging", "waiting", "trial", "reverting"}:
        return f"Now: {state['name']}; {state['sentence']}."
    error = check["last_error"]
    trouble = f" The last try failed [{error['code']}]: {error['sentence']}." if error else ""
    last = check["last"]
    if last and last.get("ready_at") and last["decision"] == "waiting_for_phase":
        trouble += f" This machine's turn is expected at {clock(last['ready_at'])}."
    if check["next"] is None:
        return f"Next: a check when the fetcher is up.{trouble}"
    return f"Next: a check at {clock(check['next'])}; `agentctl update` checks now.{trouble}"

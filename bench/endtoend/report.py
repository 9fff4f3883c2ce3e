"""Take turns, and hold the medians against the goals."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from bench import machine
from bench.delta import corpora
from bench.endtoend.products import Ours, Tufup, Update
from bench.figures import Figure, Section

WALL_GOAL, MEMORY_GOAL = 0.3, 0.2
PEER = "tufup 0.10"
ROADS = {"patch": "by increment", "full": "in full"}
Pick = Callable[[Update], float]


def run(*, quick: bool) -> Section:
    """By increment, which the goals are about, and in full."""
    megabytes, times = (6, 1) if quick else (100, 3)
    pair = corpora.patterns(megabytes).steps()[0]
    figures: list[Figure] = []
    with machine.folder() as place:
        products = Ours(place, pair), Tufup(place, pair)
        for road, how in ROADS.items():
            ours, theirs = _taking_turns(products, road, times)
            figures += _figures(f"{megabytes} MB {how}", ours, theirs, is_goal=road == "patch")
    return Section(
        title="An update from end to end",
        how=f"A generated virus pattern of {megabytes} MB (see Increments) from its first "
        "version to its second over loopback, both products from Python's own "
        "`http.server` in a process of its own, with TCP_NODELAY as other servers have it; "
        f"{times} times each, taking turns, medians, of memory the highest.\n\n"
        "Ours: a real agentd at rest, from the start of `agentctl update` to the moment "
        "`current` points at the new slot: check, fetch, verify, rebuild, seal, flip, all "
        "durable, with each process that starts. Memory is the highest sum of the PSS of "
        "all of them, agentctl's too, looked at 100 times a second, and the highest resident "
        "set of a single one. No watch is configured and the windows are 0, so the commit "
        "follows the flip.\n\n"
        "tufup: its client in a process of its own, timed from the client's making, its "
        "imports not counted, to the new file in its place. Its installation is a rename, "
        "since its own serves Windows and macOS and copies; it flushes nothing to the disk. "
        "Memory is that process's highest resident set. CPU is of everything on both sides.",
        figures=tuple(figures),
    )


def _taking_turns(
    products: tuple[Ours, Tufup], road: str, times: int
) -> tuple[list[Update], list[Update]]:
    ours, tufup = products
    pairs = [(ours.update(road), tufup.update(road)) for _ in range(times)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _figures(what: str, ours: list[Update], theirs: list[Update], *, is_goal: bool) -> list[Figure]:
    def median(unit: str, pick: Pick) -> tuple[float, float, Callable[[float], str]]:
        def told(value: float) -> str:
            return f"{value:.2f} {unit}"

        return statistics.median(map(pick, ours)), statistics.median(map(pick, theirs)), told

    def highest(pick: Pick) -> tuple[float, float, Callable[[float], str]]:
        peer = max(update.cost.largest_bytes for update in theirs)
        return max(map(pick, ours)), peer, lambda value: f"{value / 1e6:.1f} MB"

    def figure(
        name: str, found: tuple[float, float, Callable[[float], str]], goal: float | None = None
    ) -> Figure:
        mine, peer, told = found
        aim = goal if is_goal else None
        return Figure(
            f"{name}, {what}",
            told(mine),
            f"{told(peer)} ({PEER})",
            ratio=mine / peer,
            goal=f"at most {aim:g} times" if aim else "",
            met=mine <= aim * peer if aim else None,
        )

    fetched = ours[0].fetched, theirs[0].fetched, lambda value: f"{value:,.0f} bytes"
    return [
        figure("to the flip", median("s", lambda update: update.wall_s), WALL_GOAL),
        figure(
            "memory of all processes",
            highest(lambda update: update.cost.together_bytes),
            MEMORY_GOAL,
        ),
        figure("memory of the largest process", highest(lambda update: update.cost.largest_bytes)),
        figure("CPU", median("s", lambda update: update.cost.cpu_s)),
        figure("fetched", fetched),
        Figure(
            f"from the flip to the commit, {what}",
            f"{statistics.median(update.commit_s for update in ours):.2f} s",
        ),
    ]

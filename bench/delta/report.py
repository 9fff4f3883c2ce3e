"""Run the pairs, hold them against the goals, and lay out the tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.delta import corpora, measure
from bench.delta.corpora import Corpus, Pair
from bench.delta.measure import OURS, PEERS, Found, Measured
from bench.figures import Figure, Section, Table

SIZE_RATIO, SIZE_RATIO_WORST = 1.02, 1.15
MAKE_RATIO, MAKE_FROM_BYTES = 0.4, 5_000_000
APPLY_RATIO = 3.0
APPLY_PEAK_MB = 40.0
HUGE_MB = 600  # where only ours is measured

HOW = """A line is a step from a version to the next. The rule sets and the native library come
from the package registry. The rest is generated, the same on every machine: virus patterns are
sorted 40-byte records, of which each version adds 0.5 % and removes 0.1 % below a header that
changes; the text list, the JSON and the hash list were drawn up after the format was, as unseen
data, and the goals are held against them too.

Peers: bsdiff4; HDiffPatch over whole files (`hdiffpatch`, lzma2 level 9, a dictionary of 32 MB);
`zstd -19 --patch-from`; `xdelta3 -9 -S lzma` with its window over the whole old file; tufup 0.10
by its own functions, bsdiff4 over tar archives that it keeps as gzip, applying until the file is
unpacked.{absent} Ours has the default effort.

Each making and applying is a process of its own, and what it rebuilt is compared. CPU is user
and system time without the interpreter's start and its imports. Memory is the peak resident set
over that of a bare Python; of the programs zstd and xdelta3 all of it. The floor reads, writes,
digests (SHA-256) and fsyncs the new file; ours digests and fsyncs too, not all peers do. Ours and
the floor took turns when applying, 7 times up to 16 MB and 3 times above, medians; all else was
run once. At 600 MB only ours is run, for bsdiff4 would take minutes and 11 GB."""


def run(*, quick: bool) -> Section:
    """All pairs with all tools; quick: fewer pairs, and none above 60 MB."""
    families = [*corpora.registry(quick=quick), corpora.patterns(6), corpora.patterns(60)]
    families += corpora.unseen()
    peers = measure.available()
    named = [measure.pair(pair, peers=peers) for pair in _steps(families, named=True)]
    unseen = [measure.pair(pair, peers=peers) for pair in _steps(families, named=False)]
    huge = [] if quick else [measure.pair(corpora.patterns(HUGE_MB).steps()[0], peers=())]
    everything = [*named, *unseen, *huge]
    return Section(
        title="Increments",
        how=_how(peers),
        figures=(
            *_sizes("the named corpora", named),
            *_sizes("the unseen data", unseen),
            *_making([*named, *unseen]),
            *_applying(everything),
            *(_memory(item) for item in _patterns(everything)),
            _highest(everything),
            _leaps(families, [*named, *unseen]),
        ),
        tables=_tables(everything, peers),
    )


def _how(peers: list[str]) -> str:
    absent = "".join(f" {peer} is absent on this machine." for peer in set(PEERS) - set(peers))
    paragraphs = HOW.format(absent=absent).split("\n\n")
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)


def _steps(families: list[Corpus], *, named: bool) -> Iterable[Pair]:
    """The pairs to measure; of what is generated one each, for its steps are alike."""
    for family in families:
        if family.named == named:
            steps = family.steps()
            yield from steps[:1] if family.versions[0][0] == corpora.GENERATED[0] else steps


def _sizes(what: str, found: list[Measured]) -> list[Figure]:
    mean = statistics.geometric_mean(_size_ratio(item) for item in found)
    worst = max(found, key=_size_ratio)
    return [
        Figure(
            f"bytes of {what}, geometric mean of {len(found)}",
            f"{mean:.3f}",
            "1 (the smallest peer of each pair)",
            ratio=mean,
            goal=f"at most {SIZE_RATIO} times",
            met=mean <= SIZE_RATIO,
        ),
        Figure(
            f"bytes of {what}, the worst: {worst.pair}",
            f"{worst.ours.length:,}",
            f"{worst.peers[worst.smallest].length:,} ({worst.smallest})",
            ratio=_size_ratio(worst),
            goal=f"at most {SIZE_RATIO_WORST} times",
            met=_size_ratio(worst) <= SIZE_RATIO_WORST,
        ),
    ]


def _size_ratio(item: Measured) -> float:
    return item.ours.length / item.peers[item.smallest].length


def _making(found: list[Measured]) -> list[Figure]:
    costs = [
        Beside(item, item.ours.make.cpu_s, item.peers["bsdiff4"].make.cpu_s)
        for item in found
        if item.size > MAKE_FROM_BYTES
    ]
    return _cpu("making above 5 MB", costs, "bsdiff4", MAKE_RATIO)


def _applying(found: list[Measured]) -> list[Figure]:
    costs = [Beside(item, item.ours.apply.cpu_s, item.floor.cpu_s) for item in found]
    return _cpu("applying", costs, "the floor", APPLY_RATIO)


@dataclass(frozen=True)
class Beside:
    """CPU seconds of ours and of what it is held against."""

    item: Measured
    ours_s: float
    peer_s: float

    @property
    def ratio(self) -> float:
        return self.ours_s / self.peer_s


def _cpu(what: str, costs: list[Beside], peer: str, goal: float) -> list[Figure]:
    """The generated patterns, the worst of all, and how many pairs reach the goal."""
    worst = max(costs, key=lambda cost: cost.ratio)
    shown = [(f"{cost.item.pair}", cost) for cost in costs if _is_pattern(cost.item)]
    shown.append((f"the worst: {worst.item.pair}", worst))
    figures = [
        Figure(
            f"CPU of {what}, {name}",
            _seconds(cost.ours_s),
            f"{_seconds(cost.peer_s)} ({peer})",
            ratio=cost.ratio,
            goal=f"at most {goal:g} times",
            met=cost.ratio <= goal,
        )
        for name, cost in shown
    ]
    reached = sum(cost.ratio <= goal for cost in costs)
    mean = statistics.geometric_mean(cost.ratio for cost in costs)
    counted = f"{reached} of {len(costs)}"
    return [
        *figures,
        Figure(
            f"CPU of {what}: geometric mean, and pairs that reach the goal", counted, ratio=mean
        ),
    ]


def _patterns(found: list[Measured]) -> list[Measured]:
    return [item for item in found if _is_pattern(item)]


def _is_pattern(item: Measured) -> bool:
    return item.pair.corpus.startswith("pattern")


def _memory(item: Measured) -> Figure:
    return _peak(f"memory of applying, {item.pair}", item)


def _highest(found: list[Measured]) -> Figure:
    item = max(found, key=lambda item: item.ours.apply.peak_bytes)
    return _peak(f"memory of applying, the highest of all: {item.pair}", item)


def _peak(what: str, item: Measured) -> Figure:
    peak_mb = item.ours.apply.peak_bytes / 1e6
    least = min(item.peers, key=lambda name: item.peers[name].apply.peak_bytes, default="")
    peer = f"{_mb(item.peers[least].apply.peak_bytes)} MB ({least}, the least)" if least else ""
    return Figure(
        what,
        f"{peak_mb:.1f} MB",
        peer,
        goal=f"at most {APPLY_PEAK_MB:g} MB over a bare Python",
        met=peak_mb <= APPLY_PEAK_MB,
    )


def _leaps(families: list[Corpus], measured: list[Measured]) -> Figure:
    """From a version to the next but one, directly and step by step; the worst ratio."""
    known = {item.pair: item.ours.length for item in measured}
    found: dict[Pair, tuple[int, int]] = {}
    for direct, *steps in (leap for family in families for leap in family.leaps()):
        chain = sum(known.get(step) or measure.length(step) for step in steps)
        found[direct] = measure.length(direct), chain
    worst = max(found, key=lambda pair: found[pair][0] / found[pair][1])
    direct_bytes, chain_bytes = found[worst]
    smaller = sum(direct < chain for direct, chain in found.values())
    return Figure(
        f"bytes of a direct increment over two versions, the worst of {len(found)}: {worst}",
        f"{direct_bytes:,}; {smaller} of {len(found)} are smaller",
        f"{chain_bytes:,} (its chain)",
        ratio=direct_bytes / chain_bytes,
        goal="smaller than its chain",
        met=smaller == len(found),
    )


def _tables(found: list[Measured], peers: list[str]) -> tuple[Table, ...]:
    return (
        _table("Bytes of the increment", found, peers, lambda item: f"{item.length:,}"),
        _table(
            "Making, CPU seconds (and MB of memory)",
            found,
            peers,
            lambda item: f"{_plain(item.make.cpu_s)} ({_mb(item.make.peak_bytes)})",
        ),
        _table(
            "Applying, CPU seconds (and MB of memory)",
            found,
            peers,
            lambda item: f"{_plain(item.apply.cpu_s)} ({_mb(item.apply.peak_bytes)})",
            floor=True,
        ),
    )


def _table(
    title: str,
    found: list[Measured],
    peers: list[str],
    cell: Callable[[Found], str],
    *,
    floor: bool = False,
) -> Table:
    def row(item: Measured) -> tuple[str, ...]:
        others = [cell(item.peers[peer]) if peer in item.peers else "" for peer in peers]
        last = [f"{_plain(item.floor.cpu_s)} ({_mb(item.floor.peak_bytes)})"] if floor else []
        return (str(item.pair), f"{item.size:,}", cell(item.ours), *others, *last)

    columns = ("pair", "new file", OURS, *peers, *(["floor"] if floor else []))
    return Table(title, columns, tuple(row(item) for item in found))


def _plain(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds < 1 else f"{seconds:.2f}"


def _seconds(seconds: float) -> str:
    return f"{_plain(seconds)} s"


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f}"

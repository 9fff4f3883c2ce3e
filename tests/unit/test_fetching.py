"""The guardian's link to its fetcher: restarted, listened to, killed, never believed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from agent import channel
from agent.channel import (
    Begin,
    Checked,
    Due,
    Host,
    Progress,
    Reach,
    Reached,
    Scheduled,
    Word,
)
from agent.fetcher import schedule
from agent.guardian import fetching, programs
from agent.guardian.fetching import FetcherLink
from agent.guardian.starter import Children
from agent.loop import Loop
from tests.support.turns import until

HOST = Host(
    host_id="h",
    region="global",
    platform="linux",
    agent_version="0.1.0",
    active_release=None,
    installed={},
    quarantine=(),
)
BEGIN = Begin(attempt="1", trigger="t", download=True, host=HOST)
GREET = 'print(\'{"type":"scheduled","next_check":5}\', flush=True)'
READ = "import sys; sys.stdin.readline()"


class Link:
    """A link to a fetcher that is a few lines of Python; delays are recorded, not waited for."""

    def __init__(self, loop: Loop, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
        self.loop = loop
        self.words: list[Word] = []
        self.lost: list[str] = []
        self.delays: list[float] = []
        self.link = FetcherLink(
            loop,
            Path("config.toml"),
            starter=Children(loop, None),
            on_word=self.words.append,
            on_lost=self.lost.append,
            silence_max_s=0.5,
        )
        self.link._command = [sys.executable, "-S", "-E", "-c", code]
        plain = loop.call_in

        def call_in(seconds: float, callback: Any) -> Any:
            if callback == self.link.start:
                self.delays.append(seconds)
                seconds = 0.01
            return plain(seconds, callback)

        monkeypatch.setattr(loop, "call_in", call_in)

    def until(self, is_so: Any) -> None:
        until(self.loop, is_so)

    def change(self, code: str) -> None:
        self.link._command = [sys.executable, "-S", "-E", "-c", code]


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def link(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    made = Link(loop, monkeypatch, f"{GREET}\n{READ}")
    yield made
    made.link.stop()


def test_words_are_passed_on_and_the_next_check_is_known(link: Link) -> None:
    link.link.start()
    link.link.start()  # one is enough
    link.until(lambda: link.words)
    assert link.words == [Scheduled(next_check=5)]
    assert link.link.next_check == 5


def test_a_fetcher_that_dies_is_restarted_later_each_time(link: Link) -> None:
    link.change("raise SystemExit(3)")
    link.link.start()
    link.until(lambda: len(link.delays) >= 6)
    assert link.delays[:6] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    assert link.lost[0] == "the fetcher ended with status 3; it is started again"


def test_greeting_before_it_dies_doesnt_make_a_fetcher_look_well(link: Link) -> None:
    link.change(f"{GREET}\nraise SystemExit(3)")
    link.link.start()
    link.until(lambda: len(link.delays) >= 4)
    assert link.delays[:4] == [1.0, 2.0, 4.0, 8.0]


def test_the_delay_has_a_ceiling_however_often_it_failed(link: Link) -> None:
    for failures in (8, 9, 2000):
        link.link._failures = failures
        link.link._restart_later()
    assert link.delays == [256.0, 300.0, 300.0]


def test_a_fetcher_that_did_its_work_is_restarted_soon(link: Link) -> None:
    link.link._failures = 5
    answer = '{"type":"reached","ok":true,"detail":"d"}'
    link.change(f"{READ}\nprint('{answer}', flush=True)\nraise SystemExit(3)")
    link.link.start()
    assert link.link.order(Reach())
    link.until(lambda: link.delays)
    assert link.words == [Reached(ok=True, detail="d")]
    assert link.delays[0] == 1.0


def test_a_fetcher_that_cant_be_started_is_tried_again(link: Link) -> None:
    link.link._command = ["/no/such/python"]
    link.link.start()
    link.until(lambda: len(link.delays) >= 3)
    assert link.link.pid is None
    assert "/no/such/python" in link.lost[0]
    assert not link.link.order(BEGIN)
    link.change(f"{GREET}\n{READ}")
    link.until(lambda: link.words)
    assert link.link.pid is not None


def test_silence_without_work_is_fine(link: Link, loop: Loop) -> None:
    link.link.start()
    link.until(lambda: link.words)
    pid = link.link.pid
    for _ in range(40):
        loop.turn(0.02)
    assert link.link.pid == pid
    assert link.lost == []


def test_a_fetcher_that_is_mute_about_an_order_is_killed(link: Link) -> None:
    link.change("import time; time.sleep(60)")
    link.link.start()
    assert link.link.order(BEGIN)
    link.until(lambda: link.lost)
    assert "status -9" in link.lost[0]


def test_words_about_an_order_buy_time_and_its_last_word_ends_the_watch(
    link: Link, loop: Loop
) -> None:
    progress = '{"type":"progress","release":"r","done":1,"total":2}'
    last = '{"type":"checked","attempt":"1","source":"s","decision":"current","sentence":"s"}'
    link.change(
        f"import sys, time\nsys.stdin.readline()\nfor _ in range(5):\n"
        f"    time.sleep(0.25)\n    print('{progress}', flush=True)\n"
        f"print('{last}', flush=True)\nsys.stdin.readline()"
    )
    link.link._silence_max_s = 5.0
    link.link.start()
    assert link.link.order(BEGIN)
    link.link._silence_max_s = 1.0
    link.until(lambda: len(link.words) == 6)
    assert isinstance(link.words[-1], Checked)
    for _ in range(60):
        loop.turn(0.02)
    assert link.lost == []


def test_a_fetcher_that_never_stops_talking_costs_no_memory(link: Link, loop: Loop) -> None:
    """Each word of its work moves the end of its silence."""
    link.link.start()
    word = channel.encode(Progress(release="r173", done=1, total=2))
    for _ in range(10_000):
        link.link._hear(word)
    assert len(link.words) == 10_000
    assert len(loop._timers) < 200


def test_the_watch_goes_on_while_another_order_is_open(link: Link) -> None:
    answer = '{"type":"reached","ok":true,"detail":"d"}'
    link.change(f"{READ}\nprint('{answer}', flush=True)\nimport time; time.sleep(60)")
    link.link._silence_max_s = 3.0
    link.link.start()
    assert link.link.order(Reach())
    assert link.link.order(BEGIN)
    link.link._silence_max_s = 0.5
    link.until(lambda: link.lost)
    assert "status -9" in link.lost[0]


@pytest.mark.parametrize("said", ["garbage", "{}", '{"type":"due"}', "[" * 100_000, "\\xff"])
def test_a_fetcher_that_isnt_understood_is_killed(link: Link, said: str) -> None:
    code = f"import os, time; os.write(1, b'{said}\\n')" if len(said) < 99 else "print('['*100000)"
    link.change(f"{code}\nimport sys, time\nsys.stdout.flush()\ntime.sleep(60)")
    link.link.start()
    link.until(lambda: link.lost)
    assert "status -9" in link.lost[0]
    assert link.words == []


def test_a_fetcher_that_floods_is_killed(link: Link) -> None:
    link.change("import os\nwhile True: os.write(1, b'x' * 65536)")
    link.link.start()
    link.until(lambda: link.lost)
    assert link.words == []


def test_what_a_dead_fetcher_left_running_ends_with_it(link: Link) -> None:
    code = "import os, subprocess; p = subprocess.Popen(['sleep', '60'])"
    link.change(
        f'{code}\nprint(\'{{"type":"due","trigger":"%d"}}\' % p.pid, flush=True)\nos._exit(1)'
    )
    link.link.start()
    link.until(lambda: link.lost)
    assert isinstance(link.words[0], Due)
    worker = int(link.words[0].trigger)
    until(link.loop, lambda: not Path(f"/proc/{worker}/exe").exists() or _ended(worker))


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_a_fetcher_whose_service_is_stopped_before_the_guardian_is_no_error(
    link: Link, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "ORDERLY_S", 0.05)
    monkeypatch.setattr(link.link, "_restart_later", lambda: None)
    link.change("")
    with capture_logs() as logs:
        link.link.start()
        link.until(lambda: link.lost)
        link.until(lambda: [item["event"] for item in logs] == ["fetcher_ended"])
        logs.clear()
        link.link.start()
        link.until(lambda: len(link.lost) == 2)
        link.link.stop()
        for _ in range(10):
            loop.turn(0.02)
    assert logs == []


def test_a_stopped_link_starts_nothing_more(link: Link, loop: Loop) -> None:
    link.link.start()
    link.until(lambda: link.words)
    pid = link.link.pid
    link.link.stop()
    assert pid is not None
    assert _ended(pid)
    link.link.start()
    for _ in range(10):
        loop.turn(0.02)
    assert link.lost == []
    link.link._child = None


class Other(programs.Program):
    """Another copy of the program, which says another time."""

    def command(self, module: str, config_path: Path, *more: str) -> list[str]:
        code = f"import sys; print({GREETS_SEVEN!r} if '--resumed' in sys.argv else 0, flush=True)"
        return [sys.executable, "-S", "-E", "-c", f"{code}\n{READ}"]


GREETS_SEVEN = '{"type":"scheduled","next_check":7,"version":"0.2.0"}'
OTHER = Other(slot="b", folder=Path("/nowhere"), version="0.2.0")


def test_another_copy_takes_over_at_once_and_the_old_one_is_heard_no_more(link: Link) -> None:
    link.link.start()
    link.until(lambda: link.words)
    old = link.link.pid
    assert old is not None
    assert not link.link.use(OTHER)  # it had no work to lose
    assert not link.link.use(OTHER)
    link.until(lambda: len(link.words) == 2)
    assert (link.link.next_check, link.link.version) == (7, "0.2.0")
    link.until(lambda: _ended(old))
    assert link.lost == []
    assert link.delays == []


def test_taking_over_tells_when_work_is_lost(link: Link) -> None:
    link.link.start()
    link.until(lambda: link.words)
    link.link.order(BEGIN)
    assert link.link.use(OTHER)


def test_another_copy_can_be_chosen_before_the_first_start(link: Link) -> None:
    link.link.use(OTHER)
    assert link.link.pid is None


def test_a_fetcher_that_gives_no_sign_of_life_is_killed(link: Link) -> None:
    link.change("import time; time.sleep(60)")
    link.link.start()
    link.until(lambda: link.lost)
    assert link.link.deaths == 1


def test_checks_that_die_count_as_deaths_and_one_that_works_clears_them(link: Link) -> None:
    died = (
        '{"type":"cycle_failed","attempt":"1","source":"","code":"fetch_cycle_died","sentence":"s"}'
    )
    works = died.replace("fetch_cycle_died", "source_unreachable")
    for line, deaths in ((died, 1), (died, 2), (works, 0), (died, 1)):
        link.link._hear(line.encode())
        assert link.link.deaths == deaths


def test_the_fetcher_gets_no_more_environment_than_children_do() -> None:
    assert "HOME" not in programs.OWN.environment(os.environ)


@given(st.floats(0, 1e6), st.floats(0, 0.999))
def test_machines_spread_over_the_jitter(jitter_s: float, draw: float) -> None:
    at_start = schedule.delay_at_start(jitter_s=jitter_s, draw=draw)
    assert 0 <= at_start <= min(jitter_s, schedule.START_SPREAD_MAX_S)
    later = schedule.delay_to_next(interval_s=3600, jitter_s=jitter_s, draw=draw)
    assert 3600 <= later <= 3600 + jitter_s

"""The feed's files from the server and from nginx, in turns: throughput and CPU time."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench import machine
from bench.figures import Figure, Section
from bench.idle import TICK_S
from bench.server import serving

DIGEST = "c" * 64
AT_ONCE = 4
SLOWEST = 0.5  # of nginx's throughput
CASES = {"1 MB": (1_000_000, 400), "100 MB": (100_000_000, 8)}  # bytes, requests

_CONFIG = """\
daemon off; master_process off; worker_processes 1; pid {place}/nginx.pid; error_log stderr crit;
events {{ worker_connections 256; }}
http {{
  access_log off; sendfile on; tcp_nopush on; types {{ }} default_type application/octet-stream;
  client_body_temp_path {place}/t1; proxy_temp_path {place}/t2; fastcgi_temp_path {place}/t3;
  uwsgi_temp_path {place}/t4; scgi_temp_path {place}/t5;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


class Cost(NamedTuple):
    """What serving took."""

    mb_per_s: float
    cpu_s_per_gb: float


def run(*, quick: bool) -> Section:
    """Files of both sizes; four clients that read as fast as they can."""
    figures: list[Figure] = []
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    with machine.folder() as place:
        place.chmod(0o755)  # nginx's worker may be another user
        feed = _feed(place)
        if not Path(nginx).exists():
            with serving.process(place, feed) as server:
                figures += _figures(server.pid, server.port, None, quick=quick)
        else:
            with serving.process(place, feed) as server, _nginx(nginx, place) as peer:
                figures += _figures(server.pid, server.port, peer, quick=quick)
    return Section(
        title="Serving files",
        how=f"{AT_ONCE} clients fetch over loopback HTTP, one file after the other on a "
        "connection that stays; the server and nginx (one process, sendfile) take turns. CPU: "
        "user and system time of the serving process, which the kernel counts in ticks of "
        f"{TICK_S * 1e3:g} ms."
        + ("" if figures and figures[0].peer else " nginx isn't installed here."),
        figures=tuple(figures),
    )


def _figures(pid: int, port: int, peer: tuple[int, int] | None, *, quick: bool) -> Iterator[Figure]:
    for name, (size, requests) in CASES.items():
        count = requests // 8 if quick else requests
        path = f"/feed/targets/{DIGEST}.{size}"
        _measure(pid, port, path, size, AT_ONCE)
        ours = _measure(pid, port, path, size, count)
        theirs = None
        if peer:
            _measure(*peer, path, size, AT_ONCE)
            theirs = _measure(*peer, path, size, count)
        yield Figure(
            f"{name}, throughput",
            f"{ours.mb_per_s:,.0f} MB/s",
            f"{theirs.mb_per_s:,.0f} MB/s (nginx)" if theirs else "",
            ratio=ours.mb_per_s / theirs.mb_per_s if theirs else None,
            goal=f"at least {SLOWEST:g} of nginx" if theirs else "",
            met=ours.mb_per_s >= SLOWEST * theirs.mb_per_s if theirs else None,
        )
        yield Figure(
            f"{name}, CPU seconds a gigabyte",
            f"{ours.cpu_s_per_gb:.2f} s",
            f"{theirs.cpu_s_per_gb:.2f} s (nginx)" if theirs else "",
            ratio=ours.cpu_s_per_gb / theirs.cpu_s_per_gb if theirs else None,
        )


def _feed(place: Path) -> Path:
    feed = place / "feed"
    (feed / "targets").mkdir(parents=True)
    feed.chmod(0o755)
    for size, _ in CASES.values():
        with (feed / "targets" / f"{DIGEST}.{size}").open("wb") as file:
            for _ in range(size // 1_000_000):
                file.write(os.urandom(1_000_000))
    return feed


@contextmanager
def _nginx(program: str, place: Path) -> Iterator[tuple[int, int]]:
    """Its process id and port."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="holdfast-nginx-") as own:
        config = Path(own) / "nginx.conf"
        config.write_text(_CONFIG.format(place=own, port=port, root=place))
        running = subprocess.Popen([program, "-c", str(config), "-e", "stderr"])
        try:
            _wait(port)
            yield running.pid, port
        finally:
            running.terminate()
            running.wait(10)


def _wait(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _measure(pid: int, port: int, path: str, size: int, requests: int) -> Cost:
    """Several readers in processes of their own; what they got is counted, not looked at."""
    each = max(1, requests // AT_ONCE)
    before, began = _cpu_s(pid), time.perf_counter()
    command = ["python3", "-c", _READER, str(port), path, str(size), str(each)]
    readers = [subprocess.Popen(command) for _ in range(AT_ONCE)]
    for reader in readers:
        assert reader.wait() == 0
    seconds = time.perf_counter() - began
    moved = each * AT_ONCE * size
    return Cost(moved / 1e6 / seconds, (_cpu_s(pid) - before) / (moved / 1e9))


_READER = """
import socket, sys
port, path, size, times = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with socket.create_connection(("127.0.0.1", port)) as server:
    into = bytearray(1 << 20)
    for _ in range(times):
        server.sendall(f"GET {path} HTTP/1.1\\r\\nHost: s\\r\\n\\r\\n".encode())
        head = b""
        while b"\\r\\n\\r\\n" not in head:
            piece = server.recv(4096)
            assert piece, head
            head += piece
        assert head.startswith(b"HTTP/1.1 200"), head
        left = size - len(head.partition(b"\\r\\n\\r\\n")[2])
        while left:
            got = server.recv_into(into, min(left, len(into)))
            assert got, left
            left -= got
"""


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S

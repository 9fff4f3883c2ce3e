"""Real servers and commands that answer, refuse, hang and flood."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import trustme

from agent.config import Probe, Watch
from agent.guardian.commands import Command, Commands
from agent.guardian.probes import Probes
from agent.guardian.questions import ConnectQuestion, HttpQuestion, addresses, parse_url
from agent.guardian.samples import ProbeResult

PYTHON = (sys.executable, "-S", "-c")


@contextmanager
def probing(*probes: Probe) -> Iterator[Probes]:
    commands = Commands({"PATH": os.environ["PATH"]})
    found = Probes([_watch(f"engine-{n}", item) for n, item in enumerate(probes)], commands)
    found.start()
    try:
        yield found
    finally:
        found.stop()
        commands.close()


def _watch(name: str, probe: Probe) -> Watch:
    return Watch(name=name, process="x", probe=probe)


def answer(probe: Probe) -> ProbeResult:
    """The first answer, polled as the guardian's loop does."""
    with probing(probe) as found:
        return _next(found)


def _next(found: Probes) -> ProbeResult:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        again_s = found.poll(time.monotonic())
        results = found.take()
        if results:
            return results[0]
        assert again_s is not None
        time.sleep(min(again_s, 0.05))
    raise AssertionError("no answer and no time limit")


@contextmanager
def answering(
    reply: bytes, *, tls: ssl.SSLContext | None = None
) -> Iterator[tuple[int, list[bytes]]]:
    """A server that reads a request and says `reply`; its port, and what it heard."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                if tls:
                    connection = tls.wrap_socket(connection, server_side=True)
                with connection:
                    heard.append(connection.recv(4096))
                    for piece in (reply[:5], reply[5:]):
                        connection.sendall(piece)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1], heard
        finally:
            thread.join()


@contextmanager
def mute() -> Iterator[int]:
    """A server that takes connections and says nothing; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_tcp_port_that_accepts_is_an_answer() -> None:
    with mute() as port:
        assert answer(Probe(tcp=f"127.0.0.1:{port}")).ok


def test_localhost_is_asked_without_dns() -> None:
    with mute() as port:
        assert answer(Probe(tcp=f"localhost:{port}")).ok


def test_localhost_on_ipv6_is_found_after_ipv4_refused() -> None:
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with server:
        assert answer(Probe(tcp=f"localhost:{server.getsockname()[1]}")).ok


def test_a_closed_port_is_refused_at_once() -> None:
    seen = answer(Probe(tcp=f"127.0.0.1:{_closed_port()}"))
    assert not seen.ok
    assert seen.detail == "Connection refused"


def test_a_unix_socket_that_accepts_is_an_answer(tmp_path: Path) -> None:
    path = str(tmp_path / "engine.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        assert answer(Probe(unix=path)).ok


def test_a_missing_unix_socket_and_one_with_too_long_a_path_fail(tmp_path: Path) -> None:
    assert answer(Probe(unix=str(tmp_path / "none"))).detail == "No such file or directory"
    assert answer(Probe(unix=str(tmp_path / ("x" * 200)))).detail == "File name too long"


def test_a_unix_socket_whose_queue_is_full_is_no_answer_until_it_has_room(tmp_path: Path) -> None:
    path = str(tmp_path / "engine.sock")
    with socket.socket(socket.AF_UNIX) as server, contextlib.ExitStack() as clients:
        server.bind(path)
        server.listen(0)
        while True:
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            if client.connect_ex(path):
                break
        question = ConnectQuestion(((socket.AF_UNIX, path),))
        assert question.poll() is None
        server.accept()[0].close()
        assert question.poll() == (True, "connected")
        question.close()


@pytest.mark.parametrize(
    ("reply", "ok", "detail"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True, "HTTP 200"),
        (b"HTTP/1.0 301 Moved\r\n\r\n", True, "HTTP 301"),
        (b"HTTP/1.1 399\r\n\r\n", True, "HTTP 399"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", False, "HTTP 404"),
        (b"HTTP/1.1 503 Busy\r\n\r\n", False, "HTTP 503"),
        (b"SSH-2.0-OpenSSH_9\r\n", False, "not an HTTP answer"),
        (b"", False, "closed without an answer"),
        (b"x" * 100_000, False, "not an HTTP answer"),
    ],
)
def test_an_http_answer_is_judged_by_its_status(reply: bytes, ok: bool, detail: str) -> None:
    with answering(reply) as (port, heard):
        seen = answer(Probe(http=f"http://127.0.0.1:{port}/health?x=1"))
    assert (seen.ok, detail in seen.detail) == (ok, True)
    assert heard[0].startswith(b"GET /health?x=1 HTTP/1.1\r\nHost: 127.0.0.1:")


def test_an_https_answer_is_heard_whatever_the_certificate_says() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("elsewhere.example").configure_cert(context)
    with answering(b"HTTP/1.1 204 No Content\r\n\r\n", tls=context) as (port, _):
        assert answer(Probe(http=f"https://127.0.0.1:{port}/")).ok


def test_a_server_that_does_not_speak_tls_fails_an_https_probe() -> None:
    with answering(b"HTTP/1.1 200 OK\r\n\r\n") as (port, _):
        assert not answer(Probe(http=f"https://127.0.0.1:{port}/")).ok


@pytest.mark.parametrize("kind", ["http", "https"])
def test_a_server_that_says_nothing_is_cut_at_the_timeout(kind: str) -> None:
    with mute() as port:
        seen = answer(Probe(http=f"{kind}://127.0.0.1:{port}/", timeout_s=0.3))
    assert not seen.ok
    assert seen.detail == "no answer in 0.3 s"
    assert 0.3 <= seen.elapsed_s < 2


def test_a_connection_that_is_reset_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        question = HttpQuestion(parse_url(f"http://127.0.0.1:{server.getsockname()[1]}/"))
        assert question.poll() is None
        connection, _ = server.accept()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
        end = time.monotonic() + 10
        while (found := question.poll()) is None:
            assert time.monotonic() < end
        question.close()
    assert found == (False, "Connection reset by peer")


def test_a_command_that_ends_with_0_is_an_answer() -> None:
    assert answer(Probe(command=("true",))).ok


def test_a_command_that_fails_says_why() -> None:
    seen = answer(Probe(command=("sh", "-c", "echo engine is stuck >&2; exit 3")))
    assert (seen.ok, seen.detail) == (False, "status 3: engine is stuck")


def test_a_command_that_cannot_start_is_a_failure() -> None:
    seen = answer(Probe(command=("/nonexistent/probe",)))
    assert (seen.ok, seen.detail) == (False, "No such file or directory")


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
def test_a_command_that_the_machine_cant_start_is_told_from_a_failure(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    assert not answer(Probe(command=("/nonexistent/probe",))).starved
    monkeypatch.setattr("agent.guardian.commands.subprocess.Popen", refuse)
    seen = answer(Probe(command=("true",)))
    assert (seen.ok, seen.starved, seen.detail) == (False, True, os.strerror(number))


def test_a_command_that_hangs_is_cut_with_everything_it_started(tmp_path: Path) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/pid; wait"
    seen = answer(Probe(command=("sh", "-c", script), timeout_s=0.5))
    assert (seen.ok, seen.detail) == (False, "no answer in 0.5 s")
    assert 0.5 <= seen.elapsed_s < 3
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end


def test_a_command_that_floods_its_output_is_still_judged_by_its_status() -> None:
    flood = "import os\nfor _ in range(400): os.write(1, b'x' * 65536)"
    assert answer(Probe(command=(*PYTHON, flood), timeout_s=20)).ok


def test_of_a_flood_only_the_first_bytes_are_kept() -> None:
    command = Command((*PYTHON, "import os\nwhile True: os.write(2, b'x' * 65536)"), {})
    end = time.monotonic() + 10
    while len(command.output) < 4096:
        assert command.poll() is None
        assert time.monotonic() < end
    for _ in range(20):
        command.poll()
    assert len(command.output) == 4096
    command.kill()
    command.wait(10)
    assert command.poll() == -9


def test_where_pipes_cannot_be_polled_the_status_alone_speaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "set_blocking")
    seen = answer(Probe(command=("sh", "-c", "echo lost; exit 3")))
    assert (seen.ok, seen.detail) == (False, "status 3")


def test_an_endless_flood_is_cut_at_the_timeout() -> None:
    flood = "import os\nwhile True: os.write(1, b'x' * 65536)"
    seen = answer(Probe(command=(*PYTHON, flood), timeout_s=0.5))
    assert (seen.ok, seen.elapsed_s < 3) == (False, True)


def test_a_probe_that_hangs_does_not_hold_up_a_poll_or_another_probe() -> None:
    with (
        mute() as port,
        probing(Probe(command=("sleep", "60"), timeout_s=5), Probe(tcp=f"127.0.0.1:{port}")) as p,
    ):
        began = time.thread_time()
        seen = _next(p)
    assert seen.name == "engine-1"
    assert seen.ok
    assert time.thread_time() - began < 0.5


def test_an_answer_that_is_there_counts_however_late_the_guardian_looks() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        with probing(Probe(http=url, timeout_s=1)) as found:
            at = time.monotonic()
            found.poll(at)
            connection, _ = server.accept()
            found.poll(at)
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            found.poll(at + 500)
            assert found.take()[0].ok


def test_a_probe_is_asked_again_at_its_interval_and_not_before() -> None:
    with mute() as port, probing(Probe(tcp=f"127.0.0.1:{port}", interval_s=10)) as found:
        at = time.monotonic()
        assert _settle(found, at)
        again_s = found.poll(at + 1)
        assert again_s == pytest.approx(9, abs=0.2)
        assert not _settle(found, at + 9.5)
        assert _settle(found, at + 10.1)


def _settle(found: Probes, at: float) -> tuple[ProbeResult, ...]:
    for step in range(50):
        found.poll(at + step * 0.001)
    return found.take()


def test_probes_that_are_stopped_ask_nothing() -> None:
    with mute() as port, probing(Probe(tcp=f"127.0.0.1:{port}")) as found:
        found.stop()
        assert found.poll(time.monotonic()) is None
        assert found.take() == ()


@pytest.mark.parametrize(
    "probe",
    [
        Probe(tcp="engine.example:80"),
        Probe(tcp="127.0.0.1"),
        Probe(tcp="127.0.0.1:0"),
        Probe(tcp="127.0.0.1:70000"),
        Probe(http="ftp://127.0.0.1/"),
        Probe(http="http://user:secret@127.0.0.1/"),
        Probe(http="http://127.0.0.1/with space"),
        Probe(http="http://127.0.0.1/\r\nX: y"),
    ],
)
def test_a_probe_that_can_never_be_asked_is_a_problem_and_no_failure(probe: Probe) -> None:
    with probing(probe) as found:
        found.poll(time.monotonic())
        assert found.take() == ()
        assert not found.can_ask("engine-0")
        assert "expected" in found.problem("engine-0")


def test_addresses_may_be_ipv6_in_brackets() -> None:
    assert addresses("[::1]:80") == ((socket.AF_INET6, ("::1", 80)),)
    url = parse_url("https://[::1]?q")
    assert (url.host, url.path, url.secure) == ("[::1]", "/?q", True)
    assert url.addresses == ((socket.AF_INET6, ("::1", 443)),)

"""The local API, over real sockets: whatever clients do, the others are served."""

from __future__ import annotations

import errno
import grp
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ConfigError, ControlError, LifecycleError, UnknownNameError
from agent.guardian import control
from agent.guardian.control import ControlServer, Request, StatusServer
from agent.host.posix_io import give_to_group
from agent.loop import Loop
from tests.support.turns import Clock

PATH = "status.sock"


class Served:
    """A server on a loop of its own, in a thread."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / PATH
        self.asked: list[Request] = []
        self.loop = Loop()
        handlers = {
            "status": self._status,
            "history": self._history,
            "refuse": _refuse,
            "break": _break,
            "wrong": _wrong,
        }
        self.server = ControlServer(self.loop, self.path, handlers, mode=0o660)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self.loop.turn(0.02)

    def _status(self, request: Request) -> dict[str, Any]:
        self.asked.append(request)
        return {"release": "r173"}

    def _history(self, request: Request) -> str:
        return "x" * request.count

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
        self.server.close()
        self.loop.close()

    @contextmanager
    def client(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(20)
            connection.connect(str(self.path))
            yield connection

    def ask(self, *lines: bytes) -> list[Any]:
        """The answers to these requests on one connection."""
        with self.client() as connection:
            connection.sendall(b"".join(line + b"\n" for line in lines))
            return [answer(connection) for _ in lines]


def answer(connection: socket.socket) -> Any:
    """The next answer, to the byte, so that nothing of the one after it is lost."""
    found = bytearray()
    while not found.endswith(b"\n"):
        byte = connection.recv(1)
        assert byte, f"closed after {bytes(found)!r}"
        found += byte
    return json.loads(found)


def rest(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    found = bytearray()
    try:
        while data := connection.recv(1 << 16):
            found += data
    except ConnectionResetError:
        pass
    return bytes(found)


def send_again_and_again(connection: socket.socket, data: bytes, *, pause_s: float = 0.0) -> None:
    """Send until the server has had enough, at most 1,000 times."""
    for _ in range(1000):
        connection.sendall(data)
        time.sleep(pause_s)


def _refuse(_request: Request) -> None:
    raise LifecycleError("not now")


def _break(_request: Request) -> None:
    raise OSError(28, "No space left on device")


def _wrong(_request: Request) -> None:
    raise ControlError("there is none")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("control"))
    yield made
    made.close()


STATUS = b'{"do":"status"}'
FINE = {"ok": True, "result": {"release": "r173"}}


def test_a_request_is_answered(served: Served) -> None:
    assert served.ask(b'{"do":"status","count":3,"what":"r1"}') == [FINE]
    assert served.asked == [Request(do="status", count=3, what="r1")]


def test_requests_on_one_connection_are_answered_in_order(served: Served) -> None:
    lines = [b'{"do":"history","count":%d}' % number for number in range(300)]
    assert [len(item["result"]) for item in served.ask(*lines)] == list(range(300))


@pytest.mark.parametrize(
    ("name", "code", "text"),
    [
        ("refuse", "transition_refused", "not now"),
        ("break", "io_error", "No space left"),
        ("wrong", "request_refused", "there is none"),
        ("rm -rf", "request_refused", "'rm -rf' isn't served on status.sock; break, history"),
    ],
)
def test_a_refusal_has_a_code_and_a_sentence(
    served: Served, name: str, code: str, text: str
) -> None:
    (found,) = served.ask(json.dumps({"do": name}).encode())
    assert found["ok"] is False
    assert found["code"] == code
    assert text in found["error"]


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b"{}",
        b"[]",
        b"null",
        b'{"do":1}',
        b'{"do":"status","more":1}',
        b'{"do":"status","count":"3"}',
        b'{"do":"\xff"}',
        b"[" * 60_000,
        b'{"do":"status"} {"do":"status"}',
    ],
)
def test_what_isnt_a_request_is_told_so_and_the_connection_goes_on(
    served: Served, line: bytes
) -> None:
    bad, good = served.ask(line, STATUS)
    assert (bad["ok"], bad["code"]) == (False, "request_malformed")
    assert good == FINE


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_no_garbage_stops_the_server(shared: Served, pieces: list[bytes]) -> None:
    with shared.client() as connection:
        for piece in pieces:
            connection.sendall(piece)
        connection.sendall(b"\n" + STATUS + b"\n")
        lines = sum(1 for line in b"".join(pieces).split(b"\n") if line)
        for _ in range(lines):
            answer(connection)
        assert answer(connection) == FINE


def test_half_a_request_waits_for_its_other_half(served: Served) -> None:
    with served.client() as slow, served.client() as quick:
        slow.sendall(STATUS[:7])
        quick.sendall(STATUS + b"\n")
        assert answer(quick) == FINE
        slow.sendall(STATUS[7:] + b"\n")
        assert answer(slow) == FINE


def test_a_client_that_stops_writing_still_gets_its_answers(served: Served) -> None:
    with served.client() as connection:
        connection.sendall((STATUS + b"\n") * 3)
        connection.shutdown(socket.SHUT_WR)
        assert rest(connection).count(b"r173") == 3


def test_a_request_past_the_limit_ends_the_connection(served: Served) -> None:
    with served.client() as connection:
        connection.sendall(b"x" * (control.REQUEST_BYTES_MAX + 1))
        found = json.loads(rest(connection))
    assert found["error"] == "a request of over 65,536 bytes"


def test_a_flood_without_a_line_end_costs_its_own_connection_only(served: Served) -> None:
    with served.client() as flood:
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            send_again_and_again(flood, b"x" * 65_536)
        assert served.ask(STATUS) == [FINE]


def test_a_flood_of_requests_leaves_room_for_others(served: Served) -> None:
    """Nobody reads the flood's answers: it is held back, the memory it costs is bounded."""
    with served.client() as flood:
        flood.setblocking(False)
        sent = 0
        idle_since = time.monotonic()
        while time.monotonic() - idle_since < 0.5 and sent < 50_000_000:
            try:
                sent += flood.send(b'{"do":"history","count":1000}\n' * 500)
                idle_since = time.monotonic()
            except BlockingIOError:
                time.sleep(0.01)
        assert sent < 5_000_000
        (client,) = (item for item in served.server._clients if item._outbox)
        assert len(client._outbox) + sum(map(len, client._waiting)) < 100_000
        assert served.ask(STATUS) == [FINE]


def test_a_client_that_doesnt_read_its_answer_is_dropped(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "PATIENCE_S", 0.3)
    with served.client() as mute:
        mute.sendall(b'{"do":"history","count":5000000}\n')
        mute.recv(1)  # it is being served
        until_gone(served)
        assert len(rest(mute)) < 5_000_000


def test_a_client_that_asks_nothing_or_drips_is_dropped(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "PATIENCE_S", 0.5)
    with served.client() as silent, served.client() as dripping:
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            send_again_and_again(dripping, b"x", pause_s=0.02)
        assert rest(silent) == b""


def until_gone(served: Served) -> None:
    end = time.monotonic() + 20
    while served.server._clients:
        assert time.monotonic() < end, "clients are still connected"
        time.sleep(0.01)


def test_an_answer_past_the_limit_is_a_refusal_with_the_numbers(served: Served) -> None:
    (found,) = served.ask(b'{"do":"history","count":9000000}')
    assert found["code"] == "answer_too_long"
    assert "the limit is 8,388,608" in found["error"]


def test_a_large_answer_arrives_whole(served: Served) -> None:
    with served.client() as connection:
        connection.sendall(b'{"do":"history","count":3000000}\n')
        connection.shutdown(socket.SHUT_WR)
        assert len(json.loads(rest(connection))["result"]) == 3_000_000


def test_two_hundred_clients_are_served_or_told_to_come_back(served: Served) -> None:
    with ExitStack() as stack:
        clients = []
        for _ in range(200):
            try:
                clients.append(stack.enter_context(served.client()))
            except BlockingIOError:  # the backlog is full for a moment
                time.sleep(0.02)
        told = []
        for client in clients:
            try:
                client.sendall(STATUS + b"\n")
                told.append(answer(client))
            except (BrokenPipeError, ConnectionResetError):
                told.append(json.loads(rest(client) or b'{"code":"busy"}'))
        served_well = [item for item in told if item == FINE]
        turned_away = [item for item in told if item.get("code") == "busy"]
        assert len(served_well) == control.CLIENTS_MAX
        assert len(served_well) + len(turned_away) == len(told) > 150
    until_gone(served)
    assert served.ask(STATUS) == [FINE]


def test_clients_that_vanish_at_any_time_are_forgotten(served: Served) -> None:
    for data in (b"", b"{", STATUS + b"\n", b'{"do":"history","count":3000000}\n'):
        with served.client() as connection:
            connection.sendall(data)
    until_gone(served)
    assert served.ask(STATUS) == [FINE]


def test_the_socket_has_its_mode_from_the_start_and_is_taken_away(tmp_path: Path) -> None:
    loop = Loop()
    path = tmp_path / PATH
    path.write_text("left by a crash")
    umask = os.umask(0o077)
    try:
        server = ControlServer(loop, path, {}, mode=0o666)
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(umask)
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    server.close()
    assert not path.exists()
    server.close()
    loop.close()


def test_a_closing_server_drops_its_clients(tmp_path: Path) -> None:
    served = Served(tmp_path)
    with served.client() as connection:
        connection.sendall(STATUS + b"\n")
        assert answer(connection) == FINE
        served.close()
        assert rest(connection) == b""


def test_a_path_too_long_for_a_socket_names_the_setting(tmp_path: Path) -> None:
    loop = Loop()
    with pytest.raises(ConfigError, match=r"runtime_dir: .* bytes long; .* may have 107"):
        ControlServer(loop, tmp_path / ("x" * 120), {}, mode=0o600)
    loop.close()


def test_a_group_may_be_let_in(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.touch(0o600)
    give_to_group(path, grp.getgrgid(os.getgid()).gr_name)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with pytest.raises(UnknownNameError, match="there is no group 'nobody-has-it'"):
        give_to_group(path, "nobody-has-it")


def test_a_fault_while_answering_everybody_ends_the_request_and_not_the_guardian(
    tmp_path: Path,
) -> None:
    def fails(_request: Request) -> None:
        raise RuntimeError("nobody foresaw it")

    loop = Loop()
    server = StatusServer(loop, tmp_path / PATH, {"status": fails}, mode=0o666)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / PATH))
        client.sendall(STATUS + b"\n")
        client.settimeout(0)
        for _ in range(5):
            loop.turn(0.1)
        assert b"internal_error" in client.recv(1000)
    server.close()
    loop.close()


def test_a_server_without_a_descriptor_for_its_client_waits_and_accepts_it_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client stays in the queue, so asking again at once would burn a core."""
    clock = Clock()
    loop = Loop(clock)
    server = ControlServer(loop, tmp_path / PATH, {"status": lambda _: "fine"}, mode=0o600)
    tries: list[int] = []

    def full(_listener: socket.socket) -> None:
        tries.append(1)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with socket.socket(socket.AF_UNIX) as client, monkeypatch.context() as without:
        client.connect(str(tmp_path / PATH))
        client.sendall(STATUS + b"\n")
        without.setattr(socket.socket, "accept", full)
        for _ in range(5):
            loop.turn(0.0)
        assert len(tries) == 1
        without.undo()
        clock.now += control.ACCEPT_AGAIN_S
        for _ in range(5):
            loop.turn(0.0)
        client.settimeout(0)
        assert b"fine" in client.recv(1000)
    server.close()
    loop.close()

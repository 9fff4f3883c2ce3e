"""Where the server listens, and that only one does on a folder."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from feed import servicemanager
from server import alone, listening
from server.errors import BusyError, ConfigError


@pytest.mark.parametrize("listen", ["[::]:0", "127.0.0.1:0", "[::1]:0", "localhost:0"])
def test_an_address_is_listened_on(listen: str) -> None:
    (made,) = listening.sockets(listen)
    with made:
        family = socket.AF_INET if listen == "127.0.0.1:0" else made.family
        host = "127.0.0.1" if family == socket.AF_INET or listen == "[::]:0" else "::1"
        socket.create_connection((host, listening.port_of(made)), timeout=5).close()


def test_a_taken_port_and_a_foreign_address_are_told() -> None:
    (made,) = listening.sockets("127.0.0.1:0")
    with made, pytest.raises(ConfigError, match="choose another"):
        listening.sockets(f"127.0.0.1:{listening.port_of(made)}")
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        listening.sockets("192.0.2.1:0")


def test_a_state_folder_has_one_server(tmp_path: Path) -> None:
    lock = tmp_path / "server.lock"
    with alone.hold(lock), pytest.raises(BusyError, match="another server"), alone.hold(lock):
        pass
    with alone.hold(lock):
        pass


def test_the_service_manager_hears_that_it_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        servicemanager.notify("READY=1")
        assert manager.recv(100) == b"READY=1"
        monkeypatch.delenv("NOTIFY_SOCKET")
        servicemanager.notify("READY=1")

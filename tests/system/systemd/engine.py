"""A scan engine in the guest: /opt/scanner/engine.py, run by scanner.service.

Its pattern is what makes it good or bad. The first word of the pattern:
 good    it waits for work
 burn    it never stops working
 crash   it ends soon after it has loaded it
 block   it never gets ready when it starts with it; reloading works
 spin, bomb, deaf, hogs
         it turns into /opt/scanner/pressing.py (tests.support.pressing)

/run/scanner.log, new with each boot, has a line "start WORD RELEASE" or "reload WORD RELEASE"
for each time it read the pattern.
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path

PATTERN = "/var/lib/holdfast/current/virus-pattern/virus-pattern.dat"
LOG = "/run/scanner.log"
PRESSING = "/opt/scanner/pressing.py"
RELOAD = {signal.SIGHUP}


def load(occasion: str) -> str:
    """Read the pattern; returns its first word."""
    try:
        with Path(PATTERN).open() as file:
            said = file.readline().split()
    except OSError:
        said = ["good", "nothing"]
    with Path(LOG).open("a") as log:
        log.write(f"{occasion} {said[0]} {said[1]}\n")
    return said[0]


def ready() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, RELOAD)
    word = load("start")
    while word == "block":
        time.sleep(1)
    ready()
    while True:
        if word == "crash":
            time.sleep(0.2)
            os.abort()
        if word in {"spin", "bomb", "deaf", "hogs"}:
            os.execv(sys.executable, [sys.executable, "-I", PRESSING, PATTERN])
        if word == "burn":
            sum(range(20_000))
        if signal.sigtimedwait(RELOAD, 0 if word == "burn" else 1):
            word = load("reload")


main()

"""An engine under a supervisor: it loads its content when it starts and at SIGHUP.

    python engine.py CONTENT PID_FILE PRESSING

Content that doesn't begin with "calm" turns it into PRESSING. When it dies it
is started again, as services are.
"""

import os
import signal
import sys
import time
from pathlib import Path


def load(content: Path, pressing: str) -> None:
    try:
        word = content.read_bytes()[:4].decode()
    except OSError:
        return
    if word != "calm":
        os.execv(sys.executable, [sys.executable, pressing, str(content)])


def work(content: Path, pid_file: Path, pressing: str) -> None:
    fresh = pid_file.with_suffix(".new")
    fresh.write_text(str(os.getpid()))
    fresh.rename(pid_file)
    while True:
        load(content, pressing)
        signal.sigwait({signal.SIGHUP})


def main() -> None:
    content, pid_file, pressing = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    while True:
        try:
            child = os.fork()
        except OSError:
            time.sleep(0.1)
            continue
        if child == 0:
            work(content, pid_file, pressing)
        os.waitpid(child, 0)
        time.sleep(0.05)


main()

"""Python that need not start: commands run in forks of a process that has imported everything.

`python` is what starts "Python": a small program that asks a server of the test for a fork, and is
told its exit status. Asked to stop, it has the fork interrupted; killed, it has the fork killed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import threading
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess

__all__ = ["forking"]

SHIM = """
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect(sys.argv[1])
said = {"pid": os.getpid(), "argv": sys.argv[2:], "cwd": os.getcwd()}
server.sendall(json.dumps(said).encode() + b"\\n")
while True:
    try:
        code = server.recv(16)
        break
    except KeyboardInterrupt:
        server.sendall(b"interrupt\\n")
sys.exit(int(code or b"1"))
"""


class Fork(ForkServerProcess):
    """A process whose end is read by one thread at a time.

    The fork server says an exit status once, through a pipe. `Process.start` asks after every
    process that there is, so a thread that starts one and a thread that waits for another both find
    its pipe readable; who comes second reads nothing, and takes that for the exit status 255.
    """

    _reading = threading.RLock()

    def start(self):
        with self._reading:
            super().start()

    def join(self, timeout=None):
        wait([self.sentinel], timeout)
        with self._reading:
            super().join(0)

    def is_alive(self):
        with self._reading:
            return super().is_alive()


def _serve(asked):
    """Be the Python that was asked for, in a process that is about to end."""
    for number in (1, 2):  # the shim's own output, by the system's name for it
        os.dup2(os.open(f"/proc/{asked['pid']}/fd/{number}", os.O_WRONLY | os.O_APPEND), number)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    os.chdir(asked["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    torch.set_num_threads(1)
    first, *rest = asked["argv"]
    if first == "-m":
        from eagle.cli import main

        assert rest[0] == "eagle.cli"
        main(rest[1:])
    sys.argv = [first, *rest]
    runpy.run_path(first, run_name="__main__")


@contextmanager
def forking(folder):
    """Yield the words that start such a Python, and how to start any function in a fork."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["eagle.train.run", "eagle.train.evaluation", "eagle.cli", "eagle_plugins", "transformers"]
    )
    address = str(folder / "python.sock")
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()

    def answer(client):
        with client, client.makefile("rb") as lines:
            if not (line := lines.readline()):  # killed before it asked
                return
            process = Fork(target=_serve, args=(json.loads(line),))
            process.start()

            def hear():
                for _ in lines:
                    with suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGINT)
                process.kill()  # the other end is gone

            threading.Thread(target=hear, daemon=True).start()
            process.join()
            with suppress(OSError):
                client.sendall(str(process.exitcode).encode())
                client.shutdown(socket.SHUT_RDWR)

    def accept():
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    (folder / "shim.py").write_text(SHIM)
    try:
        yield [sys.executable, "-S", "-E", str(folder / "shim.py"), address], Fork
    finally:
        server.close()

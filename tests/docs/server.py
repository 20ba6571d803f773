"""Runs commands of ours in forks of one process that has torch imported; knows no page.

A page's blocks run in a shell, in which each command would import torch and transformers anew, for
five seconds. ``eagle`` on their path hands its words, folder and files to this process instead. Run
as ``python server.py SOCKET``; `CLIENT` is the program that calls it.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys

CLIENT = """#!{python} -SE
import json, os, signal, socket, sys
call = {{"words": sys.argv[1:], "folder": os.getcwd(), "env": dict(os.environ)}}
with socket.socket(socket.AF_UNIX) as server:
    server.connect({path!r})
    socket.send_fds(server, [b"!"], [0, 1, 2])
    server.sendall(json.dumps(call).encode() + b"\\n")
    told = server.makefile()
    worker = int(told.readline())
    signal.signal(signal.SIGTERM, lambda *_: os.kill(worker, signal.SIGTERM))
    sys.exit(int(told.readline()))
"""


def answer(caller: socket.socket) -> None:
    """Run what a caller asks for with the caller's own files, and send the exit status."""
    _, files, _, _ = socket.recv_fds(caller, 1, 3)
    call = json.loads(caller.makefile().readline())
    worker = os.fork()
    if worker == 0:
        for number, file in enumerate(files):
            os.dup2(file, number)
        # Opened anew: ours remember whether what they were opened on can be sought in.
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        os.chdir(call["folder"])
        os.environ.clear()
        os.environ.update(call["env"])
        sys.argv = ["eagle", *call["words"]]
        from eagle.cli import program

        program()
    caller.sendall(f"{worker}\n".encode())  # so that who ends the caller ends it
    status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    caller.sendall(f"{status if status >= 0 else 128 - status}\n".encode())


def serve(path: str) -> None:
    """Answer callers at once, each in a process of its own, until this one is ended."""
    import transformers.models.llama.modeling_llama  # noqa: F401

    import eagle.bench.speed
    import eagle.cli.root
    import eagle.decoding
    import eagle.train.run  # noqa: F401
    import eagle_plugins  # noqa: F401
    import eagle_strategies  # noqa: F401

    gc.freeze()  # of what is here forks copy no more than they change
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        while True:
            caller, _ = server.accept()
            if os.fork() == 0:
                answer(caller)
                os._exit(0)
            caller.close()


if __name__ == "__main__":
    serve(sys.argv[1])

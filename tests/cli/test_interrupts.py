"""Ctrl-C at any moment from the program's first line on ends it with 130 and without a word."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Interrupts itself where a module begins to be imported, or when all is done.
PROGRAM = """
import atexit, os, signal, sys

place = sys.argv.pop(1)
signal.signal(signal.SIGINT, signal.SIG_IGN if place == "ignored" else signal.default_int_handler)

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == place or (name == "typer" and place == "ignored"):
            interrupt()
        if name == "torch" and place == "the end":
            atexit.register(lambda: (print("said", end=""), interrupt()))

from eagle.cli import program

sys.meta_path.insert(0, Interrupting())
program()
"""
PLACES = ["eagle.cli.root", "typer", "typer.main", "eagle.cli.verify", "eagle.cli.bench.ranks"]
PLACES += ["eagle.spec", "numpy", "numpy._core.multiarray", "torch", "torch._C", "torch.nn"]
PLACES += ["eagle.spec.files", "the end"]


def interrupted(place):
    words = [sys.executable, "-c", PROGRAM, place, "spec", "list"]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("place", PLACES)
def test_an_interrupt_ends_the_program_without_a_word(place):
    ran = interrupted(place)
    assert (ran.returncode, ran.stderr) == (130, "")
    assert ran.stdout.endswith("said") == (place == "the end")


def test_who_ignores_interrupts_goes_on():
    ran = interrupted("ignored")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "eagle" in ran.stdout

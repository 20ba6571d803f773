"""``python -m eagle.cli``: the command line, for launchers that start a module."""

from eagle.cli import program

program()

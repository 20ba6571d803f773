from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from eagle import cli
from eagle.cli import console
from eagle.errors import CheckpointError, SpecError


@pytest.fixture
def failing(monkeypatch, eagle):
    """Run `eagle spec list` while it raises what the test says."""

    def run(error: BaseException, *arguments: str):
        def load(*_):
            raise error

        monkeypatch.setattr("eagle.spec.load_spec", load)
        return eagle("spec", "list", *arguments)

    return run


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_lists_every_command_with_examples(eagle, arguments):
    ran = eagle(*arguments)
    assert ran.status == 0
    assert all(command in ran.out for command in ("plugins", "spec"))
    assert "Examples:" in ran.out
    assert ran.err == ""


def commands(command, path=()):
    """Yield the path of every command and group."""
    yield path
    for name, below in getattr(command, "commands", {}).items():
        if not below.hidden:  # what a group does by itself goes by the group's own name
            yield from commands(below, (*path, name))


ALL = list(commands(typer.main.get_command(cli.app)))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_has_help_with_an_example_of_itself(eagle, path):
    ran = eagle(*path, "--help")
    assert ran.status == 0
    assert "Examples:" in ran.out
    assert " ".join(("eagle", *path)) in ran.out.partition("Examples:")[2]


def test_help_is_quick_because_it_imports_no_torch():
    code = (
        "import sys\n"
        "from eagle.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'pydantic') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_version(eagle):
    ran = eagle("--version")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("eagle-decoding ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plugin",), "error: No such command 'plugin'. Did you mean 'plugins'?"),
        (("spec", "chekc"), "error: No such command 'chekc'. Did you mean 'check'?"),
        (("spec", "show"), "error: Missing argument 'SPEC'."),
        (("plugins", "--jsno"), "error: No such option: --jsno"),
        (("plugins", "extra"), "error: Got unexpected extra argument"),
        (("spec", "check", "chain", "--set"), "error: Option '--set' requires an argument."),
    ],
)
def test_a_wrong_command_line_is_one_error_and_status_2(eagle, arguments, message):
    ran = eagle(*arguments)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith(message)
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "hi", "--temperature", "abc"),
        ("generate", "hi", "--top-k", "1.5"),
        ("generate", "hi", "--repeats", "0"),
        ("chat", "--max-new-tokens", "many"),
        ("tree", "hi", "--cycle", "first"),
        ("verify", "--limit", "0"),
        ("verify", "--alpha", "high"),
        ("bench", "passes", "--repeats", "x"),
    ],
    ids=" ".join,
)
def test_a_wrong_value_is_a_sentence_with_the_option_and_the_value(eagle, arguments):
    *_, option, value = arguments
    ran = eagle(*arguments)
    assert (ran.status, ran.out) == (2, "")
    sentence, hint = ran.err.splitlines()
    assert option in sentence
    assert value in sentence
    assert not any(word in sentence for word in ("Input", "String", "unable", "Value error"))
    assert hint.endswith("--help'.")


def test_a_wrong_command_line_points_to_the_commands_help(eagle):
    assert eagle("spec", "show").err.endswith("Try 'eagle spec show --help'.\n")


def test_a_users_mistake_is_one_line_and_status_2(failing):
    ran = failing(CheckpointError("a.safetensors: fc.weight is missing [x]"))
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == "error: a.safetensors: fc.weight is missing [x]\n"


def test_a_long_message_is_not_wrapped(failing):
    assert failing(SpecError("word " * 60)).err.count("\n") == 1


def test_codes_that_a_terminal_obeys_are_shown_and_not_sent(failing):
    ran = failing(SpecError("a\x1b[2Jb: \x9b31m, \0 and \x7f"))
    assert ran.err == "error: a\\x1b[2Jb: \\x9b31m, \\x00 and \\x7f\n"


def test_several_problems_are_a_line_each(failing):
    assert failing(SpecError("one\ntwo")).err == "error: one\nerror: two\n"


@pytest.mark.parametrize("where", ["before", "behind"])
def test_debug_shows_the_traceback_wherever_it_stands(monkeypatch, eagle, where):
    arguments = ["spec", "show", "no-such-spec"]
    arguments.insert(0 if where == "before" else 3, "--debug")
    ran = eagle(*arguments)
    assert ran.status == 2
    assert "Traceback" in ran.err
    assert "error: no spec is named 'no-such-spec'" in ran.err


def test_after_two_dashes_debug_is_an_argument(eagle):
    ran = eagle("spec", "show", "--", "--debug")
    assert ran.status == 2
    assert "no spec is named '--debug'" in ran.err
    assert "Traceback" not in ran.err


def test_a_mistake_of_the_library_is_called_one(failing):
    ran = failing(KeyError("x"))
    assert ran.status == 1
    assert ran.err.startswith("error: KeyError: 'x' (a mistake in this library; run again with")
    assert ran.err.count("\n") == 1


def test_a_system_error_names_the_file(failing):
    ran = failing(OSError(28, "No space left on device", "big.svg"))
    assert (ran.status, ran.err) == (2, "error: big.svg: No space left on device\n")


def test_an_interrupt_ends_with_130_and_silence(failing):
    ran = failing(KeyboardInterrupt())
    assert (ran.status, ran.err) == (130, "")


def test_a_closed_pipe_is_no_error():
    code = "from eagle.cli import main; main(['spec', 'schema'])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1


# What is registered later is called before the end, and threads are waited for; a file is whole.
PROGRAM = """
import atexit, sys, threading, time
from pathlib import Path
from eagle import cli
from eagle.cli import console

class Unfreed:
    def __del__(self):
        Path(sys.argv[1], "freed").touch()

def command(*_, **__):
    cli.unfreed = Unfreed()
    atexit.register(lambda: Path(sys.argv[1], "called").touch())
    threading.Thread(target=lambda: (time.sleep(0.2), print("a thread's"))).start()
    print("its own", end="")
    return 3

console.run = command
cli.program()
"""


def test_a_program_ends_with_all_that_it_was_to_do_but_is_not_taken_apart(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, "its owna thread's\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["called"]


def test_a_program_that_is_ended_by_a_mistake_shows_it(tmp_path):
    broken = PROGRAM.replace("return 3", "raise LookupError('lost')")
    ran = subprocess.run(
        [sys.executable, "-c", broken, tmp_path], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert "LookupError: lost\n" in ran.stderr


@pytest.mark.parametrize(
    ("stream", "arguments", "status", "message"),
    [
        ("stdout", ("spec", "list"), 0, ""),
        ("stdin", ("generate", "-"), 2, "standard input is closed, so no prompt can be read"),
        ("stdin", ("chat",), 2, "standard input is closed, so there is nobody to talk with"),
    ],
)
def test_streams_that_were_closed_before_the_start(
    eagle, monkeypatch, stream, arguments, status, message
):
    monkeypatch.setattr(sys, stream, None)
    ran = eagle(*arguments)
    assert ran.status == status
    assert message in ran.err
    assert "mistake in this library" not in ran.err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:128] data. DefaultCPUAllocator: can't allocate"
            " memory: you tried to allocate 400000000000 bytes."
        ),
    ],
)
def test_what_does_not_fit_into_memory_is_no_mistake_of_ours(error, capsys):
    class Command:
        def main(self, **_):
            raise error

    assert console.run(Command(), []) == 2
    assert "there is not enough memory for that" in capsys.readouterr().err


def test_what_was_given_is_not_repeated_without_end(eagle):
    ran = eagle("spec", "check", "x" * 100_000)
    assert ran.status == 2
    assert len(ran.err) < 2000


@pytest.mark.parametrize(
    "error",
    [
        OverflowError("cannot fit 'int' into an index-sized integer"),
        TypeError("randn(): argument 'size' failed: Overflow when unpacking long long"),
    ],
)
def test_a_number_that_no_machine_holds_is_no_mistake_of_ours(error, capsys):
    class Command:
        def main(self, **_):
            raise error

    assert console.run(Command(), ["--rows", "9" * 25]) == 2
    assert capsys.readouterr().err == f"error: {'9' * 25} is too large a number\n"
    assert console.run(Command(), ["--rows", "9", "x" + "9" * 25]) == 1
    assert "a mistake in this library" in capsys.readouterr().err


def _program(words, **given):
    run = [sys.executable, "-m", "eagle.cli", *words]
    return subprocess.run(run, text=True, check=False, **given)


def test_columns_that_are_none_leave_something_to_read():
    ran = _program(["spec", "list"], stdout=subprocess.PIPE, env=os.environ | {"COLUMNS": "0"})
    assert ran.returncode == 0
    assert "The EAGLE head" in ran.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_mistake_that_cannot_be_told_is_one_all_the_same():
    with open("/dev/full", "w") as full:
        assert _program(["spec", "check", "nowhere"], stderr=full).returncode == 2

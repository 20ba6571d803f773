"""No process outlasts its limit, and whatever ends says why."""

import asyncio
import os
import sys
import time

import pytest

from check_gpu.process import ProcessError, Worker, run

ECHO = """
import json, sys, time
print(json.dumps({"ok": "ready"}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked == "die":
        sys.exit("the reason")
    if asked == "sleep":
        time.sleep(60)
    print(json.dumps({"error": "cannot"} if asked == "fail" else {"ok": asked}), flush=True)
"""


def python(code):
    return [sys.executable, "-c", code]


def ended(tmp_path, code, limit=20.0):
    return asyncio.run(run(python(code), os.environ, tmp_path / "log", limit))


def test_the_first_word_and_the_end_are_timed(tmp_path):
    found = ended(tmp_path, "import time; print(1, flush=True); time.sleep(0.3); print(2)")
    assert found.code == 0
    assert found.first is not None
    assert found.seconds >= found.first + 0.25
    assert (tmp_path / "log").read_text() == "1\n2\n"


def test_a_command_that_takes_longer_is_ended_with_what_it_started(tmp_path):
    child = f"{sys.executable!r}, '-c', 'import time; time.sleep(60)'"
    code = f"import subprocess; p = subprocess.Popen([{child}]); print(p.pid, flush=True); p.wait()"
    started = time.monotonic()
    assert ended(tmp_path, code, limit=2.0).code is None
    assert time.monotonic() - started < 20
    child_pid = int((tmp_path / "log").read_text())
    for _ in range(100):  # until whoever adopted it has noticed
        if not alive(child_pid):
            return
        time.sleep(0.05)
    pytest.fail("its child lives on")


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def talk(tmp_path, *questions, limit=20.0):
    async def conversation():
        worker = Worker(python(ECHO), os.environ, tmp_path / "log")
        answers = [await worker.start(20.0)]
        try:
            for question in questions:
                try:
                    answers.append(await worker.ask(question, limit))
                except ProcessError as error:
                    answers.append(str(error))
        finally:
            await worker.stop()
        return answers

    return asyncio.run(conversation())


def test_a_worker_that_cannot_answer_one_question_answers_the_next(tmp_path):
    assert talk(tmp_path, "fail", "next") == ["ready", "cannot", "next"]


def test_a_worker_that_ends_leaves_its_last_words(tmp_path):
    assert talk(tmp_path, "die", "next") == ["ready", "the reason", "stopped before"]


def test_a_worker_that_does_not_answer_in_time_is_stopped(tmp_path):
    assert talk(tmp_path, "sleep", limit=0.5)[1] == "took more than 0 s"

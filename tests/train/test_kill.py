"""Runs in processes of their own that are killed, or run into a full disk or a loss of NaN."""

import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from eagle.train.run.state import RunState
from tests.train.words import write_project

CONFIG = """
target: {model: target, dtype: float32}
data: {sources: [{path: talk.jsonl}], length: 32, heldout: 0.1}
batch: 2
steps: 100
log_every: 3
save_every: 4
tensorboard: false
optimizer: {lr: 3.0e-3}
evaluation: {every: 20, heldout: 2, max_new_tokens: 6, trees: [{name: chain, depth: 2}], chain: 2}
"""
KILLS = 6


@pytest.fixture(scope="module")
def processes():
    """A server that has imported everything once and forks a process for every run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["eagle.train.run", "eagle.cli", "eagle_plugins", "transformers"]
    )
    return context


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a tiny target, conversations and a recipe."""
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    (folder / "run.yaml").write_text(CONFIG)
    return folder


def _run(arguments, folder, largest):
    """Run the command line in a process that is about to end."""
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open("said.txt", "w")  # noqa: SIM115
    os.dup2(sys.stderr.fileno(), 2)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    from eagle.cli import main

    main(arguments)


@pytest.fixture
def train(processes, project):
    """Start ``eagle train`` and return its process."""

    def start(output, *overrides, resume=False, largest=None):
        words = [word for one in (f"output={output}", *overrides) for word in ("--set", one)]
        words += ["--resume"] if resume else []
        arguments = (["train", "run.yaml", *words], project, largest)
        process = processes.Process(target=_run, args=arguments)
        process.start()
        return process

    return start


@pytest.fixture(scope="module")
def finished(project):
    """Wait for a process and return its exit status and what it said."""

    def wait(process):
        process.join(120)
        return process.exitcode, " ".join((project / "said.txt").read_text().split())

    return wait


def curve(folder):
    """Return what the log says about the run, clocks left out."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    clocks = ("tokens_per_second", "seconds")
    return [{key: value for key, value in line.items() if key not in clocks} for line in lines]


def progress(folder):
    """Return which file the log is, since a new process writes a new one, and its last step."""
    path = folder / "log.jsonl"
    if not path.exists():
        return 0, 0
    whole = path.read_text().rpartition("\n")[0].splitlines()
    return path.stat().st_ino, json.loads(whole[-1])["step"] if whole else 0


def check_files(folder):
    """Load everything that a run has left behind, which must be whole at any moment."""
    step = RunState.load(folder / "checkpoint.pt").step if _has(folder, "checkpoint.pt") else 0
    for name in ("head", "best"):
        if _has(folder, name):
            json.loads((folder / name / "config.json").read_text())
            tensors = load_file(folder / name / "model.safetensors")
            assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    return step


def _has(folder, name):
    return (folder / name).exists()


@pytest.fixture(scope="module")
def whole(processes, project, finished):
    """The folder of a run that nobody disturbed."""
    process = processes.Process(
        target=_run, args=(["train", "run.yaml", "--set", "output=whole"], project, None)
    )
    process.start()
    assert finished(process)[0] == 0
    return project / "whole"


def test_a_run_that_is_killed_anywhere_has_the_curve_of_one_that_is_not(
    train, finished, project, whole
):
    rng, folder, kills, reached = random.Random(3), project / "killed", 0, []
    for attempt in range(KILLS):
        before, _ = progress(folder)
        process = train("killed", resume=attempt > 0)
        if attempt in (0, 3):  # somewhere while it starts
            time.sleep(rng.random() * 0.4)
        else:  # some steps on: in a step, in a checkpoint, in an evaluation
            wanted, until = reached[-1] + rng.randint(1, 8), time.monotonic() + 60
            while process.is_alive() and time.monotonic() < until:
                log, step = progress(folder)
                if log != before and step >= wanted:
                    break
            time.sleep(rng.random() * 0.01)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        reached.append(check_files(folder))
    assert kills == KILLS
    assert reached == sorted(reached)
    assert 0 < reached[-1] < 100
    (folder / "head" / ".writing-left").mkdir(parents=True)  # as some kills leave it
    status, said = finished(train("killed", resume=True))
    assert status == 0, said
    assert curve(folder) == curve(whole)
    assert not list(folder.rglob(".*"))  # nothing that was half written
    steps = [line["step"] for line in curve(folder) if line["kind"] == "train"]
    assert steps == sorted(set(steps))
    assert steps[-1] == 100
    ours, theirs = (RunState.load(one / "checkpoint.pt") for one in (folder, whole))
    assert ours.best == theirs.best
    assert all(torch.equal(ours.head[name], theirs.head[name]) for name in theirs.head)


def test_a_run_that_is_killed_at_its_very_end_says_nothing_twice(train, finished, whole):
    before, head = curve(whole), (whole / "head" / "model.safetensors").read_bytes()
    # Killed behind its last checkpoint and before the head was written.
    (whole / "head" / "model.safetensors").write_bytes(b"an older head")
    status, said = finished(train("whole", resume=True))
    assert status == 0, said
    assert curve(whole) == before
    assert (whole / "head" / "model.safetensors").read_bytes() == head


def test_a_disk_that_is_full_stops_the_run_and_leaves_the_last_checkpoint(train, finished, project):
    folder = project / "full"
    assert finished(train("full", "steps=8"))[0] == 0
    saved = (folder / "checkpoint.pt").read_bytes()
    # The kernel refuses to write more into a file, as a full disk does.
    process = train("full", resume=True, largest=len(saved) // 2)
    status, said = finished(process)
    assert status == 2
    assert "checkpoint could not be written" in said
    assert "The one before it is untouched; make room and run again with --resume" in said
    assert (folder / "checkpoint.pt").read_bytes() == saved
    assert check_files(folder) == 8
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_run_goes_on_after_the_disk_was_full_as_if_it_had_not_been(
    train, finished, project, whole
):
    folder = project / "room"
    size = (whole / "checkpoint.pt").stat().st_size
    status, said = finished(train("room", largest=size // 2))
    assert status == 2
    assert "Make room and run again" in said, "there is none before it"
    assert finished(train("room", resume=True))[0] == 0
    assert curve(folder) == curve(whole)


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_the_last_checkpoint(
    train, finished, project
):
    folder = project / "nan"
    assert finished(train("nan", "steps=8"))[0] == 0
    status, said = finished(train("nan", "optimizer.lr=1.0e+38", resume=True))
    assert status == 2
    assert "the loss became" in said
    assert "the last checkpoint is from before" in said
    assert check_files(folder) == 8
    state = RunState.load(folder / "checkpoint.pt")
    assert all(torch.isfinite(tensor).all() for tensor in state.head.values())
    status, _ = finished(train("nan", resume=True))
    assert status == 0
    assert curve(folder)[-1]["step"] == 100


def test_answers_of_a_process_that_is_killed_are_neither_lost_nor_doubled(
    processes, project, finished
):
    def start(out):
        words = ["--out", out, "--max-new-tokens", "24", "--batch", "2"]
        arguments = (["data", "regenerate", "run.yaml", *words], project, None)
        process = processes.Process(target=_run, args=arguments)
        process.start()
        return process

    def answers():
        path = project / "killed.jsonl.progress"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    assert finished(start("whole.jsonl"))[0] == 0
    rng, kills = random.Random(5), 0
    for _ in range(3):
        process, wanted = start("killed.jsonl"), answers() + rng.randint(5, 25)
        until = time.monotonic() + 60
        while process.is_alive() and answers() < wanted and time.monotonic() < until:
            time.sleep(0.001)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills == 3
    status, said = finished(start("killed.jsonl"))
    assert status == 0, said
    assert "going on behind" in said
    assert (project / "killed.jsonl").read_text() == (project / "whole.jsonl").read_text()
    assert len((project / "whole.jsonl").read_text().splitlines()) == 60

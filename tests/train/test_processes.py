"""Several processes, or several batches a step, against one process with the same rows a step."""

import json
import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import torch

from eagle.errors import SpecError
from eagle.testing import tiny_target
from eagle.train.processes import Processes
from eagle.train.recipe import load_train_spec
from eagle.train.run import train
from eagle.train.state import RunState

BASE = """
target: {dtype: float32}
data: {packed: text.npz, length: 32, heldout: 0.1}
loss: {levels: 2}
batch: 4
steps: 6
log_every: 1
save_every: 3
optimizer: {lr: 3.0e-3, schedule: constant, warmup: 0, ema: 0.9}
evaluation: {every: 3, heldout: 2, max_new_tokens: 6, trees: [{name: chain, depth: 2}], chain: 2}
"""


@pytest.fixture
def spec(tmp_path, corpus):
    corpus.save(tmp_path / "text.npz")
    (tmp_path / "run.yaml").write_text(BASE)

    def make(output, *overrides):
        return load_train_spec(tmp_path / "run.yaml", [f"output={tmp_path / output}", *overrides])

    return make


def figures(spec):
    text = (Path(spec.output) / "log.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    trained = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in trained] == list(range(1, len(trained) + 1))
    numbers = [[one["loss"], one["accuracy"], *one["accuracy_by_level"]] for one in trained]
    return torch.tensor(numbers), [one["tau"] for one in lines if one["kind"] == "evaluation"]


def weights(spec):
    state = RunState.load(Path(spec.output) / "checkpoint.pt")
    return torch.cat([tensor.flatten() for tensor in state.head.values()])


def _one(spec, resume, rank, port):
    """Be one of two processes."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    outcome = train(spec, resume=resume, target=tiny_target())
    assert outcome.main == (rank == 0)


def run_two(spec, resume=False):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["eagle.train.run", "eagle_plugins", "transformers"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [
        context.Process(target=_one, args=(spec, resume, rank, port), daemon=True)
        for rank in range(2)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0, 0]


def test_two_processes_train_as_one_with_their_rows(spec, target):
    train(spec("one"), target=target)
    run_two(spec("two", "batch=2"))
    torch.testing.assert_close(figures(spec("two"))[0], figures(spec("one"))[0])
    assert figures(spec("two"))[1] == figures(spec("one"))[1]
    torch.testing.assert_close(weights(spec("two")), weights(spec("one")), atol=1e-4, rtol=0)


def test_a_run_of_two_processes_is_resumed_by_two_and_by_one(spec, target):
    train(spec("one"), target=target)
    for output in ("two", "other"):
        run_two(spec(output, "batch=2", "steps=3"))
    run_two(spec("two", "batch=2"), resume=True)
    train(spec("other"), target=target, resume=True)
    for output in ("two", "other"):
        torch.testing.assert_close(figures(spec(output))[0], figures(spec("one"))[0])


@pytest.mark.parametrize("parts", [2, 4])
def test_batches_of_a_step_add_up(spec, target, parts):
    train(spec("one"), target=target)
    train(spec("parts", f"batch={4 // parts}", f"accumulate={parts}"), target=target)
    torch.testing.assert_close(figures(spec("parts"))[0], figures(spec("one"))[0])
    torch.testing.assert_close(weights(spec("parts")), weights(spec("one")), atol=1e-4, rtol=0)


def test_one_device_for_all_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(SpecError, match="cuda:1 would be the device of every process"):
        Processes.join("cuda:1")


def test_a_process_that_was_started_alone_is_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Processes.join("cpu") == Processes(1, 0)

"""Runs of several processes, and what they leave behind."""

import json
import multiprocessing
import os
import socket
from pathlib import Path

import torch

from eagle.testing import tiny_target
from eagle.train.run.run import train
from eagle.train.run.state import RunState

PATIENCE = 60  # seconds that processes may take

BASE = """
target: {dtype: float32}
data: {packed: text.npz, length: 32, heldout: 0.1}
loss: {levels: 2}
batch: 4
steps: 6
log_every: 1
save_every: 3
tensorboard: false
optimizer: {lr: 3.0e-3, schedule: constant, warmup: 0, ema: 0.9}
evaluation: {every: 3, heldout: 2, max_new_tokens: 6, trees: [{name: chain, depth: 2}], chain: 2}
"""


def figures(spec):
    text = (Path(spec.output) / "log.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    trained = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in trained] == list(range(1, len(trained) + 1))
    numbers = [[one["loss"], one["accuracy"], *one["accuracy_by_level"]] for one in trained]
    return torch.tensor(numbers), [one["tau"] for one in lines if one["kind"] == "evaluation"]


def checkpoint(spec):
    return RunState.load(Path(spec.output) / "checkpoint.pt")


def weights(spec):
    return torch.cat([tensor.flatten() for tensor in checkpoint(spec).head.values()])


def assert_same_run(one, other):
    """Compare two runs by losses, tau, weights and their moving average."""
    torch.testing.assert_close(figures(other)[0], figures(one)[0])
    assert figures(other)[1] == figures(one)[1]
    torch.testing.assert_close(weights(other), weights(one), atol=1e-4, rtol=0)
    mine, theirs = (checkpoint(spec).average for spec in (other, one))
    assert theirs, "nothing was averaged"
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)


def _be(rank, count, port, function, args):
    """Be one of several processes, as `torchrun` starts them."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    function(*args)


def run_together(function, *args, count=2, exits=(0, 0)):
    """Run a function of a module in several processes; an error in any of them is one here.

    *exits* are the exit codes that are right; None for a process that is killed at the end.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["eagle.train.run", "eagle_plugins", "transformers"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [
        context.Process(target=_be, args=(rank, count, port, function, args), daemon=True)
        for rank in range(count)
    ]
    for process in started:
        process.start()
    for process, code in zip(started, exits, strict=True):
        process.join(PATIENCE) if code is not None else process.kill()
    found = [process.exitcode for process in started]
    assert [None if code is None else own for own, code in zip(found, exits, strict=True)] == [
        *exits
    ]


def _train(spec, resume):
    outcome = train(spec, resume=resume, target=None if spec.target.spread else tiny_target())
    assert outcome.main == (os.environ["RANK"] == "0")


def run_two(spec, resume=False):
    """Train in two processes: the tiny target, or that of the spec if it is to be spread."""
    run_together(_train, spec, resume)

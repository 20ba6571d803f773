"""A target cut over two processes says what it says in one, and they part with one clear error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eagle import Decoder, DecoderSpec, Engine
from eagle.errors import PartedError, RequestError, SpecError, TargetError
from eagle.spec import load_spec
from eagle.target.together import Together, _difference
from eagle.testing import tiny_pair
from tests.train.together import run_together

PROMPTS = [[5, 9, 13, 17], list(range(3, 40)), [60, 3, 7, 10, 12]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    target, head = tiny_pair()
    folder = tmp_path_factory.mktemp("cut")
    target.model.save_pretrained(folder / "target")
    return folder / "target", head


def spec_of(pair, tree="static", **target):
    model, head = map(str, pair)
    trees = {
        "static": {"name": "static", "branching": [3, 2, 1]},
        "dynamic": {"name": "dynamic", "nodes": 12, "depth": 4, "top_k": 4},
    }
    return DecoderSpec(
        target={"model": model, "dtype": "float32", **target},
        head={"name": "eagle", "weights": head},
        tree=trees[tree],
    )


def answers(spec):
    decoder = Decoder.from_spec(spec)
    greedy = decoder.generate(PROMPTS, max_new_tokens=40, ignore_eos=True)
    sampled = decoder.generate(PROMPTS, max_new_tokens=40, temperature=0.9, seed=3, ignore_eos=True)
    found = [(r.tokens, r.stats.accepted_per_cycle) for r in (*greedy, *sampled)]
    return decoder, found


def _cut(specs, wanted):
    for spec, expected in zip(specs, wanted, strict=True):
        decoder, found = answers(spec)
        target = decoder.target
        assert target.kv_heads == 1
        assert target.model.model.layers[0].mlp.up_proj.weight.to_local().shape[0] == 64
        assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
        assert max(max(cycles) for _, cycles in found) > 2, "nothing was accepted"
        assert sum(len(cycles) for _, cycles in found) > 40
        with target.stock() as model, torch.no_grad():
            out = model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=20, do_sample=False)
        own = found[0][0][: out.shape[1] - len(PROMPTS[0])]
        assert out[0, len(PROMPTS[0]) :].tolist() == list(own)
    # Seeds that nobody gave are the first process's.
    free = decoder.generate(PROMPTS[0], max_new_tokens=8, temperature=1)
    seeds = target.together.share(free.seed)
    assert free.seed == seeds
    with pytest.raises(RequestError, match="one process"):
        Engine(decoder)
    _part(decoder)


def _part(decoder):
    """Let one process choose another token than the other: both notice in that cycle."""
    rank, batch = int(os.environ["RANK"]), decoder.loop
    run, passes = batch._compare, []

    def compare(outcomes):
        passes.append(outcomes)
        if rank == 1 and len(passes) == 3:
            outcomes = [[*outcomes[0][:2], outcomes[0][2] + 1, *outcomes[0][3:]], *outcomes[1:]]
        run(outcomes)

    batch._compare = compare
    with pytest.raises(PartedError, match="have parted in pass"):
        decoder.generate(PROMPTS[0], max_new_tokens=40, ignore_eos=True)
    assert len(passes) == 3
    batch._compare = run
    assert len(decoder.generate(PROMPTS[0], max_new_tokens=4, ignore_eos=True).tokens) == 4


def test_two_processes_say_what_one_says_and_notice_where_they_part(pair):
    wanted = [answers(spec_of(pair, tree))[1] for tree in ("static", "dynamic")]
    run_together(
        _cut, [spec_of(pair, tree, tp_plan="auto") for tree in ("static", "dynamic")], wanted
    )


def _mismatched(pair):
    rank = int(os.environ["RANK"])
    with pytest.raises(PartedError, match="process 1 has another spec than process 0: tree"):
        Decoder.from_spec(spec_of(pair, ["static", "dynamic"][rank], tp_plan="auto"))
    changed = {"generation_config": ["apply", "ignore"][rank]}
    with pytest.raises(PartedError, match=r"another target .*generation_config is 'ignore'"):
        Together.join().agree("target", spec_of(pair, **changed).target.model_dump())


def test_processes_of_different_specs_are_refused_in_all(pair):
    run_together(_mismatched, pair)


LOSES = """
import os, signal, sys
from eagle.cli import console
from tests.target.test_together import answers, spec_of
from eagle import Decoder
from eagle.target import together
how = sys.argv[3]
together._LOST = 3.0  # seconds without a beat; 20 by default
decoder = Decoder.from_spec(spec_of(sys.argv[1:3], tp_plan="auto"))
def command(**_):
    for number, event in enumerate(decoder.stream([5, 9, 13], max_new_tokens=400, ignore_eos=True)):
        if number == 3 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), getattr(signal, how))
command.main = command
sys.exit(console.run(command, []))
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_a_lost_process_ends_the_job_with_one_clear_error(pair, how):
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", LOSES, *map(str, pair), how],
            env=os.environ
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        _, said = started[0].communicate(timeout=90)
        assert started[0].returncode == 2, said
        errors = [line for line in said.splitlines() if line.startswith("error:")]
        assert len(errors) == 1, said
        assert "process 1 is lost, and with it a part of every layer" in errors[0]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_specs_that_cannot_be_cut_are_refused():
    with pytest.raises(SpecError, match=r"runtime.quantize should be left out"):
        load_spec("eagle", ["target.tp_plan=auto", "runtime.quantize=int8"])
    with pytest.raises(TargetError, match="one process for each device; start it with torchrun"):
        Decoder.from_spec("eagle", ["target.tp_plan=auto"])


def test_where_two_values_differ_is_said():
    one = {"target": {"model": "a", "dtype": "x"}, "tree": 1}
    assert _difference(one, one | {"tree": 2}) == "tree is 2, not 1"
    assert (
        _difference(one, {"target": {"model": "b"}, "tree": 1}) == "target.dtype is None, not 'x'"
    )

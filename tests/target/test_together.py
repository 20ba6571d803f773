"""A target cut over two processes says what it says in one, and they part with one clear error."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from eagle import Decoder, DecoderSpec, SamplingParams
from eagle.cli import console
from eagle.cli.generate import _with_seed as with_seed
from eagle.errors import PartedError, SpecError, TargetError
from eagle.spec import load_spec
from eagle.target import together
from eagle.target.together import Together, _difference
from eagle.testing import tiny_pair
from eagle_strategies.trees import best_first
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
        "best-first": {"name": "best-first", "least": 0.02, "extend": 0.05},
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
        assert target.model.model.layers[0].mlp.up_proj.weight.shape[0] == 64
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
    given = with_seed(decoder, SamplingParams(temperature=1))
    target.together.agree("seed", given.seed)
    assert given.seed is not None
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


def _other_size(pair):
    """Let one process find another size of a tree than the other: both notice before the pass."""
    decoder = Decoder.from_spec(spec_of(pair, "best-first", tp_plan="auto"))
    options = {"max_new_tokens": 30, "temperature": 0.9, "seed": 3, "ignore_eos": True}
    expected = decoder.generate(PROMPTS[0], **options).tokens
    found = best_first._most
    for what, deepest in (("extend", False), ("verify", True)):
        sizes = []

        def other(values, least, deepest=deepest, sizes=sizes):
            size = found(values, least)
            if (least == 0.02) == deepest:  # all nodes that are kept, or those that are extended
                sizes.append(size)
                if os.environ["RANK"] == "1" and len(sizes) == 3:
                    size += 1 if size < 2 else -1
            return size

        best_first._most = other
        began = time.monotonic()
        with pytest.raises(PartedError, match=rf"this one has \d+ nodes to {what}, another"):
            decoder.generate(PROMPTS[0], **options)
        assert time.monotonic() - began < 10
        assert len(sizes) == 3
        best_first._most = found
        assert decoder.generate(PROMPTS[0], **options).tokens == expected


def test_two_processes_notice_where_their_trees_are_of_different_sizes(pair):
    run_together(_other_size, pair)


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


def _lose(pair, how, path):
    """Lose one of two processes, in the middle of a text; the other one runs a command."""
    rank = os.environ["RANK"]
    os.dup2(os.open(f"{path}.{rank}", os.O_WRONLY | os.O_CREAT), 2)
    together._LOST = 3.0  # seconds without a beat; 20 by default
    decoder = Decoder.from_spec(spec_of(pair, tp_plan="auto"))

    def command(**_):
        stream = decoder.stream([5, 9, 13], max_new_tokens=400, ignore_eos=True)
        for number, _event in enumerate(stream):
            if number == 3 and rank == "1":
                os.kill(os.getpid(), how)

    command.main = command
    os._exit(console.run(command, []))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_process_ends_the_job_with_one_clear_error(pair, how, tmp_path):
    run_together(_lose, pair, how, tmp_path / "said", exits=(2, None))
    said = (tmp_path / "said.0").read_text()
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, said
    assert "process 1 is lost, and with it a part of every layer" in errors[0]
    assert together._LOST + 2 * together._BEAT < 30, "by default, too"


def _fail(pair, path):
    """Fail in one of two processes, before the first pass; the other one is in that pass."""
    rank = os.environ["RANK"]
    os.dup2(os.open(f"{path}.{rank}", os.O_WRONLY | os.O_CREAT), 2)
    together._LOST = 3.0
    decoder = Decoder.from_spec(spec_of(pair, tp_plan="auto"))

    def failing(*_args, **_options):
        raise RuntimeError("out of memory")

    def command(**_):
        if rank == "1":
            decoder._runtime.read = failing
        decoder.generate([5, 9, 13], max_new_tokens=4)

    command.main = command
    os._exit(console.run(command, []))


def test_a_prompt_that_one_process_cannot_read_ends_all_of_them(pair, tmp_path):
    """Going on with the next one would wait for processes that are in a pass without it."""
    run_together(_fail, pair, tmp_path / "said", exits=(2, 2))
    assert "process 1 is lost" in (tmp_path / "said.0").read_text()
    assert "out of memory" in (tmp_path / "said.1").read_text()


class _Kept:
    """Graphs, as far as leaving has to know them."""

    def __init__(self):
        self.held = True

    def release(self):
        self.held = False


def _leave(path, forgotten):
    """Leave where graphs hold NCCL's connections: it waits for all of them."""
    joined, graphs = Together.join(), _Kept()
    joined.hold(graphs)
    left, end = dist.destroy_process_group, time.monotonic() + 60

    def wait():
        while (graphs.held or forgotten) and time.monotonic() < end:
            time.sleep(0.01)
        left()

    dist.destroy_process_group = wait
    began = time.monotonic()
    joined.part()
    joined.part()
    path.with_suffix(f".{joined.rank}").write_text(f"{time.monotonic() - began} {graphs.held}")


@pytest.mark.parametrize("forgotten", [False, True])
def test_processes_leave_each_other_whatever_graphs_there_are(tmp_path, forgotten):
    run_together(_leave, tmp_path / "took", forgotten)
    for rank in range(2):
        took, held = (tmp_path / f"took.{rank}").read_text().split()
        assert held == "False"
        assert float(took) < (15 if forgotten else 4)


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

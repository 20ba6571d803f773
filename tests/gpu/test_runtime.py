"""Graphs and compiled phases say what eager cycles say, on the same uniforms, in flat memory."""

import pytest
import torch

from eagle.sampling import SamplingParams

PROMPTS = [[3, 4, 5, 6, 7], [10, 12, 14], [20, 23, 26, 29, 32, 35, 38], [5], [9, 9, 9, 9]]
TREES = {
    "static": {"name": "static", "branching": [3, 2, 1]},
    "top-k": {"name": "static", "branching": [3, 2], "sampling": "top-k"},
    "dynamic": {"name": "dynamic", "nodes": 12, "depth": 3, "top_k": 4},
}


@pytest.mark.parametrize("attention", ["sdpa", "triton"])
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("mode", ["graph", "compiled"])
def test_every_mode_says_the_same(make, mode, tree, attention):
    eager = make("eager", tree=TREES[tree], attention="sdpa")
    other = make(mode, tree=TREES[tree], attention=attention)
    for params in (
        SamplingParams(max_new_tokens=40, ignore_eos=True),
        SamplingParams(max_new_tokens=40, ignore_eos=True, temperature=1.0, seed=3),
        SamplingParams(max_new_tokens=40, ignore_eos=True, temperature=0.8, top_k=9, seed=5),
    ):
        for prompts in (PROMPTS[:1], PROMPTS[:3]):
            expected = eager.generate(prompts, params)
            found = other.generate(prompts, params)
            assert [r.tokens for r in found] == [r.tokens for r in expected]
            assert [r.stats.cycles for r in found] == [r.stats.cycles for r in expected]


def test_requests_of_all_kinds_share_graphs(make):
    params = [
        SamplingParams(max_new_tokens=n, temperature=t, seed=n)
        for n, t in ((7, 0.0), (31, 1.0), (3, 0.0), (50, 0.7), (12, 0.0))
    ]
    results = [
        make(mode, attention="sdpa").generate(PROMPTS, params) for mode in ("eager", "graph")
    ]
    assert [r.tokens for r in results[0]] == [r.tokens for r in results[1]]


@pytest.mark.parametrize("length", [1, 31, 32, 33, 128, 300])
def test_padded_prompts_are_read_right(make, length):
    prompt = [3 + (7 * place) % 60 for place in range(length)]
    eager, graph = (make(m).generate([prompt], max_new_tokens=20) for m in ("eager", "graph"))
    assert eager[0].tokens == graph[0].tokens


def test_prompts_of_several_pieces_are_read_right(make, monkeypatch):
    monkeypatch.setattr("eagle.cycle.PREFILL", 64)
    monkeypatch.setattr("eagle.runtime.PREFILL", 64)
    monkeypatch.setattr("eagle.runtime._PIECES", (16, 64))
    for length in (63, 64, 65, 128, 150):
        prompt = [3 + (7 * place) % 60 for place in range(length)]
        eager, graph = (make(m).generate([prompt], max_new_tokens=20) for m in ("eager", "graph"))
        assert eager[0].tokens == graph[0].tokens


def test_memory_stays_flat(make):
    decoder = make("graph", attention="sdpa")
    generator = torch.Generator().manual_seed(0)

    def some(count):
        for _ in range(count):
            length, new = torch.randint(1, 100, (2,), generator=generator).tolist()
            prompt = torch.randint(3, 64, (length,), generator=generator).tolist()
            decoder.generate(prompt, max_new_tokens=new, temperature=new % 2)

    some(20)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    some(2000)
    torch.cuda.synchronize()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before

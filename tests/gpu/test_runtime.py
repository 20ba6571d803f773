"""Graphs and compiled phases say what eager cycles say, on the same uniforms, in flat memory."""

import pytest
import torch

from eagle.plugin.sampling import SamplingParams

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
    monkeypatch.setattr("eagle.cycle.prompts.PREFILL", 64)
    monkeypatch.setattr("eagle.runtime.runtime.PREFILL", 64)
    monkeypatch.setattr("eagle.runtime.runtime.PIECES", (16, 64))
    for length in (63, 64, 65, 128, 150):
        prompt = [3 + (7 * place) % 60 for place in range(length)]
        eager, graph = (make(m).generate([prompt], max_new_tokens=20) for m in ("eager", "graph"))
        assert eager[0].tokens == graph[0].tokens


def many(count):
    """Return prompts of different lengths, and parameters of all kinds."""
    generator = torch.Generator().manual_seed(count)
    prompts = [
        torch.randint(3, 64, (1 + 37 * number % 150,), generator=generator).tolist()
        for number in range(count)
    ]
    params = [
        SamplingParams(max_new_tokens=5 + number % 17, temperature=number % 2 * 0.8, seed=number)
        for number in range(count)
    ]
    return prompts, params


@pytest.mark.parametrize("attention", ["sdpa", "triton"])
@pytest.mark.parametrize(("count", "max_batch"), [(12, 12), (40, 40), (40, 12)])
def test_a_large_batch_says_what_it_says_eagerly(make, attention, count, max_batch):
    prompts, params = many(count)
    eager = make("eager", max_batch, attention=attention).generate(prompts, params)
    graph = make("graph", max_batch, attention=attention).generate(prompts, params)
    assert [r.tokens for r in graph] == [r.tokens for r in eager]
    assert [r.stats.cycles for r in graph] == [r.stats.cycles for r in eager]


def test_graphs_are_few_however_many_slots_there_are(make):
    counts = []
    for max_batch in (2, 12, 40):
        decoder = make("graph", max_batch, attention="sdpa")
        for _ in range(2):
            decoder.generate(*many(40))
        keys = decoder._runtime._graphs._graphs
        widths = {key[1] for key in keys if key[0] == "cycle"}
        assert widths <= {1, 2, 4, 8, 16, 32, max_batch}
        counts.append(len({key if key[0] == "read" else (key[0], *key[2:]) for key in keys}))
    # At most pieces of two lengths for greedy and for sampled requests, and of a third for greedy
    # ones, as far as few are read at once; and cycles, of which greedy ones only occur where all
    # slots happen to be greedy, over some numbers of slots each.
    assert all(1 <= count <= 5 + 2 for count in counts)


def test_memory_of_a_large_batch_stays_flat(make, monkeypatch):
    monkeypatch.setattr("eagle.runtime.widths._WORTH", 1)  # all that is captured is at once
    decoder = make("graph", 12, attention="sdpa")
    prompts, params = many(40)

    def some(count):
        for _ in range(count):
            decoder.generate(prompts, params)
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    before = some(2)
    graphs = len(decoder._runtime._graphs)
    assert some(10) == before
    assert len(decoder._runtime._graphs) == graphs


def test_memory_stays_flat(make, monkeypatch):
    monkeypatch.setattr("eagle.runtime.widths._WORTH", 1)  # all that is captured is at once
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

"""Modes of execution, as far as a CPU can show them; tests/gpu has the rest."""

import functools
import logging
from types import SimpleNamespace

import pytest
import torch

from eagle.cache.store import BLOCK
from eagle.cycle import Cycle
from eagle.decoding.decoder import Decoder
from eagle.errors import IncompatibleError
from eagle.plugin.sampling import Sampling, SamplingParams
from eagle.runtime.widths import Widths
from eagle.spec import DecoderSpec
from eagle_plugins.attention.auto import Auto
from tests.caches import by_slot
from tests.contracts import toys
from tests.interpreted import INTERPRETED
from tests.interpreted import quick as quick

interpreted = pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled, for the GPU")
PROMPTS = [[3, 4, 5, 6, 7], [10, 12, 14]]


@pytest.fixture
def traced(monkeypatch):
    """Let phases be compiled as on a GPU, but only traced: generating code takes a minute."""
    monkeypatch.setattr("eagle.runtime.runtime._AHEAD", ())
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()


def said(caplog):
    """What the runtime logged."""
    return [r.getMessage() for r in caplog.records if r.name == "eagle.runtime"]


@pytest.mark.parametrize("sampling", ["top-k", "without-replacement"])
def test_every_phase_is_traced_whole_and_says_the_same(spec, pair, traced, caplog, sampling):
    tree = {"name": "static", "branching": [2, 2], "sampling": sampling}
    eager = Decoder.from_spec(spec(tree=tree), target=pair[0])
    compiled = Decoder.from_spec(spec(tree=tree, runtime={"compile": True}), target=pair[0])
    assert set(compiled._cycle.compiled) == {"draft", "verify", "accept", "commit"}
    with caplog.at_level(logging.WARNING, logger="eagle.runtime"):
        for temperature in (0.0, 1.0):
            params = SamplingParams(max_new_tokens=24, temperature=temperature, seed=1)
            expected = eager.generate(PROMPTS, params)
            found = compiled.generate(PROMPTS, params)
            assert [r.tokens for r in found] == [r.tokens for r in expected]
    assert said(caplog) == []
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 4


@interpreted
def test_packed_passes_of_any_size_are_compiled_once(spec, pair, traced, monkeypatch, caplog):
    eager = Decoder.from_spec(spec(attention="sdpa"), target=pair[0])
    made = spec(attention="triton", runtime={"compile": True, "max_batch": 4})
    decoder = Decoder.from_spec(made, target=pair[0])
    pack, calls = decoder._cycle.compiled["pack"], []

    def counted(cycle, *args):
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        found = pack(cycle, *args)
        calls.append(torch._dynamo.utils.counters["stats"]["unique_graphs"] - before)
        return found

    decoder._cycle.compiled = {"pack": counted}  # of the others, other tests have compiled enough
    monkeypatch.setattr("eagle.runtime.runtime._TOGETHER", {"cpu": 30})
    params = SamplingParams(max_new_tokens=1, ignore_eos=True, temperature=1.0, seed=1)
    for lengths in ((3, 4), (5, 2, 9), (6, 20, 3, 4), (2, 3)):
        prompts = [[3 + (5 * p + n) % 60 for p in range(n)] for n in lengths]
        expected = eager.generate(prompts, params)
        found = decoder.generate(prompts, params)
        assert [result.tokens for result in found] == [result.tokens for result in expected]
    assert said(caplog) == []
    assert calls[0] == 0, "eager at first"
    assert sum(calls) == 1
    assert len(calls) >= 4


@pytest.mark.parametrize("attention", ["auto", pytest.param("triton", marks=interpreted)])
def test_more_blocks_compile_nothing_anew(spec, pair, traced, monkeypatch, caplog, attention):
    monkeypatch.setattr(Auto, "paged", True)
    eager = Decoder.from_spec(spec(attention="sdpa"), target=pair[0])
    made = spec(attention=attention, runtime={"compile": True, "max_batch": 2})
    decoder = Decoder.from_spec(made, target=pair[0])
    params = SamplingParams(max_new_tokens=6, ignore_eos=True)
    expected = [result.tokens for result in eager.generate(PROMPTS, params)]
    graphs = []
    for least in (64, 64, 80, 96):  # a packed pass is compiled when it is there again
        monkeypatch.setattr("eagle.runtime.room._LEAST", least)
        decoder.loop.let_go()
        found = decoder.generate(PROMPTS, params)
        assert [result.tokens for result in found] == expected
        assert decoder._cycle.cache.store.stores[0].shape[1] == (1 + least) * BLOCK
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[1] == graphs[3], "a phase was compiled for each number of blocks"
    assert said(caplog) == []


def test_a_phase_that_cannot_be_compiled_runs_all_the_same(spec, pair, traced, monkeypatch, caplog):
    expected = Decoder.from_spec(spec(), target=pair[0]).generate(PROMPTS[0], max_new_tokens=12)
    decoder = Decoder.from_spec(spec(runtime={"compile": True}), target=pair[0])
    build = type(decoder.resolved.tree).build

    def reading(self, drafter, draws):
        if drafter.root.sum().item() < 0:
            raise AssertionError
        return build(self, drafter, draws)

    monkeypatch.setattr(type(decoder.resolved.tree), "build", reading)
    with caplog.at_level(logging.WARNING, logger="eagle.runtime"):
        assert decoder.generate(PROMPTS[0], max_new_tokens=12).tokens == expected.tokens
    (message,) = said(caplog)
    assert message.startswith("the phase draft runs uncompiled:")
    assert message.endswith(f"({type(decoder.resolved.head).__name__}, StaticTree)")


def test_a_kernel_too_large_for_the_device_costs_the_phase_its_compiling(
    spec, pair, traced, monkeypatch, caplog
):
    errors = pytest.importorskip("triton.runtime.errors")
    expected = Decoder.from_spec(spec(), target=pair[0]).generate(PROMPTS[0], max_new_tokens=12)
    decoder = Decoder.from_spec(spec(runtime={"compile": True}), target=pair[0])

    def launch(cycle, *args):
        raise errors.OutOfResources(163880, 101376, "shared memory")

    verify, accept = (decoder._cycle.compiled[name] for name in ("verify", "accept"))
    decoder._cycle.compiled = {"verify": verify, "accept": accept}  # the others are others' tests
    monkeypatch.setattr(verify, "_compiled", launch)
    with caplog.at_level(logging.WARNING, logger="eagle.runtime"):
        assert decoder.generate(PROMPTS[0], max_new_tokens=12).tokens == expected.tokens
    (message,) = said(caplog)
    assert message.startswith("the phase verify runs uncompiled: out of resource")


@pytest.mark.parametrize("length", [1, 5, 8])
def test_padding_behind_a_prompt_changes_nothing(spec, pair, length):
    prompt = [3 + 5 * place % 60 for place in range(length)]
    states = []
    for padding in (0, 8 - length):
        cycle = Decoder.from_spec(spec(), target=pair[0])._cycle
        slots = cycle.allocate(2, 64)
        tokens = torch.tensor([[*prompt, *[7] * padding, 0]])
        end = (Sampling.of([SamplingParams()], "cpu"), torch.zeros(1, 1, dtype=torch.float64))
        with torch.inference_mode():
            cycle.read(slots, tokens, torch.tensor([1, 0, length]), 64, end)
        states.append([t.clone() for t in slots.carried])
    for exact, padded in zip(*states, strict=True):
        torch.testing.assert_close(exact, padded)
    assert states[0][0].tolist() == [0, length]


def stores(cycle):
    """Return keys and values of target and head, ``[slots, kv_heads, rows, head_dim]`` each."""
    return [*by_slot(cycle.cache.store), *by_slot(cycle.head._cache)]


@pytest.mark.parametrize("attention", ["sdpa", pytest.param("triton", marks=interpreted)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_slot_of_several_reads_what_it_would_read_alone(
    spec, pair, monkeypatch, attention, temperature
):
    monkeypatch.setattr("eagle.cycle.prompts.PREFILL", 4)
    prompt = [3 + 5 * place % 60 for place in range(10)]
    sampling = Sampling.of([SamplingParams(temperature=temperature)], "cpu")
    uniform = torch.full((1, 1), 0.6, dtype=torch.float64)
    cycle = Decoder.from_spec(spec(attention=attention), target=pair[0])._cycle
    seen = []
    for count, slot in ((1, 0), (4, 0), (4, 2), (4, 3)):
        slots = cycle.allocate(count, 64)
        cycle.prefill(slots, slot, prompt, sampling, uniform)
        seen.append([tensor[slot].clone() for tensor in (*slots.carried, *stores(cycle))])
        others = [other for other in range(count) if other != slot]
        assert not any(tensor[others].any() for tensor in (*slots.carried, *stores(cycle)))
    for found in seen[1:]:
        for one, other in zip(found, seen[0], strict=True):
            torch.testing.assert_close(one, other)
    assert seen[0][0] == len(prompt)
    assert seen[0][3], "the slot is active"


class Replays:
    """Stands in for CUDA graphs: what was asked for first is what runs each time."""

    def __init__(self, device):
        self.work = {}

    def __contains__(self, key):
        return key in self.work

    def __len__(self):
        return len(self.work)

    def capture(self, key, work, carried):
        self.work[key] = work

    def replay(self, key):
        self.work[key]()


def test_graphs_of_one_slot_serve_every_slot(spec, pair, monkeypatch):
    monkeypatch.setattr("eagle.runtime.runtime.Graphs", Replays)
    prompts = [[3 + (7 * place + number) % 60 for place in range(1, 2 + 3 * number)]
               for number in range(40)]  # fmt: skip
    params = [
        SamplingParams(
            # Some end with their first token, so that a slot is free while others go on.
            max_new_tokens=9 + number % 5 if number % 3 else 1,
            temperature=number % 2,
            seed=number,
        )
        for number in range(40)
    ]
    expected = Decoder.from_spec(spec(), target=pair[0]).generate(prompts, params)
    keys = []
    # Prompts that are read together, or in pieces between cycles, are other work.
    monkeypatch.setattr(Auto, "packs", False)
    monkeypatch.setattr("eagle.runtime.runtime._TOGETHER", {"cpu": 10_000})
    for slots in (1, 4, 12, 40):
        decoder = Decoder.from_spec(spec(runtime={"max_batch": slots}), target=pair[0])
        decoder._runtime.graph = True
        found = decoder.generate(prompts, params)
        assert [result.tokens for result in found] == [result.tokens for result in expected]
        keys.append(set(decoder._runtime._graphs.work))
    reading = [{key for key in own if key[0] == "read"} for own in keys]
    assert all(own == reading[0] for own in reading)
    # Pieces of up to 32 and of up to 128 tokens, read by greedy and by sampled requests.
    assert len(reading[0]) == 4
    # Cycles over as many slots as are needed, and few different numbers of them.
    cycles = [{key for key in own if key[0] == "cycle"} for own in keys]
    assert {key[1] for key in cycles[0]} == {1}
    assert {key[1] for key in cycles[3]} <= {1, 2, 4, 8, 16, 32, 40}
    assert all(len({key[2:] for key in own}) <= 3 for own in cycles)


def test_each_shape_of_a_tree_that_varies_is_captured_once(pair, monkeypatch):
    captured = []

    class Counting(Replays):
        def capture(self, key, work, carried):
            captured.append(key)
            super().capture(key, work, carried)

    monkeypatch.setattr("eagle.runtime.runtime.Graphs", Counting)
    parts = {"head": "draft-model", "tree": "varying", "runtime": {"max_batch": 1}}
    decoder = Decoder.from_spec(DecoderSpec(**parts), registry=toys.registry(), target=pair[0])
    chosen = iter([0, 2, 1, 2, 0, 1] * 3)
    monkeypatch.setattr(decoder.resolved.tree, "choose", lambda seen: next(chosen))
    decoder._runtime.graph = True
    found = decoder.generate([3, 5, 7, 9], max_new_tokens=24, ignore_eos=True)
    cycles = [key for key in captured if key[0] == "cycle"]
    assert sorted(key[2] for key in cycles) == [0, 1, 2]
    assert found.stats.cycles > len(cycles)
    plain = Decoder.from_spec(DecoderSpec(head="none", tree="none"), target=pair[0])
    assert found.tokens == plain.generate([3, 5, 7, 9], max_new_tokens=24, ignore_eos=True).tokens


def test_few_prompts_are_read_by_graphs_and_many_together(spec, pair, monkeypatch):
    monkeypatch.setattr("eagle.runtime.runtime.Graphs", Replays)
    prompts = [
        [3 + (7 * place + number) % 60 for place in range(4 + number)] for number in range(9)
    ]
    params = [SamplingParams(max_new_tokens=6, temperature=n % 2, seed=n) for n in range(9)]
    together, read = [], Cycle.read_together

    def counted(self, slots, pieces, *others):
        together.append(len(pieces))
        return read(self, slots, pieces, *others)

    monkeypatch.setattr(Cycle, "read_together", counted)
    for count, packed in ((2, []), (6, []), (7, [7]), (9, [9])):
        asked = prompts[:count], params[:count]
        expected = Decoder.from_spec(spec(), target=pair[0]).generate(*asked)
        together.clear()
        decoder = Decoder.from_spec(spec(runtime={"max_batch": 9}), target=pair[0])
        decoder._runtime.graph = True
        found = decoder.generate(*asked)
        assert [result.tokens for result in found] == [result.tokens for result in expected]
        assert together == packed
    # A long prompt is as many passes as it has pieces.
    monkeypatch.setattr("eagle.runtime.runtime.PREFILL", 4)
    together.clear()
    decoder.generate(prompts[:4], params[:4])
    assert together == [4]


def test_fewer_slots_are_captured_once_they_were_worth_it(spec, pair, monkeypatch):
    runtime = Decoder.from_spec(spec(), target=pair[0])._runtime
    assert [runtime.width(needed, 40) for needed in (3, 1, 40)] == [3, 1, 40]
    monkeypatch.setattr(runtime, "graph", True)
    monkeypatch.setattr("eagle.runtime.widths._WORTH", 3)
    assert [runtime.width(needed, 40) for needed in (3, 1, 2, 1, 2)] == [4, 4, 4, 4, 4]
    assert [runtime.width(needed, 40) for needed in (1, 2, 1, 33, 34, 3)] == [1, 2, 1, 40, 40, 4]


def test_nobody_waits_for_the_code_of_one_slot_where_that_of_several_serves(
    spec, pair, monkeypatch
):
    runtime = Decoder.from_spec(spec(), target=pair[0])._runtime
    monkeypatch.setattr(runtime, "graph", True)
    monkeypatch.setattr(runtime, "compiled", True)
    monkeypatch.setattr("eagle.runtime.widths._WORTH", 3)
    assert [runtime.width(needed, 40) for needed in (3, 1, 1, 1, 1)] == [4] * 5
    assert [runtime.width(needed, 40) for needed in (2, 2, 2, 1)] == [4, 4, 2, 2]
    runtime._widths = Widths()
    assert [runtime.width(needed, 40) for needed in (1, 3, 1)] == [1, 4, 1], "it was made before"


def test_the_number_of_slots_follows_the_memory(spec, pair, monkeypatch):
    runtime = Decoder.from_spec(spec(), target=pair[0])._runtime
    assert runtime.limit(3, 4096) == 3
    assert runtime.limit("auto", 4096) == 8, "on a CPU"
    assert Decoder.from_spec(spec(runtime={"max_batch": "auto"}), target=pair[0]).max_batch == 8
    cuda = SimpleNamespace(type="cuda")
    block = runtime.cycle.block_bytes
    monkeypatch.setattr(type(runtime.cycle), "shares", True)
    monkeypatch.setattr(runtime.cycle.target, "device", cuda)
    for blocks, limit in ((0, 1), (170, 10), (17, 1), (10**6, 256)):
        monkeypatch.setattr(
            "eagle.runtime.room.free_memory", lambda _, n=blocks: n / 0.8 * block + 1
        )
        assert runtime.limit("auto", 4096) == limit
    assert runtime.room.most_blocks(5) == 10**6 + 5


def test_graphs_are_refused_where_there_is_no_gpu(spec, pair):
    with pytest.raises(IncompatibleError, match=r"runtime\.cuda_graph: CUDA graphs need a CUDA"):
        Decoder.from_spec(spec(runtime={"cuda_graph": True}), target=pair[0])


def test_compiled_phases_read_one_number_of_rows(spec, pair, traced, caplog):
    """Each number of rows would be compiled anew, as the text grows."""
    decoder = Decoder.from_spec(spec(runtime={"compile": True}), target=pair[0])
    torch._dynamo.utils.counters.clear()
    decoder.generate(PROMPTS[0], max_new_tokens=30, ignore_eos=True)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    decoder.generate(PROMPTS[0], max_new_tokens=150, ignore_eos=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert said(caplog) == []


def test_a_phase_compiled_too_often_runs_all_the_same(spec, pair, traced, monkeypatch, caplog):
    expected = Decoder.from_spec(spec(), target=pair[0]).generate(PROMPTS[0], max_new_tokens=12)
    decoder = Decoder.from_spec(spec(runtime={"compile": True}), target=pair[0])
    decoder._cycle.compiled = {name: decoder._cycle.compiled[name] for name in ("draft", "accept")}
    limited = functools.partial(torch._dynamo.config.patch, recompile_limit=1)
    monkeypatch.setattr("eagle.runtime.compiling._many_shapes", limited)
    for temperature in (1.0, 0.0):
        found = decoder.generate(PROMPTS[0], max_new_tokens=12, temperature=temperature)
    assert found.tokens == expected.tokens
    messages = [message.partition(":")[0] for message in said(caplog)]
    assert "the phase accept runs uncompiled" in messages
    assert len(messages) == len(set(messages)), "each is said once"


def test_a_first_call_in_inference_mode_binds_no_later_one(spec, pair):
    decoder = Decoder.from_spec(spec(), target=pair[0])
    with torch.inference_mode():
        first = decoder.generate(PROMPTS[0], max_new_tokens=12)
    assert decoder.generate(PROMPTS[0], max_new_tokens=12).tokens == first.tokens

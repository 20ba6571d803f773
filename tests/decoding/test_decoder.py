"""The loop as a user sees it: what is generated, when it ends, and what is refused."""

import numpy as np
import pytest
import torch

from eagle import Decoder, SamplingParams
from eagle.errors import NumericalError, PluginError, RequestError, SpecError, TargetError
from eagle.plugin.registry import Registry
from eagle.plugin.roles import Strategy
from eagle.plugin.sampling import derived_seed
from eagle.testing import contracts
from eagle_plugins.trees.chain import CHAIN, ChainConfig
from tests.fakes import plugin
from tests.target.test_target import reference

PROMPTS = [[5, 6, 7], [10, 12, 14, 16, 18], [40, 43], [9, 11], list(range(3, 63))]
TREES = [
    {"name": "static", "branching": [3, 2, 1]},
    {"name": "static", "tree": "reference-25"},
    {"name": "chain", "depth": 4},
    {"name": "dynamic", "nodes": 20, "depth": 5, "top_k": 4},
]


@pytest.fixture(scope="module")
def decoder(spec, pair):
    return Decoder.from_spec(spec(), target=pair[0])


@pytest.mark.parametrize("tree", TREES, ids=["branching", "reference", "chain", "dynamic"])
def test_greedy_tokens_are_those_of_transformers(tree, spec, pair):
    decoder = Decoder.from_spec(spec(tree=tree), target=pair[0])
    for prompt in PROMPTS:
        result = decoder.generate(prompt, max_new_tokens=60, ignore_eos=True)
        assert result.tokens == reference(pair[0], prompt, 60)
        assert result.stats.tau > 2, "the pair's head is good; a lower tau is a bug"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("max_batch", [1, 2, 8])
def test_a_prompt_in_a_batch_gives_what_it_gives_alone(temperature, max_batch, spec, pair):
    runtime = {"max_batch": max_batch}
    decoder = Decoder.from_spec(spec(runtime=runtime), target=pair[0])
    params = [
        SamplingParams(
            temperature=temperature, seed=seed, max_new_tokens=20 + 9 * seed, ignore_eos=True
        )
        for seed in range(len(PROMPTS))
    ]
    together = decoder.generate(PROMPTS, params)
    for prompt, own, result in zip(PROMPTS, params, together, strict=True):
        assert result.tokens == decoder.generate(prompt, own).tokens
        assert len(result.tokens) == own.max_new_tokens


def test_greedy_and_sampled_requests_share_a_batch(decoder):
    params = [
        SamplingParams(temperature=t, seed=3, max_new_tokens=30, ignore_eos=True)
        for t in (0.0, 1.0, 0.0, 0.7, 1.5)
    ]
    for prompt, own, result in zip(PROMPTS, params, decoder.generate(PROMPTS, params), strict=True):
        assert result.tokens == decoder.generate(prompt, own).tokens


def test_the_seed_decides(decoder):
    def run(seed):
        return decoder.generate(
            PROMPTS[0], temperature=1.0, seed=seed, max_new_tokens=40, ignore_eos=True
        ).tokens

    assert run(1) == run(1)
    assert run(1) != run(2)


@pytest.mark.parametrize("count", range(1, 12))
def test_max_new_tokens_is_kept_to_the_token(decoder, count):
    result = decoder.generate(PROMPTS[0], max_new_tokens=count, ignore_eos=True)
    whole = decoder.generate(PROMPTS[0], max_new_tokens=40, ignore_eos=True)
    assert result.tokens == whole.tokens[:count]
    assert result.finish_reason == "length"
    assert result.stats.new_tokens == 1 + sum(result.stats.accepted_per_cycle)


def test_an_end_of_text_token_inside_an_accepted_path_ends_the_text_there(decoder, monkeypatch):
    whole = decoder.generate(PROMPTS[0], max_new_tokens=40, ignore_eos=True)
    sizes = whole.stats.accepted_per_cycle
    for position in range(2, 12):
        token = whole.tokens[position]
        if token in whole.tokens[:position]:
            continue
        config = decoder.target.model.generation_config
        monkeypatch.setattr(config, "eos_token_id", [token])
        result = decoder.generate(PROMPTS[0], max_new_tokens=40)
        assert result.tokens == whole.tokens[: position + 1]
        assert result.finish_reason == "stop"
    assert max(sizes) > 1


def test_events_add_up_to_the_result(decoder):
    events = list(decoder.stream(PROMPTS, max_new_tokens=25, ignore_eos=True))
    for index, prompt in enumerate(PROMPTS):
        own = [event for event in events if event.index == index]
        tokens = tuple(token for event in own for token in event.tokens)
        assert tokens == own[-1].result.tokens
        assert tokens == decoder.generate(prompt, max_new_tokens=25, ignore_eos=True).tokens
        assert [e.finish_reason for e in own] == [None] * (len(own) - 1) + ["length"]


def test_prompts_that_are_asked_for_while_others_are_answered_are_answered_as_alone(decoder):
    own = SamplingParams(max_new_tokens=9, ignore_eos=True)
    left, under_way, found = list(PROMPTS), [], {}

    def more(count):
        under_way.append(count)
        return [(left.pop(0), own)] if left and count < 2 else []

    for event in decoder.flow(more):
        found.setdefault(event.index, []).extend(event.tokens)
    assert [tuple(found[i]) for i in range(len(PROMPTS))] == [
        decoder.generate(prompt, own).tokens for prompt in PROMPTS
    ]
    assert max(under_way) == 2
    assert list(decoder.flow(lambda count: [])) == []


def test_a_flow_that_is_left_cancels_what_is_under_way(decoder):
    given = [[(prompt, SamplingParams(max_new_tokens=30, ignore_eos=True)) for prompt in PROMPTS]]
    events = decoder.flow(lambda count: given.pop() if given else [])
    next(events)
    events.close()
    assert not decoder.loop.busy


def test_an_abandoned_stream_leaves_nothing_behind(decoder):
    next(decoder.stream(PROMPTS, max_new_tokens=25, ignore_eos=True))
    again = decoder.generate(PROMPTS[:2], max_new_tokens=25, ignore_eos=True)
    for prompt, result in zip(PROMPTS, again, strict=False):
        assert result.tokens == reference(decoder.target, prompt, 25)


def test_a_stream_goes_on_behind_another_call(decoder):
    stream = decoder.stream(PROMPTS[0], max_new_tokens=25, ignore_eos=True)
    tokens = [*next(stream).tokens]
    between = decoder.generate(PROMPTS[1], max_new_tokens=5, ignore_eos=True)
    assert between.tokens == reference(decoder.target, PROMPTS[1], 5)
    for event in stream:
        tokens += event.tokens
    assert tuple(tokens) == reference(decoder.target, PROMPTS[0], 25)


def test_streams_in_turn_are_both_served_right(decoder):
    params = [
        SamplingParams(temperature=1, seed=s, max_new_tokens=20, ignore_eos=True) for s in (1, 2)
    ]
    alone = [r.tokens for r in decoder.generate(PROMPTS[:2], params)]
    first = decoder.stream(PROMPTS[2:4], max_new_tokens=25, ignore_eos=True)
    others = [next(first)]
    second = decoder.stream(PROMPTS[:2], params)
    events = [next(second) for _ in range(4)]
    others += [next(first) for _ in range(3)]
    events += [next(second)]
    others += first
    found = {event.index: event.result.tokens for event in others if event.result}
    for index, prompt in enumerate(PROMPTS[2:4]):
        assert found[index] == reference(decoder.target, prompt, 25)
    events += second
    assert [e.result.tokens for e in sorted(events, key=lambda e: e.index) if e.result] == alone


def test_a_long_prompt_is_read_in_chunks(decoder, monkeypatch):
    prompt = [3 + i % 61 for i in range(130)]
    whole = decoder.generate(prompt, max_new_tokens=12, ignore_eos=True)
    for chunk in (64, 65, 129):
        monkeypatch.setattr("eagle.cycle.prompts.PREFILL", chunk)
        assert decoder.generate(prompt, max_new_tokens=12, ignore_eos=True).tokens == whole.tokens


def test_the_answer_ends_where_the_capacity_does(spec, pair):
    decoder = Decoder.from_spec(spec(runtime={"max_length": 20}), target=pair[0])
    result = decoder.generate(PROMPTS[0], max_new_tokens=100, ignore_eos=True)
    assert len(result.tokens) == 17
    assert result.finish_reason == "length"
    with pytest.raises(RequestError, match=r"prompt 1 has 60 tokens.*holds 20"):
        decoder.generate(PROMPTS[4])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "no prompt"),
        ("", "empty"),
        ([[]], "empty"),
        ([3, 99], "token id 99"),
        ("words", "no tokenizer"),
        (None, "list of token ids.* not NoneType"),
        ([None], "list of token ids.* not NoneType"),
        (b"words", "list of token ids.* not bytes"),
        (torch.tensor([0.5, 1.5]), "no tokenizer|list of token ids"),
        ([{"role": "user", "content": "hi"}], "no tokenizer"),
    ],
)
def test_refuses_a_prompt_that_cannot_be_answered(decoder, prompt, message):
    with pytest.raises(RequestError, match=message):
        decoder.generate(prompt)


@pytest.mark.parametrize("of", [torch.tensor, np.array, lambda ids: [np.int64(i) for i in ids]])
def test_token_ids_may_be_a_tensor_or_an_array(of, decoder):
    expected = decoder.generate(PROMPTS[0], max_new_tokens=5)
    assert decoder.generate(of(PROMPTS[0]), max_new_tokens=5).tokens == expected.tokens
    assert decoder.generate([of(PROMPTS[0])] * 2, max_new_tokens=5)[1].tokens == expected.tokens


def test_refuses_wrong_parameters_before_the_first_event(decoder):
    with pytest.raises(RequestError, match="temperature"):
        decoder.stream(PROMPTS[0], temperature=-1)
    with pytest.raises(RequestError, match="temperature"):
        decoder.generate(PROMPTS[0], temperature=1e39)  # infinite in float32
    with pytest.raises(RequestError, match="top_k"):
        decoder.generate(PROMPTS[0], top_k=2**63)
    with pytest.raises(RequestError, match=r"2 sampling parameters.*3 prompts"):
        decoder.generate(PROMPTS[:3], [SamplingParams()] * 2)
    with pytest.raises(RequestError, match="stop strings need a tokenizer"):
        decoder.generate(PROMPTS[0], stop=["x"])


def test_nan_stops_with_an_error_and_not_with_text(spec, pair):
    target, _ = pair
    decoder = Decoder.from_spec(spec(), target=target)
    weight = target.model.lm_head.weight
    before = weight.clone()
    try:
        weight[7] = torch.nan
        for temperature in (0.0, 1.0):
            with pytest.raises(
                NumericalError, match="target produced NaN or infinity after 0 tokens"
            ):
                decoder.generate(PROMPTS[0], temperature=temperature)
    finally:
        weight.copy_(before)


@pytest.fixture
def poisoned(pair):
    """A token that makes the target produce NaN."""
    row = pair[0].model.get_input_embeddings().weight[50]
    kept = row.clone()
    row.fill_(torch.nan)
    yield 50
    row.copy_(kept)


def test_a_prompt_that_fails_costs_no_finished_one_its_result(spec, pair, poisoned):
    decoder = Decoder.from_spec(spec(runtime={"max_batch": 2}), target=pair[0])
    alone = decoder.generate(PROMPTS[0], max_new_tokens=8, ignore_eos=True)
    with pytest.raises(NumericalError) as caught:
        decoder.generate(
            [PROMPTS[0], PROMPTS[1], [poisoned], PROMPTS[3]], max_new_tokens=8, ignore_eos=True
        )
    assert 0 in caught.value.results
    assert set(caught.value.results) <= {0, 1}
    assert caught.value.results[0].tokens == alone.tokens
    assert not NumericalError("another").results


def test_a_result_of_the_cycle_in_which_another_prompt_fails_is_kept(decoder):
    def forbid(ids, scores):
        return torch.full_like(scores, -torch.inf) if ids.shape[1] > len(PROMPTS[0]) else scores

    params = [SamplingParams(max_new_tokens=count, ignore_eos=True) for count in (9, 2)]
    with pytest.raises(NumericalError, match="after 1 tokens of prompt 1 ") as caught:
        decoder.generate(PROMPTS[:2], params, processors=[[forbid], None])
    assert list(caught.value.results) == [1]
    assert caught.value.results[1].tokens == decoder.generate(PROMPTS[1], params[1]).tokens


def test_a_prompt_that_cannot_be_read_costs_no_answer_of_those_before_it(decoder):
    def fail(ids, scores):
        raise ZeroDivisionError("by a bug")

    params = [SamplingParams(max_new_tokens=count, ignore_eos=True) for count in (1, 5, 1)]
    with pytest.raises(RequestError, match="ZeroDivisionError: by a bug") as caught:
        decoder.generate(PROMPTS[:3], params, processors=[None, [fail], None])
    assert list(caught.value.results) == [0]
    assert caught.value.results[0].tokens == decoder.generate(PROMPTS[0], params[0]).tokens


def test_a_prompt_of_nan_costs_no_answer_of_those_read_with_it(decoder, poisoned):
    params = [SamplingParams(max_new_tokens=count, ignore_eos=True) for count in (5, 1)]
    with pytest.raises(NumericalError, match="after 0 tokens of prompt 1;") as caught:
        decoder.generate([[poisoned], PROMPTS[1]], params)
    assert list(caught.value.results) == [1]


def test_waiting_prompts_are_read_in_one_pass_and_answered_in_the_order_of_slots(
    spec, pair, monkeypatch
):
    decoder = Decoder.from_spec(spec(runtime={"max_batch": 3}), target=pair[0])
    steps, runtime = [], decoder._runtime

    def note(name, original):
        def noted(*args, **options):
            steps.append(name)
            original(*args, **options)

        monkeypatch.setattr(runtime, name, noted)

    note("read", runtime.read)
    note("run", runtime.run)
    stream = decoder.stream(PROMPTS, max_new_tokens=3, ignore_eos=True)
    steps.extend(event.index for event in stream)
    assert steps[:5] == ["read", 0, 1, 2, "run"]
    assert steps.count("read") == 2
    second = steps.index("read", 5)
    assert steps[second : second + 3] == ["read", 3, 4]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_infinite_logits_are_an_error_too(temperature, spec, pair):
    decoder = Decoder.from_spec(spec(), target=pair[0])
    hook = pair[0].model.lm_head.register_forward_hook(
        lambda module, args, out: out.index_fill(-1, torch.tensor([7]), torch.inf)
    )
    try:
        with pytest.raises(NumericalError, match="infinity"):
            decoder.generate(PROMPTS[0], temperature=temperature)
    finally:
        hook.remove()


def test_a_decoder_works_again_after_nan(spec, pair):
    target, _ = pair
    decoder = Decoder.from_spec(spec(), target=target)
    before = decoder.generate(PROMPTS[0], max_new_tokens=20, ignore_eos=True).tokens
    row = target.model.get_input_embeddings().weight[50]
    kept = row.clone()
    row.fill_(torch.nan)
    with pytest.raises(NumericalError):
        decoder.generate([50] * 40)
    row.copy_(kept)
    assert decoder.generate(PROMPTS[0], max_new_tokens=20, ignore_eos=True).tokens == before


def test_nan_in_the_head_is_an_error_too(spec, pair):
    decoder = Decoder.from_spec(spec(), target=pair[0])
    decoder.resolved.head.module.fc.weight[0, 0] = torch.nan
    with pytest.raises(NumericalError, match="draft head produced NaN or infinity"):
        decoder.generate(PROMPTS[0], temperature=1.0)


def test_an_exception_in_a_cycle_names_the_plug_in(spec, pair, monkeypatch):
    decoder = Decoder.from_spec(spec(), target=pair[0])

    def fail(self, drafter, draws):
        raise ZeroDivisionError("by a bug")

    monkeypatch.setattr(type(decoder.resolved.tree), "build", fail)
    with pytest.raises(PluginError, match=r"tree builder 'static'.*ZeroDivisionError: by a bug"):
        decoder.generate(PROMPTS[0])
    with pytest.raises(PluginError) as caught:
        decoder.generate([PROMPTS[0], [3, 4]], [SamplingParams(max_new_tokens=n) for n in (1, 9)])
    assert list(caught.value.results) == [0], "it needed no cycle"


def test_what_a_plug_in_returns_wrongly_is_put_down_to_it(spec, pair):
    class Empty:
        def __init__(self, config, context):
            self._tree = CHAIN.build(config, context)

        def __getattr__(self, name):
            return getattr(self._tree, name)

        def build(self, drafter, draws):
            return None

    registry = Registry.discover()
    odd = Strategy("odd", ChainConfig, Empty, "gives no tree")
    registry.register(plugin(tree=[odd]), "odd", "odd-trees", "0.1")
    decoder = Decoder.from_spec(spec(tree="odd"), target=pair[0], registry=registry)
    message = r"NoneType.*tree builder 'odd' \(odd-trees 0.1\)"
    with pytest.raises(PluginError, match=message) as caught:
        decoder.generate(PROMPTS[0])
    assert "check_tree_builder" in str(caught.value)
    assert callable(contracts.check_tree_builder)


def test_a_cycle_reads_nothing_from_the_device(spec, pair, monkeypatch):
    """The contract that lets a cycle be captured as one CUDA graph."""
    decoder = Decoder.from_spec(spec(), target=pair[0])
    decoder.generate(PROMPTS[:2], max_new_tokens=4, ignore_eos=True)

    def forbidden(self, *args, **kwargs):
        raise AssertionError("a device value was read on the host inside a cycle")

    run = decoder._cycle.run

    def guarded(*args, **options):
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "cpu"):
                patch.setattr(torch.Tensor, name, forbidden)
            patch.setattr(torch.Tensor, "nonzero", forbidden)
            run(*args, **options)

    monkeypatch.setattr(decoder._cycle, "run", guarded)
    for temperature in (0.0, 1.0):
        decoder.generate(PROMPTS[:2], max_new_tokens=20, temperature=temperature, ignore_eos=True)


def test_slots_stay_at_their_addresses(decoder):
    decoder.generate(PROMPTS[0], max_new_tokens=4, ignore_eos=True)
    before = addresses(decoder.loop.seats.slots)
    decoder.generate(PROMPTS[1], max_new_tokens=4, ignore_eos=True)
    assert before == addresses(decoder.loop.seats.slots)
    assert len(before) == 11


def addresses(slots):
    """Return where the tensors of slots are, their sampling parameters included."""
    held = vars(slots) | vars(slots.sampling)
    return {name: t.data_ptr() for name, t in held.items() if isinstance(t, torch.Tensor)}


def test_without_a_seed_every_answer_has_its_own_and_says_which(decoder):
    options = {"temperature": 1.0, "max_new_tokens": 30, "ignore_eos": True}
    results = decoder.generate([PROMPTS[0]] * 4, **options)
    results += decoder.generate([PROMPTS[0]] * 2, SamplingParams(**options))
    assert len({r.tokens for r in results}) == len({r.seed for r in results}) == 6
    for result in results:
        again = decoder.generate(PROMPTS[0], seed=result.seed, **options)
        assert (again.tokens, again.seed) == (result.tokens, result.seed)


def test_one_seed_for_several_prompts_is_the_firsts_and_others_derive_theirs(decoder):
    options = {"temperature": 1.0, "max_new_tokens": 30, "ignore_eos": True}
    results = decoder.generate([PROMPTS[0]] * 3, seed=7, **options)
    assert [r.seed for r in results] == [derived_seed(7, index) for index in range(3)]
    assert [r.tokens for r in results] == [
        r.tokens for r in decoder.generate([PROMPTS[0]] * 3, seed=7, **options)
    ]
    assert len({r.tokens for r in results}) == 3
    assert results[0].tokens == decoder.generate(PROMPTS[0], seed=7, **options).tokens
    for result in results:
        alone = decoder.generate(PROMPTS[0], seed=result.seed, **options)
        assert alone.tokens == result.tokens


def test_seeds_of_parameters_for_each_prompt_are_taken_as_they_are(decoder):
    options = {"temperature": 1.0, "max_new_tokens": 30, "ignore_eos": True}
    params = [SamplingParams(seed=seed, **options) for seed in (7, 7, None)]
    first, second, third = decoder.generate([PROMPTS[0]] * 3, params)
    assert first.tokens == second.tokens != third.tokens
    assert (first.seed, second.seed) == (7, 7)
    assert third.seed != 7


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": 1}, r"params are a SamplingParams or a list of them, not dict; .*by name"),
        ("hot", "not str"),
        ((SamplingParams() for _ in range(1)), "not generator"),
        ([None], "the parameters of prompt 1 are NoneType"),
        ([{"temperature": 1}], "the parameters of prompt 1 are dict"),
        (1.0, "not float"),
    ],
)
def test_refuses_what_are_no_parameters(decoder, params, message):
    with pytest.raises(RequestError, match=message):
        decoder.generate(PROMPTS[0], params)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (bytearray(b"words"), "not bytearray; decode it first"),
        (memoryview(b"words"), "not memoryview"),
        ([bytearray(b"words")], "not bytearray"),
        ([True, False], "True or False"),
        (torch.tensor([True, False]), "True or False"),
        (torch.empty(3, dtype=torch.int64, device="meta"), "Tensor without values"),
        ({"role": "user", "content": "hi"}, "not dict"),
        ((i for i in PROMPTS), "not generator"),
    ],
)
def test_refuses_what_looks_like_a_prompt(decoder, prompt, message):
    with pytest.raises(RequestError, match=message):
        decoder.generate(prompt)


def test_refuses_parameters_given_in_two_ways(decoder):
    with pytest.raises(RequestError, match="either params or temperature, not both"):
        decoder.generate(PROMPTS[0], SamplingParams(), temperature=1)


def test_refuses_what_a_decoder_cannot_be_made_of(spec, pair):
    with pytest.raises(TargetError, match=r"not a LlamaForCausalLM;.*Target\(model, tokenizer"):
        Decoder.from_spec(spec(), target=pair[0].model)
    with pytest.raises(PluginError, match="registry should be a Registry, not a dict"):
        Decoder.from_spec(spec(), registry={}, target=pair[0])
    with pytest.raises(SpecError, match="a DecoderSpec is complete"):
        Decoder.from_spec(spec(), ["tree=chain"], target=pair[0])
    with pytest.raises(TargetError, match=r"target.model: 'x+ \.\.\. x+' is too long for a path"):
        Decoder.from_spec("eagle", ["target.model=" + "x" * 5000])

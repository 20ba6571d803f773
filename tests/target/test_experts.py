"""Experts through the kernels of few rows: the same tokens, and only where they may be used."""

import logging
from collections import Counter

import pytest
import torch
from torch import nn

from eagle import Decoder, DecoderSpec
from eagle.kernels import MAX_ROWS, experts, mixture
from eagle.plugin import SamplingParams
from eagle.runtime.compiling import compiled_phases
from eagle.target import Target
from eagle.target import experts as module
from eagle.target.experts import EXPERTS, Experts, differ, mixture_by_rows, plain
from eagle.testing import assert_decoder_lossless, tiny_head, tiny_target
from tests.interpreted import DEVICE, INTERPRETED
from tests.interpreted import quick as quick
from tests.target.test_target import PROMPT, reference

KINDS = ["mixtral", "qwen3-moe"]

interpreted = pytest.mark.skipif(not INTERPRETED, reason="Triton is not interpreted")
on_gpu = pytest.mark.skipif(
    DEVICE != "cuda" or torch.cuda.get_device_capability() < (9, 0), reason="no GPU with kernels"
)


@pytest.fixture
def anywhere(monkeypatch):
    """Serve experts on a CPU too, and hold the kernels against operators with few rows."""
    monkeypatch.setattr(module, "mixes", experts.fits)
    monkeypatch.setattr(module, "_ROWS", (1, 3))


@pytest.fixture
def by_operators(monkeypatch):
    """Let operators do what kernels do, where it is what is called that is looked at."""
    monkeypatch.setattr(experts, "made", lambda *args: experts.mixture_by_operators(*args[:-1]))


@pytest.fixture
def used(monkeypatch):
    """Count the rows that go through the kernels and through transformers' own."""
    found, own = Counter(), module._own()

    def ours(x, *args):
        found["ours", len(x)] += 1
        return mixture(x, *args)

    def theirs(each, x, *args):
        found["theirs", len(x)] += 1
        return own(each, x, *args)

    monkeypatch.setattr(module, "mixture", ours)
    monkeypatch.setitem(module.moe.ALL_EXPERTS_FUNCTIONS, "grouped_mm", theirs)
    return found


def mixture_of(target):
    return target.layers[0].mlp.experts


@interpreted
@pytest.mark.parametrize("kind", KINDS)
def test_a_target_says_what_it_says_without_the_kernels(kind, anywhere, used, tmp_path):
    target = tiny_target(kind, num_hidden_layers=1)
    assert target.experts.served
    tiny_head(target).save(tmp_path)
    spec = DecoderSpec(
        head={"name": "eagle", "weights": str(tmp_path)},
        tree={"name": "static", "branching": [40]},
    )
    decoder = Decoder.from_spec(spec, target=target)
    used.clear()
    answer = decoder.generate(PROMPT, max_new_tokens=6, ignore_eos=True)
    assert answer.stats.tau > 1, "nothing was accepted, so acceptance was not tested"
    assert used["ours", 41] == target.info.layers * answer.stats.cycles
    assert not any(rows <= MAX_ROWS for who, rows in used if who == "theirs")
    used.clear()
    assert answer.tokens == reference(target, PROMPT, 6)
    assert used
    assert all(who == "theirs" for who, _ in used), "stock passes are transformers'"
    assert target.model.config._experts_implementation == EXPERTS


@interpreted
def test_what_is_sampled_has_the_targets_distribution(anywhere):
    target = tiny_target("mixtral", vocab_size=4, num_hidden_layers=1, eos_token_id=None)
    plain_spec = DecoderSpec(head="none", tree="none", runtime={"max_batch": 16, "max_length": 16})
    decoder = Decoder.from_spec(plain_spec, target=target)
    assert_decoder_lossless(
        decoder, [[1, 2]], SamplingParams(temperature=0.8), tokens=2, slots=16, tolerance=1e-5
    )


def test_on_a_cpu_transformers_own_stay(used):
    target = tiny_target("mixtral")
    assert not target.experts.served
    decoder = Decoder.from_spec(DecoderSpec(head="none", tree="none"), target=target)
    decoder.generate(PROMPT, max_new_tokens=3, ignore_eos=True)
    assert {who for who, _ in used} == {"theirs"}
    assert target.model.config._experts_implementation == "grouped_mm"


def test_many_rows_are_left_to_transformers(anywhere, by_operators, used):
    each = mixture_of(tiny_target("mixtral"))
    used.clear()
    generator = torch.Generator().manual_seed(0)
    for rows in (1, MAX_ROWS, MAX_ROWS + 1):
        x = torch.randn(rows, 32, generator=generator)
        scores, ids = torch.rand(rows, 4, generator=generator).topk(2)
        each.config._experts_implementation = EXPERTS
        found = each(x, ids, scores)
        by_rows = mixture_by_rows(x, ids, scores, each.gate_up_proj, each.down_proj)
        each.config._experts_implementation = "eager"
        expected = each(x, ids, scores)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(by_rows, expected, rtol=1e-4, atol=1e-5)
    assert used == {("ours", 1): 2, ("ours", MAX_ROWS): 2, ("theirs", MAX_ROWS + 1): 2}


def test_rows_that_gradients_flow_through_are_left_to_transformers(anywhere, by_operators, used):
    each = mixture_of(tiny_target("mixtral"))
    used.clear()
    each.config._experts_implementation = EXPERTS
    x = torch.randn(3, 32, requires_grad=True)
    each(x, torch.tensor([[0, 1]] * 3), torch.rand(3, 2)).sum().backward()
    assert x.grad.abs().sum() > 0
    assert used == {("theirs", 3): 1}


def test_code_for_any_number_of_rows_is_compiled_once(anywhere, by_operators):
    each = mixture_of(tiny_target("mixtral"))
    each.config._experts_implementation = EXPERTS
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def call(x, ids, scores):
        return each(x, ids, scores)

    code = torch.compile(call, fullgraph=True, dynamic=False, backend=backend)
    for rows in (80, 5, MAX_ROWS, MAX_ROWS + 1):
        given = torch.randn(rows, 32), *torch.rand(rows, 4).topk(2)[::-1]
        for tensor in given:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        with torch.inference_mode():
            torch.testing.assert_close(code(*given), each(*given), rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1


@pytest.mark.parametrize("operator", [torch.ops.eagle.mixture, torch.ops.eagle.mixture_by_rows])
def test_operators_are_described_to_compilers(operator, by_operators):
    x, ids, weights = torch.rand(3, 16), torch.tensor([[0, 2]] * 3), torch.rand(3, 2)
    args = x, ids, weights, torch.rand(4, 16, 16), torch.rand(4, 16, 8)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(operator.default, args, test_utils=checks)


def _unlike(name):
    def change(each):
        setattr(each, name, True)

    return change


def _activated(each):
    each.act_fn = nn.GELU()


def _quantized(each):
    down = torch.zeros(each.down_proj.shape, dtype=torch.int8)
    each.down_proj = nn.Parameter(down, requires_grad=False)


def _trained(each):
    each.down_proj.requires_grad_(True)


def _more(each):
    each.scale = nn.Parameter(torch.ones(1), requires_grad=False)


def _parametrized(each):
    nn.utils.parametrize.register_parametrization(each, "down_proj", nn.Identity())


def _hooked(each):
    each.register_forward_hook(lambda *args: None)


def _replaced(each):
    each.forward = each.forward


def _elsewhere(each):
    each.config._experts_implementation = "batched_mm"


UNLIKE = [
    *map(_unlike, ["has_bias", "has_post_expert_norm", "is_transposed", "_is_expert_parallel"]),
    _activated, _quantized, _trained, _more, _parametrized, _hooked, _replaced, _elsewhere,
]  # fmt: skip


@pytest.mark.parametrize("change", UNLIKE)
def test_experts_that_are_not_plain_are_left_alone_and_so_are_those_beside_them(
    change, anywhere, by_operators
):
    target = tiny_target("mixtral")
    each = mixture_of(target)
    assert plain(each)
    before = "batched_mm" if change is _elsewhere else "grouped_mm"
    target.experts.use(False)
    change(each)
    assert not plain(each)
    others = Experts(target.model)
    assert not others.served
    others.use(True)
    assert target.model.config._experts_implementation == before


def test_a_model_that_was_served_elsewhere_is_not_asked_for_the_kernels(
    anywhere, by_operators, used, monkeypatch
):
    target = tiny_target("mixtral")
    target.experts.use(True)
    monkeypatch.setattr(module, "mixes", lambda *args: False)  # as once it has been moved to a CPU
    moved = Target(target.model, None, "moved")
    used.clear()
    decoder = Decoder.from_spec(DecoderSpec(head="none", tree="none"), target=moved)
    decoder.generate(PROMPT, max_new_tokens=3, ignore_eos=True)
    assert {who for who, _ in used} == {"theirs"}


def test_gates_of_their_own_are_left_alone(anywhere):
    target = tiny_target("gpt-oss")
    assert not target.experts.served
    assert not plain(mixture_of(target))
    target.experts.use(True)
    assert target.model.config._experts_implementation != EXPERTS


def test_models_without_experts_have_none():
    target = tiny_target()
    assert not target.experts.served
    assert target.model.config._experts_implementation != EXPERTS


@pytest.mark.parametrize("wrong", ["numbers", "compiler"])
def test_kernels_that_are_wrong_here_are_not_used(
    wrong, anywhere, by_operators, monkeypatch, caplog
):
    def broken(x, *args):
        if wrong == "compiler":
            raise RuntimeError("no compiler here")
        return mixture(x, *args) * torch.linspace(1, 1.5, x.shape[1])

    model = tiny_target("mixtral").model
    monkeypatch.setattr(module, "mixture", broken)
    with caplog.at_level(logging.WARNING, logger="eagle.target"):
        assert not Target(model, None, "again").experts.served
    said = {"numbers": "1 rows are off by up to", "compiler": "no compiler here"}[wrong]
    assert [said in record.getMessage() for record in caplog.records] == [True]


def test_compiled_passes_go_through_the_kernels(anywhere, by_operators, monkeypatch):
    monkeypatch.setattr("eagle.runtime.runtime._AHEAD", ())
    torch._dynamo.reset()
    operators, compiler = Counter(), torch.compile

    def backend(graph, inputs):
        operators.update(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    monkeypatch.setattr(
        torch, "compile", lambda code, **how: compiler(code, backend=backend, **how)
    )
    target = tiny_target("mixtral", num_hidden_layers=1)
    spec = DecoderSpec(head="none", tree="none", runtime={"max_batch": MAX_ROWS + 1})
    decoder = Decoder.from_spec(spec, target=target)
    asked = {"max_new_tokens": 4, "ignore_eos": True}
    for prompts, name in (([PROMPT], "mixture"), ([PROMPT, PROMPT[:3]], "mixture_by_rows")):
        decoder._cycle.compiled = {}
        expected = decoder.generate(prompts, **asked)
        decoder._cycle.compiled = {"verify": compiled_phases(decoder._cycle)["verify"]}
        operators.clear()
        found = decoder.generate(prompts, **asked)
        assert [one.tokens for one in found] == [one.tokens for one in expected]
        assert [each for each in operators if "mixture" in each] == [f"eagle.{name}.default"]


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_kernels_agree_with_operators_at_a_large_shape(dtype):
    gate_up = torch.randn(8, 2 * 3584, 4096, device=DEVICE, dtype=dtype) * 4096**-0.5
    down = torch.randn(8, 4096, 3584, device=DEVICE, dtype=dtype) * 3584**-0.5
    assert differ(gate_up, down) is None


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_target_on_a_gpu_says_what_it_says_without_the_kernels(kind, compiled, tmp_path):
    target = Target(tiny_target(kind).model.to(DEVICE), None, "tiny")
    assert target.experts.served
    tiny_head(target).save(tmp_path)
    spec = DecoderSpec(
        head={"name": "eagle", "weights": str(tmp_path)},
        tree={"name": "static", "branching": [24, 1]},
        runtime={"compile": compiled},
    )
    found = Decoder.from_spec(spec, target=target).generate(
        PROMPT, max_new_tokens=48, ignore_eos=True
    )
    with target.stock() as model:
        prompt = torch.tensor([PROMPT], device=DEVICE)
        expected = model.generate(
            prompt, max_new_tokens=48, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    assert found.tokens == tuple(expected[0, len(PROMPT) :].tolist())
    assert found.stats.tau > 1

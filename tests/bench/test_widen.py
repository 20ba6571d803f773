"""Widened models: the same function, at another shape's cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from eagle import Decoder
from eagle.bench.shapes import SHAPES, Shape, find_shape
from eagle.bench.widen import label, widen_model
from eagle.bench.widen_head import widen_head
from eagle.errors import RequestError, TargetError
from eagle.spec.schema import TargetSpec
from eagle.target import loading
from eagle.target.causal_lm import Target
from eagle.testing import tiny_target

# The tiny source has 2 layers, 4 query heads, 2 key-value heads of 16, and an MLP of 128.
WIDE = {
    shape.name: shape
    for shape in (
        Shape("same-groups", 96, 3, 6, 3, 32, 160),
        Shape("no-groups", 128, 2, 8, 8, 16, 128),
        Shape("larger-groups", 96, 4, 12, 3, 48, 200),
        Shape("tied", 96, 2, 6, 3, 32, 160, tied=True),
        Shape("experts", 96, 3, 8, 2, 32, 160, experts=4, experts_per_token=2),
    )
}
TEXT = [[5, 6, 7, 8, 20, 33, 34, 35, 60, 3], [9, 12, 15, 18, 21, 24, 27, 30, 33, 36]]


@pytest.fixture(scope="module")
def source(pair):
    """A Llama model of 64, grouped heads, and norms that are not all ones."""
    model = tiny_target("llama-gqa", hidden_size=64, intermediate_size=128).model
    model.load_state_dict(pair[0].model.state_dict())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(torch.linspace(0.5, 1.5, 64))
    return model


@pytest.fixture(params=WIDE.values(), ids=WIDE)
def shape(request):
    return request.param


@torch.no_grad()
def test_every_logit_is_the_sources(source, shape):
    wide = widen_model(source, shape)
    ids = torch.tensor(TEXT)
    expected, found = source(ids).logits, wide(ids).logits
    difference = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert difference.max() < 1e-5
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
    assert wide.config.hidden_size == shape.hidden_size
    assert len(wide.get_decoder().layers) == shape.layers


@torch.no_grad()
def test_heads_are_told_apart(source):
    """Each query head reads its own keys: with one changed, the logits follow the source's."""
    shape = WIDE["larger-groups"]
    ids = torch.tensor(TEXT)
    before = source(ids).logits
    weight = source.model.layers[0].self_attn.k_proj.weight
    kept = weight.clone()
    weight[:16] *= -1
    try:
        expected = source(ids).logits
        found = widen_model(source, shape)(ids).logits
    finally:
        weight.copy_(kept)
    assert not torch.allclose(expected, before, atol=1e-2)
    assert torch.allclose(found, expected, atol=1e-4)


def test_what_has_no_effect_is_random_and_finite(source, shape):
    wide = widen_model(source, shape)
    read = [
        (name, weight)
        for name, weight in wide.named_parameters()
        if not name.startswith("model.embed")
    ]
    assert all(weight.isfinite().all() for _, weight in read)
    nonzero = sum(weight.count_nonzero().item() for _, weight in read)
    assert nonzero > 0.5 * sum(weight.numel() for _, weight in read)
    again, other = widen_model(source, shape), widen_model(source, shape, seed=1)
    name = "model.layers.0.self_attn.q_proj.weight"
    first = wide.get_parameter(name)
    assert torch.equal(first, again.get_parameter(name))
    assert not torch.equal(first, other.get_parameter(name))


def test_all_experts_are_chosen_by_some_token(source):
    wide = widen_model(source, WIDE["experts"])
    chosen = []
    block = wide.model.layers[0].mlp.gate
    block.register_forward_hook(lambda module, inputs, out: chosen.append(out[2]))
    with torch.no_grad():
        wide(torch.arange(3, 64)[None])
    assert set(chosen[0].flatten().tolist()) == {0, 1, 2, 3}


@pytest.fixture
def decoders(pair, spec, shape, tmp_path):
    """A decoder of the tiny pair, and one of the pair widened."""
    narrow = Decoder.from_spec(spec(), target=pair[0])
    model = widen_model(pair[0].model, shape)
    widen_head(narrow.resolved.head, pair[0].info, shape, tmp_path)
    head = {"name": "eagle", "weights": str(tmp_path)}
    target = Target(model, None, label("tiny", shape))
    return narrow, Decoder.from_spec(spec(head=head), target=target)


def test_the_decoder_says_the_same_with_the_same_acceptance(decoders):
    narrow, wide = decoders
    prompts = [[5, 6, 7], [10, 12, 14, 16, 18], [40]]
    options = {"max_new_tokens": 40, "ignore_eos": True}
    expected, found = narrow.generate(prompts, **options), wide.generate(prompts, **options)
    assert [r.tokens for r in found] == [r.tokens for r in expected]
    assert [r.stats.accepted_per_cycle for r in found] == [
        r.stats.accepted_per_cycle for r in expected
    ]
    assert max(r.stats.tau for r in found) > 2
    assert wide.target.info.name.startswith("tiny's function at the ")


@torch.no_grad()
def test_the_heads_states_are_the_sources_and_zeros(decoders):
    narrow, wide = decoders
    ids = torch.tensor(TEXT)
    positions = torch.arange(9).expand(2, -1)
    visible = torch.ones(9, 9, dtype=torch.bool).tril()[None, None].expand(2, 1, -1, -1)
    states = []
    for decoder in (narrow, wide):
        with decoder.target.stock() as model:
            features = model.get_decoder()(ids, use_cache=False).last_hidden_state
        states.append(
            decoder.resolved.head.train_states(
                ids[:, 1:], ids[:, :-1], [features[:, :-1]], positions, visible
            )
        )
    expected, found = states
    size = expected.shape[2]
    assert torch.allclose(found[..., :size], expected, rtol=1e-4, atol=1e-5)
    assert not found[..., size:].any()


def test_a_bias_of_the_heads_fc_is_kept(pair, spec, tmp_path):
    shape = WIDE["same-groups"]
    narrow = Decoder.from_spec(spec(), target=pair[0])
    head = narrow.resolved.head
    head.module.fc.bias = torch.nn.Parameter(torch.linspace(-1, 1, 64), requires_grad=False)
    widen_head(head, pair[0].info, shape, tmp_path)
    target = Target(widen_model(pair[0].model, shape), None, "wide")
    changed = spec(head={"name": "eagle", "weights": str(tmp_path)})
    bias = Decoder.from_spec(changed, target=target).resolved.head.module.fc.bias
    assert torch.equal(bias[:64], head.module.fc.bias)
    assert not bias[64:].any()


def test_other_heads_are_refused(pair, spec, tmp_path):
    plain = Decoder.from_spec(spec(head="none", tree="none"), target=pair[0])
    with pytest.raises(RequestError, match="NoHead is none"):
        widen_head(plain.resolved.head, pair[0].info, WIDE["tied"], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hidden_size": 48}, "hidden size 64 in 48"),
        ({"layers": 1}, "layers 2 in 1"),
        ({"kv_heads": 1}, "key-value heads 2 in 1"),
        ({"heads": 3, "kv_heads": 3}, "key-value heads 4 in 3"),
        ({"intermediate_size": 100}, "MLP width 128 in 100"),
        ({"head_dim": 24}, r"head size 16 in 24 \(not a multiple\)"),
    ],
)
def test_a_shape_that_is_too_small_is_refused(source, changes, problem):
    small = replace(WIDE["same-groups"], **changes)
    with pytest.raises(TargetError, match=problem):
        widen_model(source, small)


@pytest.mark.parametrize("architecture", ["gemma", "qwen2"])
def test_other_families_are_refused(architecture):
    model = tiny_target(architecture).model
    with pytest.raises(TargetError, match="only Llama models"):
        widen_model(model, WIDE["no-groups"])


def test_a_shape_that_does_not_fit_into_memory_is_refused_with_its_bytes(source):
    huge = replace(SHAPES["llama2-7b"], intermediate_size=10**9, layers=2)
    with pytest.raises(TargetError, match=r"take 98304\.\d GB in float32.* are free on"):
        widen_model(source, huge)


@pytest.mark.embedded
@pytest.mark.timeout(600)
@torch.inference_mode()
def test_the_embedded_model_says_the_same_in_float32_when_widened():
    source = loading.locate(TargetSpec())
    model = loading.load_model(source, torch.float32, torch.device("cpu"))
    shape = Shape("wider", 640, 31, 10, 5, 128, 1600)
    text = "The sky is blue because air scatters short waves of light more than long ones."
    ids = loading.load_tokenizer(source)(text, return_tensors="pt").input_ids
    expected = model(ids).logits
    # Every query head reads its key-value head's copy: three heads do not fit behind one of these.
    with pytest.raises(TargetError, match="key-value heads 6 in 5"):
        widen_model(model, shape)
    found = widen_model(model, replace(shape, heads=20))(ids).logits
    assert ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max() < 1e-5
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


def test_an_unknown_shape_names_the_nearest():
    with pytest.raises(RequestError, match="Did you mean 'llama2-7b'"):
        find_shape("lama2-7b")


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama2-7b", 6.74),
        ("llama2-13b", 13.02),
        ("llama2-70b", 68.98),
        ("vicuna-33b", 32.53),
        ("llama3-8b", 8.03),
        ("mixtral-8x7b", 46.70),
    ],
)
def test_the_shapes_have_the_published_models_parameters(source, name, billions):
    """With the vocabulary of each published model, the count is the published one."""
    published = 128256 if name == "llama3-8b" else 32000
    config = find_shape(name).config(source.config)
    config.vocab_size = published
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    assert model.num_parameters() / 1e9 == pytest.approx(billions, abs=0.006)

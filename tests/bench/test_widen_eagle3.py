"""Widened heads of EAGLE-3 and of other published kinds: their drafts are the small head's."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from eagle import Decoder, DecoderSpec
from eagle.bench.places import wider_layers
from eagle.bench.shapes import Shape
from eagle.bench.subjects import prepare
from eagle.bench.widen import widen_model
from eagle.bench.widen_head import widen_head
from eagle.cache.store import Step
from eagle.errors import RequestError, TargetError
from eagle.plugin.entries import Committed, Drafted
from eagle.target import loading
from eagle.target.causal_lm import Target
from eagle.testing import tiny_target
from tests.plugins.heads import published
from tests.plugins.heads.published3 import IDS, LLAMA3, VOCAB, authors, ids, publish, weights

# The tiny target has 2 layers of 32; the heads' layer has 4 query heads, 2 key-value heads of 8.
SHAPE = Shape("wide", 84, 3, 6, 3, 24, 96)
EXPERTS = Shape("experts", 64, 4, 8, 2, 16, 64, experts=4, experts_per_token=2)
TEXT = torch.tensor([[5, 6, 7, 8, 20, 33, 34, 35, 60, 3]])
LEVELS = 4


@pytest.fixture(scope="module")
def target():
    return tiny_target(head_dim=8, num_attention_heads=4, num_key_value_heads=2)


def wide_target(target, shape=SHAPE):
    return Target(widen_model(target.model, shape), None, "wide")


def build(folder, target, **parts):
    head = {"name": "auto", "weights": str(folder), "lm_head": "exact"}
    given = {"head": head, "features": "auto", "tree": {"name": "static", "branching": [3, 2]}}
    return Decoder.from_spec(DecoderSpec(**(given | parts)), target=target)


def widened(narrow, target, folder, shape=SHAPE, **parts):
    widen_head(narrow.resolved.head, target.info, shape, folder)
    return build(folder, wide_target(target, shape), **parts)


@torch.no_grad()
def drafts(decoder):
    """Return the logits of a text's last position and of the levels drafted behind it."""
    head, extractor = decoder.resolved.head, decoder.resolved.features
    with decoder.target.stock() as model:
        out = model.get_decoder()(TEXT[:, :-1], use_cache=False, output_hidden_states=True)
    joined = [out.hidden_states[layer] for layer in extractor.layers]
    features = extractor.extract(out.last_hidden_state, joined)
    head.allocate(1, 32)
    count = features.shape[1]
    step = Step.chain(torch.tensor([0]), count, 16)
    entries = (TEXT[:, 1:], TEXT[:, :-1], features, torch.tensor([count]))
    state = head.absorb(Committed(*entries, step))[:, -1:]
    found, known = [head.logits(state)], getattr(head, "draft_vocab", None)
    for level in range(LEVELS - 1):
        token = found[-1][:, 0].argmax(-1, keepdim=True)
        row = torch.tensor([[count + level]])
        seen = torch.ones(1, 1, level + 1, dtype=torch.bool)
        step = Step(row, row, torch.tensor([count]), seen, 16)
        token = token if known is None else known[token]
        state = head.extend(Drafted(token, state, level + 1, step))
        found.append(head.logits(state))
    return torch.cat(found, 1)[0]


def same(found, expected):
    difference = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert difference.max() < 2e-5
    best = expected.topk(8).indices
    assert torch.equal(found.topk(8).indices, best)


WHOLE = {name: t for name, t in weights(drafts=VOCAB).items() if name != "lm_head.weight"}
HEADS = {
    "EAGLE-3": (weights(), {}),
    "all tokens": (weights(drafts=VOCAB), {"draft_vocab_size": VOCAB}),
    "target's LM head": (WHOLE, {"draft_vocab_size": VOCAB}),
    "one norm, normed residual": (weights("joined"), {"norm_before_residual": True}),
    "a norm each, fed back normed": (weights("each"), {"feed_back": "after-norm"}),
    "its own embedding": (weights(embed=True), {"embed_requires_grad": True}),
    "scaled positions": (weights(), {"rope_scaling": LLAMA3}),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_wide_eagle3_heads_drafts_are_the_small_ones(target, tmp_path, kind):
    tensors, said = HEADS[kind]
    narrow = build(authors(tmp_path / "narrow", tensors, **IDS, **said), target)
    wide = widened(narrow, target, tmp_path / "wide")
    expected = drafts(narrow)
    assert expected.shape[-1] == (24 if kind not in ("all tokens", "target's LM head") else VOCAB)
    same(drafts(wide), expected)
    assert wide.resolved.head.state_size(wide.target.info) == SHAPE.hidden_size


def test_the_head_is_as_dense_as_the_shape(target, tmp_path):
    narrow = build(authors(tmp_path / "narrow", weights("each"), **IDS), target)
    widen_head(narrow.resolved.head, target.info, SHAPE, tmp_path)
    wide = load_file(tmp_path / "model.safetensors")
    assert wide["fc.weight"].shape == (84, 3 * 84)
    assert wide["midlayer.self_attn.q_proj.weight"].shape == (6 * 24, 2 * 84)
    assert wide["lm_head.weight"].shape == (24, 84)
    read = [t for name, t in wide.items() if name not in ("d2t", "t2d")]
    assert sum(t.count_nonzero().item() for t in read) > 0.5 * sum(t.numel() for t in read)
    assert torch.equal(wide["d2t"] + torch.arange(24), ids())


@pytest.mark.parametrize("shape", [SHAPE, EXPERTS], ids=["dense", "experts"])
def test_a_decoder_with_it_accepts_the_same_and_says_the_same(target, tmp_path, shape):
    narrow = build(authors(tmp_path / "narrow", weights(), **IDS), target)
    wide = widened(narrow, target, tmp_path / "wide", shape)
    prompts = [[5, 6, 7], [10, 12, 14, 16, 18], [40]]
    for temperature in (0.0, 1.0):
        options = {"max_new_tokens": 16, "ignore_eos": True, "temperature": temperature, "seed": 3}
        expected, found = narrow.generate(prompts, **options), wide.generate(prompts, **options)
        assert [r.tokens for r in found] == [r.tokens for r in expected]
        assert [r.stats.accepted_per_cycle for r in found] == [
            r.stats.accepted_per_cycle for r in expected
        ]


def test_the_last_hidden_state_stays_the_last(target, tmp_path):
    """The two layers' third hidden state is behind the final norm, which moves up with them."""
    assert wider_layers((0, 1, 2), target.info, SHAPE) == (0, 1, 3)
    narrow = build(authors(tmp_path / "narrow", weights(), **IDS), target)
    wide = widened(narrow, target, tmp_path / "wide")
    assert wide.resolved.features.layers == (0, 1, 3)
    said = json.loads((tmp_path / "wide" / "config.json").read_text())
    assert said["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [-1, 0, 2]


@pytest.mark.parametrize("part", ["head", "features"])
def test_layers_that_a_spec_names_are_moved_too(target, tmp_path, monkeypatch, part):
    target.model.save_pretrained(tmp_path / "target")
    monkeypatch.setattr(loading, "load_tokenizer", lambda source: None)
    folder = authors(tmp_path / "narrow", weights(), **IDS)
    parts = {"head": {"name": "auto", "weights": str(folder)}, "features": {"name": "layers"}}
    parts[part]["layers"] = [0, 2, 2] if part == "head" else [0, 1, 2]
    spec = DecoderSpec(target={"model": str(tmp_path / "target")}, tree="chain", **parts)
    (decoder,) = prepare([spec], SHAPE).decoders.values()
    assert decoder.resolved.features.layers == ((0, 3, 3) if part == "head" else (0, 1, 3))


def test_heads_of_eagle_1_with_more_than_its_paper_has_are_widened(target, tmp_path):
    """Of two layers, with a bias, and with the norms of HASS's heads."""
    tensors = published.weights(layers=2, fc_bias=True)
    tensors |= {
        f"{name}_layernorm.weight": torch.linspace(0.5, 1.5, 32)
        for name in ("embedding", "hidden_states")
    }
    config = published.CONFIG | {"num_hidden_layers": 2, "add_para_norm": True}
    narrow = build(publish(tmp_path / "narrow", tensors, config), target)
    same(drafts(widened(narrow, target, tmp_path / "wide")), drafts(narrow))


def test_what_cannot_be_widened_is_named(target, tmp_path):
    biased = published.weights(qkv_bias=True)
    folder = publish(tmp_path / "a", biased, published.CONFIG | {"qkv_bias": True})
    with pytest.raises(RequestError, match=r"no place .* for its layers\.0\.self_attn\.q_proj\.b"):
        widen_head(build(folder, target).resolved.head, target.info, SHAPE, tmp_path / "out")
    larger = tiny_target(hidden_size=48, num_attention_heads=4, head_dim=8)
    tensors = weights("each", embed=True, target=48)
    narrow = build(authors(tmp_path / "b", tensors, target_hidden_size=48, **IDS), larger)
    with pytest.raises(RequestError, match=r"fc_norm\.0\.weight is over .* size 48 .* over 32"):
        widen_head(narrow.resolved.head, larger.info, SHAPE, tmp_path / "out")
    narrow = build(authors(tmp_path / "c", weights(), **IDS), target)
    small = Shape("small", 84, 3, 6, 3, 24, 40)
    with pytest.raises(TargetError, match="MLP width 48 in 40"):
        widen_head(narrow.resolved.head, target.info, small, tmp_path / "out")


def test_a_head_of_another_hidden_size_than_its_targets_is_widened(tmp_path):
    larger = tiny_target(hidden_size=48, num_attention_heads=4, head_dim=8)
    tensors = weights(embed=True, target=48)
    narrow = build(authors(tmp_path / "narrow", tensors, target_hidden_size=48, **IDS), larger)
    same(drafts(widened(narrow, larger, tmp_path / "wide")), drafts(narrow))

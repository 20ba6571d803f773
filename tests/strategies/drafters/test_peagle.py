"""P-EAGLE heads in the layout of speculators: what they compute, what is refused, what is said."""

from __future__ import annotations

import math

import pytest
import torch

from eagle import SamplingParams
from eagle.cache.store import Step
from eagle.errors import CheckpointError, IncompatibleError, SpecError
from eagle.testing import (
    assert_capturable,
    assert_decoder_lossless,
    check_draft_head,
    tiny_target,
)
from eagle.train.run.run import train
from tests.exact.tiny import PROMPTS, _pair
from tests.strategies.drafters import trial
from tests.strategies.drafters.published_blocks import (
    CONFIG,
    HEADS,
    INNER,
    KV,
    LAYERS,
    MASK,
    VOCAB,
    D,
    H,
    rms,
    turn,
    weights,
    write,
)

DRAFTS = 24


@pytest.fixture(scope="module")
def target():
    return tiny_target()


def tensors_of(kind="qwen3", norms="none", vocab=VOCAB, drafts=DRAFTS):
    generator = torch.Generator().manual_seed(5)
    tensors = weights(vocab=drafts)
    del tensors["hidden_norm.weight"]
    for name, rows in (("q", HEADS * D), ("k", KV * D), ("v", KV * D)):
        wide = torch.randn(rows, 2 * H, generator=generator) / (2 * H) ** 0.5
        tensors[f"layers.0.self_attn.{name}_proj.weight"] = wide
    tensors["layers.0.hidden_norm.weight"] = 1 + torch.randn(H, generator=generator) / 8
    tensors["mask_hidden"] = torch.randn(1, 1, 2 * H, generator=generator)
    tensors["embed_tokens.weight"] = torch.randn(vocab, H, generator=generator)
    if norms == "joined":
        tensors["input_norm.weight"] = 1 + torch.randn(2 * H, generator=generator) / 8
    if norms == "each":
        for i in range(2):
            tensors[f"fc_norm.{i}.weight"] = 1 + torch.randn(H, generator=generator) / 8
    if kind == "llama":
        tensors = {k: t for k, t in tensors.items() if "q_norm" not in k and "k_norm" not in k}
    ids = torch.arange(drafts) * 2 + 1
    marked = torch.zeros(vocab, dtype=torch.bool)
    marked[ids] = True
    return tensors | {"d2t": ids - torch.arange(drafts), "t2d": marked}


def publish(folder, tensors, kind="qwen3", inner=None, **said):
    config = {
        "architectures": ["PEagleSpeculator"],
        "speculators_model_type": "peagle",
        "transformer_layer_config": CONFIG | {"model_type": kind} | (inner or {}),
        "draft_vocab_size": len(tensors["lm_head.weight"]),
        "norm_before_residual": False,
        "eagle_aux_hidden_state_layer_ids": [0, 1],
        "mask_token_id": MASK,
        "speculators_config": {
            "algorithm": "peagle",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 5}],
            "verifier": {"name_or_path": "tiny-llama-gqa"},
        },
    }
    return write(folder, config | said, tensors)


def reference(tensors, tokens, features, levels, *, norms, before):
    """Return the draft logits of each level; entry t is token t + 1 with feature t."""
    wide = [*features, *[tensors["mask_hidden"].flatten()] * (levels - 1)]
    if norms == "joined":
        wide = [rms(x, tensors["input_norm.weight"]) for x in wide]
    if norms == "each":
        halves = [x.chunk(2) for x in wide]
        both = [tensors[f"fc_norm.{i}.weight"] for i in range(2)]
        wide = [torch.cat([rms(x, w) for x, w in zip(pair, both, strict=True)]) for pair in halves]
    hidden = [tensors["fc.weight"] @ x for x in wide]
    table = tensors["embed_tokens.weight"]
    embedded = [table[token] for token in [*tokens, *[MASK] * (levels - 1)]]
    for i in range(LAYERS):
        at = f"layers.{i}."
        mine = {k.removeprefix(at): t for k, t in tensors.items() if k.startswith(at)}
        if i == 0:
            inner = [rms(x, mine["hidden_norm.weight"]) for x in hidden]
            words = [rms(x, mine["input_layernorm.weight"]) for x in embedded]
            given = [torch.cat(pair) for pair in zip(words, inner, strict=True)]
            rest = inner if before else hidden
        else:
            given, rest = [rms(x, mine["input_layernorm.weight"]) for x in hidden], hidden
        split = {
            name: [(mine[f"self_attn.{name}_proj.weight"] @ x).view(-1, D) for x in given]
            for name in "qkv"
        }
        for name in "qk":
            if f"self_attn.{name}_norm.weight" in mine:
                norm = mine[f"self_attn.{name}_norm.weight"]
                split[name] = [torch.stack([rms(x, norm) for x in one]) for one in split[name]]
            split[name] = [
                torch.stack([turn(x, place) for x in one]) for place, one in enumerate(split[name])
            ]
        out = []
        for place, x in enumerate(rest):
            heads = []
            for number, q in enumerate(split["q"][place]):
                group = number // (HEADS // KV)
                keys = torch.stack([k[group] for k in split["k"][: place + 1]])
                values = torch.stack([v[group] for v in split["v"][: place + 1]])
                heads.append((keys @ q / math.sqrt(D)).softmax(0) @ values)
            x = x + mine["self_attn.o_proj.weight"] @ torch.cat(heads)
            normed = rms(x, mine["post_attention_layernorm.weight"])
            gate = mine["mlp.gate_proj.weight"] @ normed
            up = mine["mlp.up_proj.weight"] @ normed
            assert len(up) == INNER
            out.append(x + mine["mlp.down_proj.weight"] @ (gate * torch.sigmoid(gate) * up))
        hidden = out
    last = hidden[len(features) - 1 :]
    return torch.stack([tensors["lm_head.weight"] @ rms(x, tensors["norm.weight"]) for x in last])


@pytest.mark.parametrize(
    ("kind", "norms", "before"),
    [("llama", "none", False), ("qwen3", "joined", True), ("qwen3", "each", False)],
)
def test_the_layout_of_speculators_computes_what_it_should(target, tmp_path, kind, norms, before):
    tensors = tensors_of(kind, norms)
    said = {"norm_before_fc": norms == "joined", "fc_norm": norms == "each"}
    folder = publish(tmp_path, tensors, kind, norm_before_residual=before, **said)
    head = trial.load("parallel", target, folder)
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(VOCAB, (2, 8), generator=generator)
    features = torch.randn(2, 7, 2 * H, generator=generator)
    for known, levels in ((1, 4), (4, 1), (7, 4)):
        root, state = trial.absorbed(head, text, features, known)
        found = head.draft(root, state, Step.chain(torch.tensor([known] * 2), levels, 64))
        for slot in range(2):
            given = text[slot, 1 : known + 1].tolist(), features[slot, :known]
            expected = reference(tensors, *given, levels, norms=norms, before=before)
            torch.testing.assert_close(found[slot], expected, atol=3e-4, rtol=1e-4)
    assert head.feature_layers(target.info) == (0, 1)
    assert head.identity == (
        "a draft head of P-EAGLE in the layout of speculators: 2 layers over hidden states 0, 1, "
        "draft vocabulary 24 of 64"
    )


def test_layers_that_are_not_named_are_speculators_default(tmp_path):
    deep = tiny_target(num_hidden_layers=10)
    folder = publish(tmp_path, tensors_of(), eagle_aux_hidden_state_layer_ids=None)
    assert trial.build("parallel", deep, folder).feature_layers(deep.info) == (2, 5, 7)


def test_it_keeps_the_contract_can_be_captured_and_never_changes_what_is_said(target, tmp_path):
    folder = publish(tmp_path, tensors_of())
    head = trial.load("parallel", target, folder)
    check_draft_head(head, target, first_token=False)
    step = Step.chain(torch.tensor([5, 7]), 3, 32)
    roots, states = torch.tensor([1, 2]), torch.zeros(2, H)
    assert_capturable(lambda: head.draft(roots, states, step))
    trees = [{"name": "chain", "depth": 1}, {"name": "static", "branching": [3, 2, 1]}]
    trial.says_what_the_target_says(target, {"name": "parallel", "weights": str(folder)}, trees)


def test_it_is_lossless_above_temperature_0(tmp_path):
    target = _pair(4, "cpu")[0]
    sizes = {"hidden_size": 16, "vocab_size": 4}
    folder = publish(tmp_path, small(tensors_of(vocab=4, drafts=2)), inner=sizes, mask_token_id=0)
    decoder = trial.decoder(
        target,
        head={"name": "parallel", "weights": str(folder)},
        tree={"name": "chain", "depth": 2},
        runtime={"max_batch": 64},
    )
    assert_decoder_lossless(
        decoder, PROMPTS, SamplingParams(temperature=1.0), tokens=2, tolerance=1e-12
    )


def small(tensors):
    """Cut a head down to a hidden size of 16."""
    cut = {2 * H: 32, H: 16}
    found = {}
    for name, tensor in tensors.items():
        if name in ("d2t", "t2d"):
            found[name] = tensor
            continue
        for dim, size in enumerate(tensor.shape):
            inside = ".self_attn." in name and dim == (1 if "o_proj" in name else 0)
            if size in cut and not inside:
                tensor = tensor.narrow(dim, 0, cut[size])
        found[name] = tensor * 4
    return found


BROKEN = {
    "no mask_hidden": ({"mask_hidden": None}, {}, "is no block drafter|missing mask_hidden"),
    "open residual": ({}, {"norm_before_residual": None}, "speculators takes it for false and vLL"),
    "both norms": ({}, {"norm_before_fc": True, "fc_norm": True}, "exclude each other"),
    "another target": ({}, {"inner": {"vocab_size": 90}}, "vocab_size 90, the target"),
    "other layers": ({}, {"inner": {"model_type": "gemma3"}}, "model_type is 'gemma3'; layers of"),
    "a layer too deep": (
        {},
        {"eagle_aux_hidden_state_layer_ids": [0, 2]},
        "sees hidden state 2, and of the target",
    ),
    "no mask": ({}, {"mask_token_id": None}, "mask_token_id should be a whole number"),
    "a copy of another embedding": (
        {},
        {"embed_requires_grad": False},
        "embed_tokens.weight that is not that of the target",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_does_not_fit_is_refused_in_a_sentence(case, target, tmp_path):
    changes, said, message = BROKEN[case]
    tensors = {k: t for k, t in tensors_of().items() if k not in changes}
    with pytest.raises(CheckpointError, match=message):
        trial.load("parallel", target, publish(tmp_path, tensors, **said))


def test_a_tree_deeper_than_it_was_trained_for_is_refused(target, tmp_path):
    head = {"name": "parallel", "weights": str(publish(tmp_path, tensors_of()))}
    with pytest.raises(IncompatibleError, match=r"'chain'.* is 6 levels deep, but .* drafts 5 at"):
        trial.decoder(target, head=head, tree={"name": "chain", "depth": 6})


def test_it_is_not_trained(target, tmp_path):
    folder = publish(tmp_path, tensors_of())
    spec = trial.recipe(tmp_path, f"head={{name: parallel, weights: {folder}}}", "start=checkpoint")
    with pytest.raises(SpecError, match="'parallel' cannot be trained: it has no initialise"):
        train(spec, target=target)


def test_head_auto_says_what_it_is_and_what_to_do(target, tmp_path):
    with pytest.raises(CheckpointError, match=r"is a draft head of P-EAGLE.*head.name=parallel"):
        trial.load("auto", target, publish(tmp_path, tensors_of()))

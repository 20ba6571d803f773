"""Random weights in the layouts that EAGLE-3 heads are published in, and what they should compute.

The reference is written from the description of SafeAILab/EAGLE, ``eagle/model/cnets.py``, and of
what EAGLE-3.1 adds. Plain loops and full matrices, nothing of the package.
"""

import json
import math

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from tests.plugins.heads.published import EPS, GROUPS, HEADS, INNER, SIZE, THETA, VOCAB, linear, rms

H, HT, DRAFTS = 32, 32, 24

CONFIG = {
    "hidden_size": H,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "hidden_act": "silu",
    "vocab_size": VOCAB,
    "rms_norm_eps": EPS,
    "rope_theta": THETA,
    "max_position_embeddings": 512,
    "num_hidden_layers": 1,
    "draft_vocab_size": DRAFTS,
}
LAYERS = [0, 1, 2]
IDS = {"eagle_aux_hidden_state_layer_ids": LAYERS}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def ids(seed=0, drafts=DRAFTS):
    """Return the target's ids of the draft vocabulary, in order."""
    chosen = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(seed))[:drafts]
    return chosen.sort().values


def weights(norms="none", embed=False, size=H, target=HT, drafts=DRAFTS, seed=0):
    """Return random tensors by the authors' names, maps among them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator) * 0.2

    at = "midlayer."
    tensors = {
        "fc.weight": draw(size, 3 * target),
        f"{at}hidden_norm.weight": 1 + draw(size),
        f"{at}input_layernorm.weight": 1 + draw(size),
        f"{at}self_attn.q_proj.weight": draw(HEADS * SIZE, 2 * size),
        f"{at}self_attn.k_proj.weight": draw(GROUPS * SIZE, 2 * size),
        f"{at}self_attn.v_proj.weight": draw(GROUPS * SIZE, 2 * size),
        f"{at}self_attn.o_proj.weight": draw(size, HEADS * SIZE),
        f"{at}post_attention_layernorm.weight": 1 + draw(size),
        f"{at}mlp.gate_proj.weight": draw(INNER, size),
        f"{at}mlp.up_proj.weight": draw(INNER, size),
        f"{at}mlp.down_proj.weight": draw(size, INNER),
        "norm.weight": 1 + draw(size),
        "lm_head.weight": draw(drafts, size),
    }
    if norms == "joined":
        tensors["input_norm.weight"] = 1 + draw(3 * target)
    if norms == "each":
        tensors |= {f"fc_norm.{i}.weight": 1 + draw(target) for i in range(3)}
    if embed:
        tensors["embed_tokens.weight"] = draw(VOCAB, size)
    if drafts != VOCAB:
        own = ids(drafts=drafts)
        marked = torch.zeros(VOCAB, dtype=torch.bool)
        marked[own] = True
        tensors |= {"d2t": own - torch.arange(drafts), "t2d": marked}
    return tensors


def publish(folder, tensors, config):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def authors(folder, tensors, **config):
    return publish(folder, tensors, CONFIG | {"architectures": ["LlamaForCausalLM"]} | config)


def specforge(folder, tensors, **config):
    named = {"architectures": ["LlamaForCausalLMEagle3"], "tie_word_embeddings": False}
    return publish(folder, tensors, CONFIG | named | config)


def speculators(folder, tensors, verifier="tiny-llama-gqa", **config):
    inner = {k: v for k, v in CONFIG.items() if k != "draft_vocab_size"} | {"model_type": "llama"}
    inner |= config.pop("transformer_layer_config", {})
    whole = {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.5.0",
        "draft_vocab_size": CONFIG["draft_vocab_size"],
        "transformer_layer_config": inner,
        "target_hidden_size": None,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
            "verifier": {"name_or_path": verifier, "architectures": ["LlamaForCausalLM"]},
        },
    }
    renamed = {name.replace("midlayer.", "layers.0."): t for name, t in tensors.items()}
    return publish(folder, renamed, whole | config)


def reference(
    tensors, embedded, features, drafted, *, before_residual=False, after_norm=False, rope=None
):
    """Return draft logits of one text, and of tokens drafted behind it one after another.

    Args:
        tensors: by the authors' names.
        embedded: ``[T, H]``, embeddings of the tokens one ahead of the features.
        features: ``[T, 3 Ht]``.
        drafted: ``[D, H]``, embeddings of the tokens that are drafted.
        before_residual: norm_before_residual.
        after_norm: whether the state behind the last norm is fed back.
        rope: rotary scaling, as a configuration has it.
    """
    if "input_norm.weight" in tensors:
        features = rms(features, tensors["input_norm.weight"])
    if "fc_norm.0.weight" in tensors:
        parts = features.chunk(3, dim=-1)
        features = torch.cat(
            [rms(part, tensors[f"fc_norm.{i}.weight"]) for i, part in enumerate(parts)], dim=-1
        )
    hidden, tokens = linear(tensors, "fc", features), embedded
    found = []
    for level in range(len(drafted) + 1):
        out = _layer(tensors, tokens, hidden, before_residual, rope)
        normed = rms(out, tensors["norm.weight"])
        logits = linear(tensors, "lm_head", normed)
        found += list(logits) if level == 0 else [logits[-1]]
        if level < len(drafted):
            # Entries of the text stay what they are; each drafted one is fed the output above it.
            fed = normed if after_norm else out
            hidden = torch.cat((hidden, fed[-1:]))
            tokens = torch.cat((tokens, drafted[level : level + 1]))
    return torch.stack(found)


def _layer(tensors, tokens, hidden, before_residual, rope):
    at = "midlayer."
    inner = rms(hidden, tensors[f"{at}hidden_norm.weight"])
    x = inner if before_residual else hidden
    both = torch.cat((rms(tokens, tensors[f"{at}input_layernorm.weight"]), inner), dim=-1)
    x = x + _attention(tensors, f"{at}self_attn.", both, rope)
    inner = rms(x, tensors[f"{at}post_attention_layernorm.weight"])
    gate = F.silu(linear(tensors, f"{at}mlp.gate_proj", inner))
    return x + linear(
        tensors, f"{at}mlp.down_proj", gate * linear(tensors, f"{at}mlp.up_proj", inner)
    )


def _attention(tensors, at, x, rope):
    out = torch.zeros(len(x), HEADS * SIZE)
    query, key, value = (linear(tensors, f"{at}{name}_proj", x) for name in "qkv")
    for head in range(HEADS):
        group = head // (HEADS // GROUPS)
        mine = slice(head * SIZE, (head + 1) * SIZE)
        theirs = slice(group * SIZE, (group + 1) * SIZE)
        q, k = _turned(query[:, mine], rope), _turned(key[:, theirs], rope)
        for t in range(len(x)):
            scores = (k[: t + 1] @ q[t]) / SIZE**0.5
            out[t, mine] = scores.softmax(0) @ value[: t + 1, theirs]
    return linear(tensors, f"{at}o_proj", out)


def _frequencies(rope):
    half = SIZE // 2
    plain = [1 / THETA ** (i / half) for i in range(half)]
    if rope is None:
        return plain
    if rope["rope_type"] == "linear":
        return [one / rope["factor"] for one in plain]
    found = []
    length = rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    for one in plain:
        turns = length * one / (2 * math.pi)  # within the original length
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        found.append((1 - share) * one / rope["factor"] + share * one)
    return found


def _turned(x, rope):
    half = SIZE // 2
    angles = torch.outer(torch.arange(len(x)).float(), torch.tensor(_frequencies(rope)))
    first, second = x[:, :half], x[:, half:]
    return torch.cat(
        (
            first * angles.cos() - second * angles.sin(),
            second * angles.cos() + first * angles.sin(),
        ),
        dim=-1,
    )

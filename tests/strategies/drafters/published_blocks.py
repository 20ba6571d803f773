"""Block drafters as z-lab, JetSpec and speculators publish them, and what they should compute.

The reference is written from the layout's description, one entry after the other, without a cache.
"""

from __future__ import annotations

import json
import math

import torch
from safetensors.torch import save_file

H, HEADS, KV, D, INNER, VOCAB, LAYERS = 32, 4, 2, 8, 48, 64, 2
EPS, THETA, MASK, SIZE = 1e-5, 1e4, 5, 5
CONFIG = {
    "hidden_size": H,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "head_dim": D,
    "intermediate_size": INNER,
    "vocab_size": VOCAB,
    "num_hidden_layers": LAYERS,
    "rms_norm_eps": EPS,
    "rope_theta": THETA,
    "max_position_embeddings": 512,
    "model_type": "qwen3",
    "hidden_act": "silu",
    "attention_bias": False,
    "layer_types": ["full_attention"] * LAYERS,
}


def weights(joined=2, vocab=None):
    generator = torch.Generator().manual_seed(0)

    def matrix(rows, columns):
        return torch.randn(rows, columns, generator=generator) / columns**0.5

    def norm(size):
        return 1 + torch.randn(size, generator=generator) / 8

    tensors = {"fc.weight": matrix(H, joined * H), "hidden_norm.weight": norm(H)}
    for i in range(LAYERS):
        at = f"layers.{i}."
        for name, rows, columns in (
            ("q", HEADS * D, H),
            ("k", KV * D, H),
            ("v", KV * D, H),
            ("o", H, HEADS * D),
        ):
            tensors[f"{at}self_attn.{name}_proj.weight"] = matrix(rows, columns)
        for name in ("q", "k"):
            tensors[f"{at}self_attn.{name}_norm.weight"] = norm(D)
        for name, rows, columns in (("gate", INNER, H), ("up", INNER, H), ("down", H, INNER)):
            tensors[f"{at}mlp.{name}_proj.weight"] = matrix(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}{name}.weight"] = norm(H)
    tensors["norm.weight"] = norm(H)
    if vocab is not None:
        tensors["lm_head.weight"] = matrix(vocab, H)
    return tensors


def write(folder, config, tensors):
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: t.contiguous() for k, t in tensors.items()}, folder / "model.safetensors")
    return folder


def zlab(folder, tensors, *, top=None, **said):
    """z-lab's layout, and JetSpec's with ``causal_head``; ids are of layers' outputs."""
    dflash = {"target_layer_ids": [0, 1], "mask_token_id": MASK} | said
    config = CONFIG | {
        "architectures": ["DFlashDraftModel"],
        "block_size": SIZE,
        "num_target_layers": 2,
        "dflash_config": {k: v for k, v in dflash.items() if v is not None},
    }
    return write(folder, config | (top or {}), tensors)


def speculators(folder, tensors, vocab, embedding, **said):
    """speculators' layout; ids are indices of hidden states, and tokens a draft vocabulary's."""
    ids = torch.arange(vocab) * 2 + 1
    marked = torch.zeros(VOCAB, dtype=torch.bool)
    marked[ids] = True
    tensors = tensors | {
        "d2t": ids - torch.arange(vocab),
        "t2d": marked,
        "embed_tokens.weight": embedding,
    }
    config = {
        "architectures": ["DFlashSpeculator"],
        "speculators_model_type": "dflash",
        "speculators_version": "0.5.0",
        "transformer_layer_config": CONFIG,
        "draft_vocab_size": vocab,
        "block_size": SIZE,
        "aux_hidden_state_layer_ids": [0, 1],
        "mask_token_id": MASK,
        "speculators_config": {"verifier": {"name_or_path": "tiny-llama-gqa"}},
    }
    return write(folder, config | said, tensors)


def rms(x, weight):
    return x / torch.sqrt((x * x).mean() + EPS) * weight


def turn(x, position):
    half = len(x) // 2
    angles = position * THETA ** (-2 * torch.arange(half) / len(x))
    first, second = x[:half], x[half:]
    cos, sin = torch.cos(angles), torch.sin(angles)
    return torch.cat((first * cos - second * sin, second * cos + first * sin))


def reference(tensors, features, root, embed, levels, *, causal=False, anchored=False):
    """Return the LM head's input of each level behind a text of so many features, ``[levels, H]``.

    Features are of positions 0 and on; the root stands at the next one, masks behind it.
    """
    known = len(features)
    size = levels if anchored else levels + 1
    tokens = [root, *[MASK] * (size - 1)]
    context = [rms(tensors["fc.weight"] @ one, tensors["hidden_norm.weight"]) for one in features]
    block = [embed(token) for token in tokens]
    for i in range(LAYERS):
        at = f"layers.{i}."
        mine = {k.removeprefix(at): t for k, t in tensors.items() if k.startswith(at)}
        normed = [rms(x, mine["input_layernorm.weight"]) for x in block]
        # What is seen: the context as it is, then the block behind its norm.
        seen = [*enumerate(context), *((known + place, x) for place, x in enumerate(normed))]
        keys, values = [], []
        for position, x in seen:
            rows = (mine["self_attn.k_proj.weight"] @ x).view(KV, D)
            rows = [turn(rms(one, mine["self_attn.k_norm.weight"]), position) for one in rows]
            keys.append(torch.stack(rows))
            values.append((mine["self_attn.v_proj.weight"] @ x).view(KV, D))
        out = []
        for place, x in enumerate(normed):
            query = (mine["self_attn.q_proj.weight"] @ x).view(HEADS, D)
            query = [turn(rms(q, mine["self_attn.q_norm.weight"]), known + place) for q in query]
            last = known + place + 1 if causal else len(seen)
            heads = []
            for number, q in enumerate(query):
                group = number // (HEADS // KV)
                scores = torch.stack([q @ keys[s][group] for s in range(last)]) / math.sqrt(D)
                shares = scores.softmax(0)
                heads.append(sum(shares[s] * values[s][group] for s in range(last)))
            x = block[place] + mine["self_attn.o_proj.weight"] @ torch.cat(heads)
            inner = rms(x, mine["post_attention_layernorm.weight"])
            gate = mine["mlp.gate_proj.weight"] @ inner
            up = mine["mlp.up_proj.weight"] @ inner
            out.append(x + mine["mlp.down_proj.weight"] @ (gate * torch.sigmoid(gate) * up))
        block = out
    said = block if anchored else block[1:]
    return torch.stack([rms(x, tensors["norm.weight"]) for x in said])

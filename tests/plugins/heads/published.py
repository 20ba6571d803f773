"""Random weights in the layouts that draft heads are published in, and what they should compute.

The reference is written from the description of SafeAILab/EAGLE, ``eagle/model/cnets1.py``: an FC
over the embedding and the feature, then Llama layers of which the first has no norm in front of
its attention. Plain loops and full matrices, nothing of the package.
"""

import torch
import torch.nn.functional as F

H, INNER, HEADS, GROUPS, SIZE, VOCAB = 32, 48, 4, 2, 8, 64
THETA, EPS = 5e5, 1e-5

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
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
}


def weights(layers=1, fc_bias=False, qkv_bias=False, seed=0):
    """Return random tensors by their published names."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator) * 0.2

    tensors = {"fc.weight": draw(H, 2 * H)}
    if fc_bias:
        tensors["fc.bias"] = draw(H)
    for i in range(layers):
        at = f"layers.{i}."
        for name, rows in (("q", HEADS), ("k", GROUPS), ("v", GROUPS)):
            tensors[f"{at}self_attn.{name}_proj.weight"] = draw(rows * SIZE, H)
            if qkv_bias:
                tensors[f"{at}self_attn.{name}_proj.bias"] = draw(rows * SIZE)
        tensors[f"{at}self_attn.o_proj.weight"] = draw(H, HEADS * SIZE)
        tensors[f"{at}mlp.gate_proj.weight"] = draw(INNER, H)
        tensors[f"{at}mlp.up_proj.weight"] = draw(INNER, H)
        tensors[f"{at}mlp.down_proj.weight"] = draw(H, INNER)
        tensors[f"{at}post_attention_layernorm.weight"] = 1 + draw(H)
        if i:
            tensors[f"{at}input_layernorm.weight"] = 1 + draw(H)
    return tensors


def reference(tensors, embedded, features):
    """Return predicted features ``[T, H]`` of one text, from ``[T, H]`` each."""
    if "embedding_layernorm.weight" in tensors:  # HArmonizedSS/HASS, ``model/cnets.py``
        embedded = rms(embedded, tensors["embedding_layernorm.weight"])
        features = rms(features, tensors["hidden_states_layernorm.weight"])
    x = linear(tensors, "fc", torch.cat((embedded, features), dim=-1))
    layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("layers."))
    for i in range(layers):
        at = f"layers.{i}."
        inner = rms(x, tensors[f"{at}input_layernorm.weight"]) if i else x
        x = x + attention(tensors, f"{at}self_attn.", inner)
        inner = rms(x, tensors[f"{at}post_attention_layernorm.weight"])
        gate = F.silu(linear(tensors, f"{at}mlp.gate_proj", inner))
        x = x + linear(
            tensors, f"{at}mlp.down_proj", gate * linear(tensors, f"{at}mlp.up_proj", inner)
        )
    return x


def attention(tensors, at, x):
    out = torch.zeros(len(x), HEADS * SIZE)
    query, key, value = (linear(tensors, f"{at}{name}_proj", x) for name in "qkv")
    for head in range(HEADS):
        group = head // (HEADS // GROUPS)
        mine = slice(head * SIZE, (head + 1) * SIZE)
        theirs = slice(group * SIZE, (group + 1) * SIZE)
        q, k = turned(query[:, mine]), turned(key[:, theirs])
        for t in range(len(x)):
            scores = (k[: t + 1] @ q[t]) / SIZE**0.5
            out[t, mine] = scores.softmax(0) @ value[: t + 1, theirs]
    return linear(tensors, f"{at}o_proj", out)


def turned(x):
    half = SIZE // 2
    angles = torch.outer(
        torch.arange(len(x)).float(), 1 / THETA ** (torch.arange(half).float() / half)
    )
    first, second = x[:, :half], x[:, half:]
    return torch.cat(
        (
            first * angles.cos() - second * angles.sin(),
            second * angles.cos() + first * angles.sin(),
        ),
        dim=-1,
    )


def linear(tensors, name, x):
    out = x @ tensors[f"{name}.weight"].T
    return out + tensors[f"{name}.bias"] if f"{name}.bias" in tensors else out


def rms(x, weight):
    return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * weight

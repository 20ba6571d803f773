"""Tiny targets of many architectures, and a tiny trained pair; all made on the spot, on the CPU."""

from __future__ import annotations

import atexit
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from eagle.plugin import BuildContext, Role, TrainableHead
from eagle.target import Target

__all__ = ["ARCHITECTURES", "tiny_head", "tiny_pair", "tiny_target", "tiny_text"]

_SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"num_key_value_heads": 4}),
    "llama-gqa": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 24}),
    "mixtral": ("Mixtral", {"sliding_window": None, "num_local_experts": 4}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-moe": (
        "Qwen3Moe",
        {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma2": ("Gemma2", {"head_dim": 16, "sliding_window": 24, "attn_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3Text", {"head_dim": 16, "sliding_window": 24, "sliding_window_pattern": 2}),
    "gpt-oss": ("GptOss", {"head_dim": 16, "sliding_window": 24, "num_local_experts": 4}),
}
"""Names of the tiny architectures: transformers' class prefix, and what differs in its config."""


def tiny_target(
    architecture: str = "llama-gqa",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Target:
    """Return a randomly initialised target with a vocabulary of 64 and two layers.

    Args:
        architecture: one of `ARCHITECTURES`.
        seed: of its weights.
        dtype: of its weights.
        **config: changes to its configuration.
    """
    import transformers

    prefix, changes = ARCHITECTURES[architecture]
    name = prefix.removesuffix("Text")
    cls = getattr(transformers, f"{name}ForCausalLM")
    made = getattr(transformers, f"{prefix}Config")(**(_SIZES | changes | config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(made)
        # The usual small initialisation makes every distribution flat; larger weights give a
        # model that has opinions, so that a wrong mask or position changes its answers.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(5)
    return Target(model.to(dtype).eval().requires_grad_(False), None, f"tiny-{architecture}")


def tiny_text(batch: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """Return texts ``[batch, length]`` of a small language with something to learn.

    Each text counts upwards through the tokens 3 to 63 in steps of 1 to 4, and changes its step
    one time in eight: mostly predictable, and sometimes not.
    """
    start = torch.randint(61, (batch, 1), generator=generator)
    change = torch.rand(batch, length, generator=generator) < 0.125
    fresh = torch.randint(1, 5, (batch, length), generator=generator)
    index = torch.where(change, torch.arange(length), 0).cummax(1).values
    return (start + fresh.gather(1, index).cumsum(1)) % 61 + 3


def tiny_head(target: Target, *, name: str = "eagle", seed: int = 0) -> TrainableHead:
    """Return an untrained head for a target, chosen by name from the installed plug-ins."""
    from eagle.plugin import default_registry

    strategy = default_registry().get(Role.HEAD, name).strategy
    head: TrainableHead = strategy.build(strategy.config(), BuildContext(target.info))
    head.initialise(target, seed)
    return head


@cache
def tiny_pair(steps: int = 200) -> tuple[Target, Path]:
    """Return a target trained on `tiny_text`, and the folder of a head trained for it.

    It takes a few seconds, once per process. The head is right often enough that cycles accept
    paths of every length. ``Decoder.from_spec(spec, target=target)`` takes the target, and the
    spec the folder, as ``head: {name: eagle, weights: FOLDER}``.
    """
    target = tiny_target("llama-gqa", hidden_size=64, intermediate_size=128)
    generator = torch.Generator().manual_seed(0)
    with target.stock() as model:
        model.requires_grad_(True).train()
        _train(model.parameters(), steps, lambda: _language_loss(model, generator))
        model.eval().requires_grad_(False)
        head = tiny_head(target)
        _train(head.module.parameters(), steps, lambda: _head_loss(target, head, generator))
    folder = tempfile.TemporaryDirectory(prefix="eagle-tiny-head-")
    atexit.register(folder.cleanup)
    head.save(Path(folder.name))
    return target, Path(folder.name)


def _train(parameters: Any, steps: int, loss: Any) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def _language_loss(model: Any, generator: torch.Generator) -> torch.Tensor:
    text = tiny_text(16, 32, generator)
    logits = model(input_ids=text, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), text[:, 1:].flatten())


def _head_loss(target: Target, head: TrainableHead, generator: torch.Generator) -> torch.Tensor:
    text = tiny_text(16, 32, generator)
    with torch.no_grad():
        features = target.model.get_decoder()(input_ids=text, use_cache=False).last_hidden_state
    positions = torch.arange(31).expand(16, -1)
    visible = torch.ones(31, 31, dtype=torch.bool).tril()[None, None].expand(16, 1, -1, -1)
    states = head.train_states(text[:, 1:], text[:, :-1], [features[:, :-1]], positions, visible)
    wanted = target.logits(features[:, 1:]).softmax(-1)
    cross = -(wanted * head.logits(states).log_softmax(-1)).sum(-1).mean()
    return F.smooth_l1_loss(states, features[:, 1:]) + 0.1 * cross

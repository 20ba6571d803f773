"""Every family of causal language models that transformers has, as small as it builds."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)

WINDOW = 24
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "sliding_window": WINDOW,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_num_experts": 4,
    "moe_k": 2,
    "moe_topk": 2,
    "moe_layer_start_index": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
"""Sizes by the names that configurations have for them; what a family has not, it ignores."""

OWN: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 256},
    "glm": {"partial_rotary_factor": 0.5},
    "phi3": {"original_max_position_embeddings": 256},
    "jamba": {"num_key_value_heads": 2},
}
"""What a family needs besides."""


def families() -> list[str]:
    """Return the families' names."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def config_of(family: str, **changes: Any) -> Any:
    """Return a family's configuration in small sizes."""
    cls = CONFIG_MAPPING[family]
    known = inspect.signature(cls).parameters
    sizes = {name: value for name, value in SIZES.items() if name in known}
    return cls(**(sizes | OWN.get(family, {}) | changes))


def model_of(config: Any, dtype: torch.dtype = torch.float32, spread: float = 5.0) -> Any:
    """Return a random model, whose answers depend on what it attends to."""
    cls = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(config)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(spread)
            elif "sink" in name:
                parameter.data.normal_()
    return model.to(dtype).eval().requires_grad_(False)

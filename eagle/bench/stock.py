"""transformers' own `generate`, called fairly; knows nothing of this library's loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from eagle.plugin import SamplingParams, fresh_seed
from eagle.target import Target

__all__ = ["configured", "left_padded", "stock_texts", "until_end"]


@torch.inference_mode()
def stock_texts(
    target: Target,
    texts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    lookup: int = 0,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[list[tuple[int, ...]], float]:
    """Answer prompts in one call of `generate`, with its default cache.

    Args:
        target: whose model is used, with transformers' own attention.
        texts: ids of the prompts, at least one each; padded on the left where they are several.
        params: as for a decoder; the text ends at the same tokens and stop strings.
        lookup: candidates a step that are looked up in the text so far (transformers'
            ``prompt_lookup_num_tokens``, for one prompt only); 0 for none.
        defaults: fields of the model's generation config that apply, as to a decoder with such
            `defaults`.

    Returns:
        The answers' ids, and the seconds that the call took.
    """
    from transformers import GenerationConfig

    ends = frozenset() if params.ignore_eos else target.eos_tokens
    options: dict[str, Any] = {
        **defaults,
        "max_new_tokens": params.max_new_tokens,
        "do_sample": params.temperature > 0,
        "eos_token_id": sorted(ends) or None,
        "pad_token_id": min(ends, default=0),  # `until_end` cuts it off again
    }
    if params.temperature > 0:
        # top_k has a default there, which 0 turns off.
        options |= {"temperature": params.temperature, "top_k": params.top_k}
        options |= {"top_p": params.top_p, "min_p": params.min_p or None}
    if params.stop:
        options["stop_strings"] = list(params.stop)
    if lookup:
        options["prompt_lookup_num_tokens"] = lookup
    ids, mask = left_padded(texts, target.device)
    tokenizer = target.tokenizer if params.stop else None
    with (
        target.stock() as model,
        configured(model, GenerationConfig(**options)),
        _seeded(target, params.seed),
    ):
        started = time.perf_counter()
        out = model.generate(ids, attention_mask=mask, tokenizer=tokenizer)
        answers = out[:, ids.shape[1] :].tolist()
        seconds = time.perf_counter() - started
    return [until_end(answer, ends) for answer in answers], seconds


@contextmanager
def configured(model: Any, config: Any) -> Iterator[None]:
    """Let a generation config stand alone: `generate` fills what it lacks from the model's."""
    kept, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = kept


@contextmanager
def _seeded(target: Target, seed: int | None) -> Iterator[None]:
    """Seed the global generators, which `generate` draws from, and put them back."""
    devices = [target.device] if target.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(fresh_seed() if seed is None else seed)
        yield


def until_end(tokens: Sequence[int], ends: frozenset[int]) -> tuple[int, ...]:
    """Return the tokens up to the first that ends a text, that one included."""
    stop = next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tuple(tokens[:stop])


def left_padded(texts: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Return ids and mask, int64 ``[P, L]`` both."""
    longest = max(len(text) for text in texts)
    ids = [[0] * (longest - len(text)) + list(text) for text in texts]
    mask = [[0] * (longest - len(text)) + [1] * len(text) for text in texts]
    shape = (len(texts), longest)
    return (
        torch.tensor(ids, dtype=torch.int64, device=device).view(shape),
        torch.tensor(mask, dtype=torch.int64, device=device).view(shape),
    )

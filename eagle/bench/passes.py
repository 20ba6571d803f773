"""The target's own passes, by transformers alone: its forward, its attention, its cache.

Nothing here goes through this library's masks, positions or caches, so that a mistake in those
cannot excuse itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from eagle.bench.stock import configured, left_padded, until_end
from eagle.target import Target

__all__ = ["cached_passes", "full_pass", "stock_answers"]


@torch.inference_mode()
def full_pass(target: Target, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Return the logits ``[T, V]`` that an answer's T tokens are chosen by, from one forward.

    Args:
        target: whose model is run, over one unpadded text without a cache.
        prompt: ids, at least one.
        answer: ids, at least one. Row t of the result is what follows ``answer[:t]``.
    """
    ids = torch.tensor([[*prompt, *answer[:-1]]], device=target.device)
    with target.stock() as model:
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits[0, -len(answer) :]


@torch.inference_mode()
def cached_passes(
    target: Target,
    prompts: Sequence[Sequence[int]],
    owner: Sequence[int],
    answers: Tensor,
    width: int,
) -> Iterator[tuple[int, Tensor]]:
    """Read answers over transformers' own cache, in passes of a given width.

    Args:
        target: whose model is run.
        prompts: ids, at least one each; padded on the left, as `generate` wants a batch.
        owner: for each of R answers, which prompt it belongs to.
        answers: ids ``[R, T]``, padded on the right with any valid id.
        width: tokens in one pass; 1 is how text is generated.

    Yields:
        ``(start, logits)``: logits ``[R, width, V]`` that the tokens from *start* on are chosen
        by. The last piece may be narrower.
    """
    from transformers import DynamicCache

    device = target.device
    rows = torch.tensor(owner, device=device)
    ids, mask = left_padded([prompt[:-1] for prompt in prompts], device)
    lengths = mask.sum(1)
    with target.stock() as model:
        cache = DynamicCache(config=model.config)
        if ids.shape[1]:
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            model.get_decoder()(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            cache.batch_select_indices(rows)
    last = torch.tensor([prompt[-1] for prompt in prompts], device=device)[rows]
    inputs = torch.cat((last[:, None], answers[:, :-1].to(device)), 1)
    for start in range(0, inputs.shape[1], width):
        piece = inputs[:, start : start + width]
        end = start + piece.shape[1]
        seen = torch.cat((mask[rows], mask.new_ones(len(rows), end)), 1)
        # Entered anew for every piece: between two, the caller may run other passes.
        with target.stock() as model:
            out = model(
                input_ids=piece,
                attention_mask=seen,
                position_ids=lengths[rows, None] + torch.arange(start, end, device=device),
                past_key_values=cache,
                use_cache=True,
            )
        yield start, out.logits


@torch.inference_mode()
def stock_answers(
    target: Target,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    batch: int,
    progress: Callable[[int], None],
) -> list[tuple[int, ...]]:
    """Answer prompts greedily with transformers' own `generate`.

    Args:
        target: whose model is used.
        prompts: ids, at least one each.
        limits: longest answer of each.
        batch: prompts in one call; padded on the left where they are several.
        progress: called with the number of prompts that a call has answered.
    """
    from transformers import GenerationConfig

    ends = sorted(target.eos_tokens)
    answers: list[tuple[int, ...]] = []
    for start in range(0, len(prompts), batch):
        some, most = prompts[start : start + batch], limits[start : start + batch]
        ids, mask = left_padded(some, target.device)
        config = GenerationConfig(
            max_new_tokens=max(most),
            do_sample=False,
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0,
        )
        with target.stock() as model, configured(model, config):
            out = model.generate(ids, attention_mask=mask)
        for tokens, limit in zip(out[:, ids.shape[1] :].tolist(), most, strict=True):
            answers.append(until_end(tokens[:limit], target.eos_tokens))
        progress(len(some))
    return answers

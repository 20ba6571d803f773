"""A target that answers the turns of a conversation one after another; knows no head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from eagle.errors import DataError
from eagle.target import Target, template_tokens
from eagle.train.evaluation.answers import Answer, first_end

__all__ = ["converse"]


def converse(
    target: Target,
    turns: Sequence[str],
    max_new_tokens: int,
    longest: int,
    say: Callable[[str], None] = lambda what: None,
) -> list[Answer]:
    """Let the target answer turns greedily, each behind all that was said before.

    What a prompt has in common with the text before it is not read again. Where the chat template
    renders an answer as it was given, each prompt and answer is how the next prompt begins.

    Args:
        target: with transformers' own attention in place (`Target.stock`).
        turns: what a user says.
        max_new_tokens: longest answer.
        longest: prompt, in tokens; a conversation ends before the turn that has a longer one.
        say: is told what goes on.

    Raises:
        DataError: there is no chat template.
    """
    from transformers import DynamicCache

    tokenizer = target.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise DataError("conversations need a chat template, which the target does not have")
    ends = sorted(target.eos_tokens)
    messages: list[dict[str, str]] = []
    answers: list[Answer] = []
    cache, read = DynamicCache(), torch.empty(0, dtype=torch.int64)
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        tokens = template_tokens(tokenizer, messages, add_generation_prompt=True)
        if len(tokens) > longest:
            break
        prompt = torch.tensor(tokens)
        # The last token is read in any case: what follows it is asked for.
        shared = min(len(read), len(prompt) - 1)
        same = int((read[:shared] == prompt[:shared]).long().cumprod(0).sum())
        if (over := len(read) - same) > 0:
            cache.crop(-over)
        with torch.inference_mode():
            out = target.model.generate(
                input_ids=prompt[None].to(target.device),
                attention_mask=torch.ones_like(prompt)[None].to(target.device),
                past_key_values=cache,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                pad_token_id=ends[0] if ends else 0,
            )[0].cpu()
        read = out[: cache.get_seq_length()]
        said = out[len(prompt) :].tolist()
        answers.append(Answer(tuple(tokens), tuple(said[: first_end(said, ends) + 1])))
        content = tokenizer.decode(answers[-1].answer, skip_special_tokens=True)
        messages.append({"role": "assistant", "content": content})
        say(f"the target has answered {len(answers)} turns, {len(out):,} tokens ...")
    return answers

"""`assert_decoder_lossless`: what a whole decoder says, held against the target's own forward.

It knows decoders and targets; how a decoder's outcomes are enumerated is known to `lanes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch

from eagle.cycle import Processors
from eagle.decoding import Decoder
from eagle.plugin import Sampling, SamplingParams, probabilities
from eagle.testing.lanes import decoder_distribution

__all__ = ["assert_decoder_lossless", "decoder_distribution", "target_distribution"]

Text = tuple[int, ...]


def assert_decoder_lossless(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    processors: Processors = (),
    tokens: int = 4,
    slots: int = 256,
    tolerance: float = 1e-9,
) -> None:
    """Prove that the first tokens of a decoder have exactly the target's joint distribution.

    The decoder's distribution is enumerated through the seam of its draws; the target's is the
    product of conditionals that its plain forward gives, without a cache. The vocabulary must be
    tiny (4 or so), the target float64 in all its parts; a norm in float32, as transformers' Llama
    has it, needs a tolerance of 1e-6.

    Args:
        decoder: the decoder; it is not left in a state to go on from.
        prompts: token ids; texts of all of them share batches.
        params: temperature, top-k, top-p and min-p of all of them.
        processors: logits processors of all of them.
        tokens: how many tokens.
        slots: slots of a batch, that is outcomes enumerated at a time.
        tolerance: by how much the probability of a text may differ.

    Raises:
        AssertionError: a text has another probability than the target gives it, or what a slot
            remembers depends on more than its text.
    """
    found = decoder_distribution(
        decoder, prompts, params, processors=processors, tokens=tokens, slots=slots
    )
    for prompt, own in zip(prompts, found, strict=True):
        wanted = target_distribution(decoder, prompt, params, processors=processors, tokens=tokens)
        worst = max(wanted, key=lambda text: abs(own.get(text, 0.0) - wanted[text]))
        got = own.get(worst, 0.0)
        # Written so that NaN fails.
        if not abs(got - wanted[worst]) <= tolerance:
            raise AssertionError(
                f"not lossless: after {list(prompt)} the decoder says {list(worst)} with "
                f"probability {got:.12g}, the target with {wanted[worst]:.12g}"
            )


def target_distribution(
    decoder: Decoder,
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    processors: Processors = (),
    tokens: int = 4,
) -> dict[Text, float]:
    """Return the probability of every text of some tokens, by the target's plain forward."""
    target = decoder.target
    vocab = target.info.vocab_size
    joint: dict[Text, float] = {(): 1.0}
    for length in range(tokens):
        texts = list(product(range(vocab), repeat=length))
        ids = torch.tensor([[*prompt, *text] for text in texts], device=target.device)
        with torch.inference_mode(), target.stock() as model:
            scores = model(input_ids=ids, use_cache=False).logits[:, -1]
            for processor in processors:
                scores = processor(ids, scores)
            sampling = Sampling.of([params] * len(texts), target.device)
            table = probabilities(scores, sampling).tolist()
        joint = {
            (*text, token): joint[text] * chance if joint[text] else 0.0
            for text, row in zip(texts, table, strict=True)
            for token, chance in enumerate(row)
        }
    return joint

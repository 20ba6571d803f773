"""What a model's ``generation_config`` does to every text, as logits processors of transformers.

It knows transformers' fields and processors; it does not know how they are asked about a tree.
What is decided elsewhere: end tokens by the target, lengths and sampling by `SamplingParams`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch

from eagle.cycle import Processor, Processors
from eagle.errors import TargetError

__all__ = ["Defaults"]

log = logging.getLogger("eagle.generation")

_OFF: dict[str, tuple[object, ...]] = {
    "sequence_bias": (None,),
    "encoder_repetition_penalty": (None, 1.0),
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
}
"""Fields that are applied, in the order in which `generate` does, and where each does nothing."""

_OTHERS: dict[str, tuple[object, ...]] = {
    "guidance_scale": (None, 1, 1.0),
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0, 0.0),
    "dola_layers": (None,),
    "watermarking_config": (None,),
    "remove_invalid_values": (None, False),
    "stop_strings": (None,),
    "token_healing": (None, False),
    "max_time": (None,),
}
"""Fields that change what `generate` says at temperature 0 too, and that are not applied."""

_told: set[tuple[str, ...]] = set()


class Defaults:
    """The logits processors that a generation config stands for.

    Args:
        config: transformers' `GenerationConfig`, or None for nothing.
        name: of the target, for messages.
        device: where scores are.
        eos: tokens that end a text.

    Raises:
        TargetError: a field has a value that transformers does not take.

    Attributes:
        fields: what is applied, by transformers' names.
        left_out: names of fields that would change the text and are not applied.
    """

    def __init__(
        self, config: Any, name: str, device: torch.device | str, eos: Collection[int]
    ) -> None:
        self._device = device
        self.fields: dict[str, Any] = dict(_set(config, _OFF))
        if getattr(config, "min_new_tokens", None) is not None:
            self.fields.pop("min_length", None)  # `generate` sets it by the other, 0 too
        self.left_out = tuple(name for name, _ in _set(config, _OTHERS))
        try:
            self._processors([0, 0], 1, sorted(eos))
        except Exception as error:  # whatever transformers makes of a value that is none
            raise TargetError(
                f"the generation_config of {name!r} cannot be applied ({', '.join(self.fields)}): "
                f"{type(error).__name__}: {error}; mend it, or set "
                "target.generation_config=ignore"
            ) from error
        self._tell(name)

    def _tell(self, name: str) -> None:
        if (key := (name, *self.fields, "", *self.left_out)) in _told:
            return
        _told.add(key)
        if self.fields:
            log.warning(
                "%s: its generation_config asks for %s, which is applied as transformers' generate "
                "does: such cycles are slower, since that runs on the host "
                "(target.generation_config=ignore leaves it out)",
                name,
                ", ".join(f"{field}={value!r:.80}" for field, value in self.fields.items()),
            )
        if self.left_out:
            log.warning(
                "%s: its generation_config asks for %s, which transformers' generate applies and "
                "this decoder does not",
                name,
                ", ".join(self.left_out),
            )

    def processors(
        self, prompt: Sequence[int], limit: int, ends: Collection[int], own: Processors
    ) -> tuple[Processor, ...]:
        """Return the processors of one request, the config's before its own.

        Args:
            prompt: its token ids.
            limit: the most tokens of its answer.
            ends: tokens that end it.
            own: what it brought. One of a kind takes the place of the config's, as in `generate`.
        """
        if not self.fields:
            return tuple(own)
        kinds = {type(processor): processor for processor in reversed(own)}
        merged = [
            kinds.get(type(default), default)
            for default in self._processors(prompt, limit, sorted(ends))
        ]
        return (*merged, *(processor for processor in own if processor not in merged))

    def _processors(self, prompt: Sequence[int], limit: int, ends: list[int]) -> list[Processor]:
        """Return the processors of every field, by transformers' own conditions."""
        if not self.fields:
            return []
        import transformers as tf

        device, length = self._device, len(prompt)
        text = torch.tensor([list(prompt)], device=device)
        eos = torch.tensor(ends, device=device)
        begin = length + (length == 1 and "forced_bos_token_id" in self.fields)
        makers: dict[str, Any] = {
            "sequence_bias": tf.SequenceBiasLogitsProcessor,
            "encoder_repetition_penalty": lambda value: tf.EncoderRepetitionPenaltyLogitsProcessor(
                value, text
            ),
            "repetition_penalty": tf.RepetitionPenaltyLogitsProcessor,
            "no_repeat_ngram_size": tf.NoRepeatNGramLogitsProcessor,
            "encoder_no_repeat_ngram_size": lambda value: tf.EncoderNoRepeatNGramLogitsProcessor(
                value, text
            ),
            "bad_words_ids": lambda value: tf.NoBadWordsLogitsProcessor(
                value, eos if ends else None
            ),
            "min_length": lambda value: tf.MinLengthLogitsProcessor(value, eos, device),
            "min_new_tokens": lambda value: tf.MinNewTokensLengthLogitsProcessor(
                length, value, eos, device
            ),
            "forced_bos_token_id": tf.ForcedBOSTokenLogitsProcessor,
            "forced_eos_token_id": lambda value: tf.ForcedEOSTokenLogitsProcessor(
                length + limit, value, device
            ),
            "exponential_decay_length_penalty": lambda value: tf.ExponentialDecayLengthPenalty(
                tuple(value), eos, length
            ),
            "suppress_tokens": lambda value: tf.SuppressTokensLogitsProcessor(value, device),
            "begin_suppress_tokens": lambda value: tf.SuppressTokensAtBeginLogitsProcessor(
                value, begin, device
            ),
        }
        return [
            makers[name](value) for name, value in self.fields.items() if ends or name not in _ENDS
        ]


_ENDS = ("min_length", "min_new_tokens", "exponential_decay_length_penalty")
"""Fields that say when a text may end: they mean nothing where no token ends one."""


def _set(config: Any, known: Mapping[str, tuple[object, ...]]) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a config that do something."""
    for name, off in known.items():
        value = getattr(config, name, None)
        if not any(value is one or value == one for one in off):
            yield name, value

"""Logits processors of requests, applied at every node of a tree to that node's own prefix.

It knows tokens, logits and callables in the manner of transformers' `LogitsProcessor`; it does not
know what drafted the tree or what the scores are for. It works on the host, once per cycle, for
the slots whose request brought processors; such a cycle runs eagerly and is never captured.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PrefixConstrainedLogitsProcessor

from eagle.cycle.snapshot import Snapshot
from eagle.errors import RequestError, brief
from eagle.plugin import TokenTree

__all__ = [
    "Bound",
    "Processing",
    "Processor",
    "Processors",
    "for_request",
    "processors_of_each",
]

Processor = Callable[[Tensor, Tensor], Tensor]
"""``(input_ids [1, L], scores [1, V]) -> scores [1, V]``, as transformers' `LogitsProcessor` is.

It is asked about one text at a time, as `generate` asks about a batch of one. It must depend on its
arguments alone: it is asked about several continuations of one text, most of which are never
written. One that keeps state between calls (a count, a cache of the text so far as
classifier-free guidance has it, a generator) is refused where that shows in its attributes, unless
it says by ``any_prefix = True`` that it may be called for any prefix in any order, as one that only
remembers what it worked out may. What a function keeps in its closure shows nowhere.

One that says ``rows_apart = True`` treats each row by itself, and gets several texts of one length
in a call. One with a method ``for_request(prompt, ends)`` is asked for a processor of each
request's own, given the prompt's token ids and the tokens that end the target's texts: grammars are
such.
"""
Processors = Sequence[Processor]

_BY_ROWS = frozenset(
    f"{name}LogitsProcessor"
    for name in (
        "ForcedBOSToken", "ForcedEOSToken", "InfNanRemove", "MinLength", "MinNewTokensLength",
        "NoBadWords", "NoRepeatNGram", "RepetitionPenalty", "SequenceBias", "SuppressTokens",
        "SuppressTokensAtBegin", "Watermark",
    )
) | {
    f"{name}LogitsWarper"
    for name in ("Epsilon", "Eta", "MinP", "Temperature", "TopK", "TopP", "Typical")
} | {"ExponentialDecayLengthPenalty", "LogitNormalization"}  # fmt: skip
"""transformers' processors that treat each row by itself, so that many cost one call."""

_UNWATCHED = (FunctionType, MethodType, BuiltinFunctionType, type, torch.nn.Module)
"""What has no attributes of its own to be watched, or too large ones."""


@dataclass(frozen=True)
class Processing:
    """The processors of the slots that have any, and the texts so far.

    Processors come before temperature, top-k, top-p and min-p, in the order given, as in
    `transformers`; what all of them make of the target's logits is the distribution that the
    decoder keeps, at temperature 0 too. Draft distributions are left as they are: that costs
    acceptance where processors change much, never exactness.

    Attributes:
        slots: by slot, the text so far (prompt and answer, the root last) and its processors.
        failures: by slot, what its processors raised at the nodes of a tree: its scores are the
            target's then, and the other slots' are what they are without it.
    """

    slots: Mapping[int, tuple[Sequence[int], Processors]]
    failures: dict[int, RequestError] = field(default_factory=dict)

    def after_text(self, slot: int, logits: Tensor) -> Tensor:
        """Return the scores ``[1, V]`` of what follows a slot's text, from logits ``[1, V]``."""
        scores = _scores(logits)
        if slot not in self.slots:
            return scores
        text, processors = self.slots[slot]
        return _apply(processors, torch.tensor([list(text)], device=logits.device), scores)

    def at_nodes(self, logits: Tensor, tree: TokenTree) -> Tensor:
        """Return the scores of what follows every node.

        Args:
            logits: ``[B, N, V]``, the target's.
            tree: the tree that they belong to.

        Returns:
            Scores of the same shape, float64 for float64 logits and float32 otherwise; where
            processors raise, or return something else than scores, see `failures`.
        """
        scores = _scores(logits)
        for slot, (text, processors) in self.slots.items():
            try:
                _process(
                    scores[slot],
                    tree.tokens[slot],
                    tree.parents[slot],
                    torch.tensor([list(text)], device=logits.device),
                    processors,
                )
            except RequestError as error:
                self.failures[slot] = error
                scores[slot] = logits[slot]
        return scores


def _process(
    scores: Tensor, tokens: Tensor, parents: Tensor, ids: Tensor, processors: Processors
) -> None:
    """Process one slot's scores ``[N, V]`` in place, level by level from the root."""
    nodes = torch.zeros(1, dtype=torch.int64, device=scores.device)
    while len(nodes):
        scores[nodes] = _apply(processors, ids, scores[nodes])
        child, above = (parents[:, None] == nodes).nonzero(as_tuple=True)
        # A prefix that the processors themselves rule out is none that they have to understand:
        # one that follows a grammar may well raise on it. No rule accepts such a node.
        possible = scores[parents[child], tokens[child]] > -torch.inf
        child, above = child[possible], above[possible]
        ids = torch.cat((ids[above], tokens[child, None]), 1)
        nodes = child


def _scores(logits: Tensor) -> Tensor:
    """Return a copy in the precision that `transformers` processes logits in, or a better one."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)


def _apply(processors: Processors, ids: Tensor, scores: Tensor) -> Tensor:
    for processor in processors:
        bound = processor if isinstance(processor, Bound) else Bound(processor)
        scores = bound(ids, scores)
    return scores


class Bound:
    """A processor as one request uses it: asked about one text at a time, and watched.

    Args:
        processor: what is asked.
    """

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        known = type(processor).__module__.startswith("transformers.generation.")
        # A tensor here has a length for every row of a batch, of which there is one.
        lengths = getattr(processor, "prompt_ignore_length", None)
        self._by_rows = (
            known and type(processor).__name__ in _BY_ROWS and not isinstance(lengths, Tensor)
        ) or getattr(processor, "rows_apart", False) is True
        self._watched = not (
            self._by_rows
            or getattr(processor, "any_prefix", False) is True
            or isinstance(processor, _UNWATCHED)
            or not hasattr(processor, "__dict__")
        )
        self._before: Snapshot | None = None

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Return the processed scores ``[n, V]`` of n texts ``[n, L]``.

        Raises:
            RequestError: the processor raised, returned something else, or keeps state.
        """
        if self._by_rows:
            return self._ask(ids, scores)
        rows = zip(torch.split(ids, 1), torch.split(scores, 1), strict=True)
        return torch.cat([self._ask(text, row.clone()) for text, row in rows])

    def _ask(self, ids: Tensor, scores: Tensor) -> Tensor:
        name, shape = _name(self._processor), scores.shape
        try:
            found = self._processor(ids, scores)
        except Exception as error:
            raise RequestError(
                f"the logits processor {name} raised {type(error).__name__}: {error}"
            ) from error
        if not isinstance(found, Tensor) or found.shape != shape:
            what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise RequestError(
                f"the logits processor {name} returned {what}, where scores of shape "
                f"[n, V] = {list(shape)} are needed"
            )
        if self._watched:
            self._watch(name)
        return found.to(scores)

    def _watch(self, name: str) -> None:
        """Refuse a processor whose attributes go on changing behind its first call."""
        state = vars(self._processor)
        if self._before is None:  # what is made once, of the scores' size say, is made by then
            self._before = Snapshot(state)
        elif (key := self._before.changed(state)) is not None:
            raise RequestError(
                f"the logits processor {name} keeps state between calls (its attribute {key!r} "
                "changed), but it is asked about continuations of a text that are never written; "
                "let it depend on input_ids alone, or set any_prefix = True on it if it may be "
                "called for any prefix in any order"
            )


def _name(processor: Processor) -> str:
    return getattr(processor, "__name__", type(processor).__name__)


def for_request(
    processors: Processors, prompt: Sequence[int], ends: Collection[int]
) -> tuple[Processor, ...]:
    """Return processors as one request has them, of those that each request has its own of.

    Args:
        processors: as given.
        prompt: the request's token ids.
        ends: tokens that end the target's texts.
    """
    return tuple(
        cast("Processor", make(prompt, ends))
        if callable(make := getattr(processor, "for_request", None))
        else processor
        for processor in processors
    )


def processors_of_each(
    processors: Processors | Sequence[Processors | None] | None, count: int
) -> list[tuple[Processor, ...]]:
    """Return the processors of each of *count* prompts.

    Args:
        processors: one sequence for all prompts (`LogitsProcessorList` is one), or one sequence
            or None for each prompt, or None. A `PrefixConstrainedLogitsProcessor` for all prompts
            gets the prompt's index as its ``batch_id``; in a sequence of its own, 0.
        count: how many prompts there are.

    Raises:
        RequestError: there are not as many sequences as prompts, or something is no processor.
    """
    if callable(processors) and not isinstance(processors, Sequence):
        raise RequestError("processors are given as a list, also where there is only one")
    if processors is not None and not isinstance(processors, Sequence):
        raise RequestError(
            f"processors are given as a list of them, not as {type(processors).__name__}"
        )
    given = list(processors or ())
    # A LogitsProcessorList can be called as well; here it is a sequence first.
    if not any(item is None or isinstance(item, Sequence) for item in given):
        shared = _checked(given)
        return [tuple(_of_prompt(own, index) for own in shared) for index in range(count)]
    if len(given) != count:
        raise RequestError(
            f"{len(given)} sequences of logits processors were given for {count} prompts"
        )
    return [_checked(own or ()) for own in given]


def _of_prompt(processor: Processor, index: int) -> Processor:
    """Return a processor that all prompts share as the prompt of that index has it."""
    allowed = getattr(processor, "_prefix_allowed_tokens_fn", None)
    if index == 0 or allowed is None:
        return processor
    own: Any = copy.copy(processor)  # one text at a time, its batch_id would always be 0
    own._prefix_allowed_tokens_fn = lambda batch_id, ids: allowed(index, ids)
    return cast("Processor", own)


def _checked(own: object) -> tuple[Processor, ...]:
    if isinstance(own, Sequence) and all(callable(item) for item in own):
        for item in own:
            beams = getattr(item, "_num_beams", 1)
            if isinstance(item, PrefixConstrainedLogitsProcessor) and beams != 1:
                raise RequestError(
                    f"{_name(item)} was made for {beams} beams; nothing is searched with beams "
                    "here, so it needs num_beams=1"
                )
        return tuple(own)
    raise RequestError(
        f"{brief(own)} is no list of logits processors: what can be called with "
        "(input_ids, scores), as those of transformers are"
    )

"""Logits processors of requests, applied at every node of a tree to that node's own prefix.

It knows tokens, logits and callables in the manner of transformers' `LogitsProcessor`; it does not
know what drafted the tree or what the scores are for. It works on the host, once per cycle, for
the slots whose request brought processors; such a cycle runs eagerly and is never captured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.errors import RequestError
from eagle.plugin import TokenTree

__all__ = ["Processing", "Processor", "Processors", "processors_of_each"]

Processor = Callable[[Tensor, Tensor], Tensor]
"""``(input_ids [n, L], scores [n, V]) -> scores [n, V]``, as transformers' `LogitsProcessor` is.

It must depend on its arguments alone: it is asked about several continuations of one text at a
time, most of which are never written, so one that counts its calls or remembers the last one
(a watermark with state, classifier-free guidance with its own cache) does not work here.
"""
Processors = Sequence[Processor]


@dataclass(frozen=True)
class Processing:
    """The processors of the slots that have any, and the texts so far.

    Processors come before temperature, top-k, top-p and min-p, in the order given, as in
    `transformers`; what all of them make of the target's logits is the distribution that the
    decoder keeps, at temperature 0 too. Draft distributions are left as they are: that costs
    acceptance where processors change much, never exactness.

    Attributes:
        slots: by slot, the text so far (prompt and answer, the root last) and its processors.
    """

    slots: Mapping[int, tuple[Sequence[int], Processors]]

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
            Scores of the same shape, float64 for float64 logits and float32 otherwise.

        Raises:
            RequestError: a processor raised, or returned something else than scores.
        """
        scores = _scores(logits)
        for slot, (text, processors) in self.slots.items():
            _process(
                scores[slot],
                tree.tokens[slot],
                tree.parents[slot],
                torch.tensor([list(text)], device=logits.device),
                processors,
            )
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
        try:
            found = processor(ids, scores)
        except Exception as error:
            raise RequestError(
                f"the logits processor {_name(processor)} raised {type(error).__name__}: {error}"
            ) from error
        if not isinstance(found, Tensor) or found.shape != scores.shape:
            what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise RequestError(
                f"the logits processor {_name(processor)} returned {what}, where scores of shape "
                f"[n, V] = {list(scores.shape)} are needed"
            )
        scores = found.to(scores)
    return scores


def _name(processor: Processor) -> str:
    return getattr(processor, "__name__", type(processor).__name__)


def processors_of_each(
    processors: Processors | Sequence[Processors | None] | None, count: int
) -> list[tuple[Processor, ...]]:
    """Return the processors of each of *count* prompts.

    Args:
        processors: one sequence for all prompts (`LogitsProcessorList` is one), or one sequence
            or None for each prompt, or None.
        count: how many prompts there are.

    Raises:
        RequestError: there are not as many sequences as prompts, or something is no processor.
    """
    if callable(processors) and not isinstance(processors, Sequence):
        raise RequestError("processors are given as a list, also where there is only one")
    given = list(processors or ())
    # A LogitsProcessorList can be called as well; here it is a sequence first.
    if not any(item is None or isinstance(item, Sequence) for item in given):
        return [_checked(given)] * count
    if len(given) != count:
        raise RequestError(
            f"{len(given)} sequences of logits processors were given for {count} prompts"
        )
    return [_checked(own or ()) for own in given]


def _checked(own: object) -> tuple[Processor, ...]:
    if isinstance(own, Sequence) and all(callable(item) for item in own):
        return tuple(own)
    raise RequestError(
        f"{own!r} is no list of logits processors: what can be called with (input_ids, scores), "
        "as those of transformers are"
    )

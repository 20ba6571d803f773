"""A cascade: of several drafters, the first that is sure enough drafts; knows no kind of drafter.

Which one that is follows on the host from committed text alone, so what is drawn decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from eagle.plugin import (
    AttentionBackend,
    BuildContext,
    Committed,
    ComponentSpec,
    Drafted,
    DraftHead,
    LearnsVerified,
    NamesLayers,
    OfferingHead,
    OwnVocabulary,
    Pages,
    ParallelHead,
    RequestAware,
    Role,
    SpecError,
    Strategy,
    StrategyConfig,
    TargetInfo,
    TargetModel,
)

__all__ = ["CASCADE", "Cascade", "CascadeConfig"]


class CascadeConfig(StrategyConfig):
    """Settings of `cascade`."""

    drafters: Annotated[
        tuple[ComponentSpec, ...],
        Field(min_length=2, description="heads, in order; all but the last say what they offer"),
    ] = (ComponentSpec(name="prompt-lookup"), ComponentSpec(name="auto"))


class Cascade:
    """Asks each drafter what it offers; the last one drafts where none of the others offers any.

    All of them absorb what is committed. A state is those of all drafters side by side.

    Raises:
        SpecError: drafters that cannot be put together so.
    """

    def __init__(self, config: CascadeConfig, context: BuildContext) -> None:
        self._heads: list[DraftHead] = [context.build(Role.HEAD, one) for one in config.drafters]
        for spec, head in zip(config.drafters, self._heads, strict=True):
            last = head is self._heads[-1]
            if not last and not isinstance(head, OfferingHead):
                raise SpecError(
                    f"the drafter {spec.name!r} never says what it is sure of, so none behind it "
                    "would ever draft: put it last"
                )
            if isinstance(head, ParallelHead):
                raise SpecError(
                    f"the drafter {spec.name!r} drafts all levels in one pass, which a cascade "
                    "cannot ask for; use one that drafts level by level"
                )
        self._last = self._heads[-1]
        self._told = [head for head in self._heads if isinstance(head, OfferingHead)]
        self.offering: DraftHead = _Sure(self)

    @property
    def capturable(self) -> bool:
        """Whether all of its drafters are."""
        return all(head.capturable for head in self._heads)

    @property
    def paged(self) -> bool:
        """Whether all of its drafters remember texts by rows alone."""
        return all(getattr(head, "paged", False) for head in self._heads)

    @property
    def packs(self) -> bool:
        """Whether all of its drafters can be told of several prompts at once."""
        return all(getattr(head, "packs", getattr(head, "paged", False)) for head in self._heads)

    def feature_size(self, target: TargetInfo) -> int:
        """Return what the last drafter consumes; where layers are named, what all of them do."""
        sizes = [head.feature_size(target) for head in self._heads]
        layers = self.feature_layers(target)
        return sizes[-1] if layers is None else len(layers) * target.hidden_size

    def feature_layers(self, target: TargetInfo) -> tuple[int, ...] | None:
        """Return the layers that drafters name, and the last hidden state for those without any."""
        asked = self._asked(target)
        if not any(asked):
            return None
        return tuple(dict.fromkeys(layer for own in asked for layer in own or (target.layers,)))

    def _asked(self, target: TargetInfo) -> list[tuple[int, ...] | None]:
        return [
            head.feature_layers(target) if isinstance(head, NamesLayers) else None
            for head in self._heads
        ]

    def state_size(self, target: TargetInfo) -> int:
        """Return the size of all drafters' states together."""
        return sum(head.state_size(target) for head in self._heads)

    def load(self, target: TargetModel, attention: AttentionBackend) -> None:
        """Load all drafters."""
        for head in self._heads:
            head.load(target, attention)
        self._sizes = [head.state_size(target.info) for head in self._heads]
        self._vocab, self._device = target.info.vocab_size, target.device
        self._layers = self.feature_layers(target.info)
        self._named = [own or (target.info.layers,) for own in self._asked(target.info)]

    def allocate(self, slots: int, rows: int, pages: Pages | None = None) -> None:
        """Allocate all drafters' caches, and who drafts in which slot."""
        for head in self._heads:
            if pages is not None:
                head.allocate(slots, rows, pages)
            else:
                head.allocate(slots, rows)
        self._sent = [len(self._heads) - 1] * slots
        self._chosen = torch.tensor(self._sent, device=self._device)
        self._learn = [
            isinstance(head, LearnsVerified) and bool(head.verified_memory) for head in self._heads
        ]
        self._ids = [
            head.draft_vocab if isinstance(head, OwnVocabulary) else None for head in self._heads
        ]

    @property
    def verified_memory(self) -> tuple[Tensor, ...]:
        """That of all drafters that have some; see `eagle.plugin.LearnsVerified`."""
        return tuple(
            part
            for head in self._heads
            if isinstance(head, LearnsVerified)
            for part in head.verified_memory
        )

    def absorb(self, committed: Committed) -> Tensor:
        """See `eagle.plugin.DraftHead.absorb`."""
        each = zip(self._heads, self._learn, self._seen(committed.features), strict=True)
        return torch.cat(
            [
                head.absorb(
                    replace(
                        committed, features=own, verified=committed.verified if learns else None
                    )
                )
                for head, learns, own in each
            ],
            2,
        )

    def _seen(self, features: Tensor) -> Iterator[Tensor]:
        """Yield what each drafter sees of the features: what it would see by itself."""
        layers = self._layers
        if layers is None:
            yield from (features for _ in self._heads)
            return
        parts = features.chunk(len(layers), -1)
        for named in self._named:
            own = [parts[layers.index(layer)] for layer in named]
            yield own[0] if len(own) == 1 else torch.cat(own, -1)

    def extend(self, drafted: Drafted) -> Tensor:
        """See `eagle.plugin.DraftHead.extend`: all drafters take in what any of them drafted."""
        return self.extended(drafted, self._heads)

    def logits(self, states: Tensor) -> Tensor:
        """Return every slot's logits of the drafter that is its own in this cycle."""
        return self.chosen(states, self._heads)

    def extended(self, drafted: Drafted, heads: Sequence[DraftHead]) -> Tensor:
        """Extend some of the drafters; the states of the others stay what they were."""
        parts = torch.split(drafted.states, self._sizes, 2)
        return torch.cat(
            [
                head.extend(replace(drafted, states=part)) if head in heads else part
                for head, part in zip(self._heads, parts, strict=True)
            ],
            2,
        )

    def chosen(self, states: Tensor, heads: Sequence[DraftHead]) -> Tensor:
        """Return the logits of each slot's drafter, if among some, or else of the last of these."""
        parts = torch.split(states, self._sizes, 2)
        chosen = self._chosen[: len(states), None, None]
        found: Tensor | None = None
        for number in reversed(range(len(self._heads))):
            if self._heads[number] in heads:
                own = self._wide(self._heads[number].logits(parts[number]), self._ids[number])
                found = own if found is None else own.where(chosen == number, found)
        assert found is not None
        return found

    def _wide(self, logits: Tensor, ids: Tensor | None) -> Tensor:
        if ids is None:
            return logits
        wide = logits.new_full((*logits.shape[:2], self._vocab), -torch.inf)
        return wide.index_copy(2, ids, logits)

    def begin_request(self, slot: int, prompt: Sequence[int]) -> None:
        """See `eagle.plugin.RequestAware`."""
        for head in self._heads:
            if isinstance(head, RequestAware):
                head.begin_request(slot, prompt)

    def end_request(self, slot: int, text: Sequence[int]) -> None:
        """See `eagle.plugin.RequestAware`."""
        for head in self._heads:
            if isinstance(head, RequestAware):
                head.end_request(slot, text)

    def follow(self, slot: int, tokens: Sequence[int]) -> None:
        """See `eagle.plugin.OfferingHead`."""
        for head in self._told:
            head.follow(slot, tokens)

    def offer(self, slots: int) -> Sequence[int]:
        """Settle who drafts in which slot, and return for how many levels, 0 for the last one."""
        offers = [list(head.offer(slots)) for head in self._told if head is not self._last]
        last = len(self._heads) - 1
        chosen = [
            next((number for number, own in enumerate(offers) if own[slot]), last)
            for slot in range(slots)
        ]
        if self._last in self._told:
            offers.append(list(self._last.offer(slots)))
        if chosen != self._sent[:slots]:
            self._chosen[:slots].copy_(torch.tensor(chosen))
            self._sent[:slots] = chosen
        return [
            offers[number][slot] if number < len(offers) else 0
            for slot, number in enumerate(chosen)
        ]


class _Sure:
    """The drafters of a cascade that say what they offer; the last one rests."""

    def __init__(self, cascade: Cascade) -> None:
        self._cascade = cascade

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cascade, name)

    def extend(self, drafted: Drafted) -> Tensor:
        return self._cascade.extended(drafted, self._cascade._told)

    def logits(self, states: Tensor) -> Tensor:
        return self._cascade.chosen(states, self._cascade._told)


CASCADE: Strategy[DraftHead] = Strategy(
    name="cascade",
    config=CascadeConfig,
    build=Cascade,
    description="of several drafters, the first that is sure enough",
)

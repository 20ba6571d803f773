"""Looking on while a decoder runs: a cycle's tree, what both models think of it, what was accepted.

A watched decoder is an ordinary one whose tree builder and acceptance rule are stand-ins that
note what goes through them: the loop knows nothing of it, and other decoders pay nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eagle.decoding.decoder import Decoder
from eagle.decoding.resolving import resolve_for
from eagle.errors import RequestError
from eagle.plugin import (
    Acceptance,
    AcceptanceRule,
    Drafter,
    Draws,
    FittedTree,
    Law,
    Registry,
    Sampling,
    Seen,
    TargetProbs,
    TokenTree,
    TreeBuilder,
    TreeShape,
    VaryingTree,
    default_registry,
    probabilities,
)
from eagle.spec import DecoderSpec, Resolved
from eagle.target import Target, load_target

__all__ = ["Trace", "TracedCycle", "TracedNode"]


@dataclass(frozen=True)
class TracedNode:
    """A node of one slot's token tree.

    Attributes:
        index: its place in the tree; 0 is the root.
        parent: index of the node above it, -1 for the root.
        depth: 0 for the root.
        rank: order among its siblings.
        token: its token.
        draft_prob: what the draft head gave it, given its parent. None for the root, and where
            the tree builder took the candidate from elsewhere.
        target_prob: what the target gives it, given its parent; None for the root.
        accepted: it is on the accepted path; the root always is.
    """

    index: int
    parent: int
    depth: int
    rank: int
    token: int
    draft_prob: float | None
    target_prob: float | None
    accepted: bool


@dataclass(frozen=True)
class TracedCycle:
    """One cycle of one slot.

    Attributes:
        nodes: the tree, the root first, without padding; `index` may skip numbers.
        last: index of the last accepted node, which the bonus token follows.
        bonus: the bonus token.
        bonus_prob: what the target gave it.
        temperature: at which the probabilities are: the request's, or 1 where that is 0.
    """

    nodes: tuple[TracedNode, ...]
    last: int
    bonus: int
    bonus_prob: float
    temperature: float


class Trace:
    """Keeps the latest cycle of the decoder that it watches.

    Make the decoder with `decoder`, ask it for a stream, and after any event but a request's
    first (the prompt's own pass) call `cycle`.
    """

    def __init__(self) -> None:
        self._drafts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._tree: TokenTree | None = None
        self._target: TargetProbs | None = None
        self._choice: Acceptance | None = None

    def decoder(
        self,
        spec: DecoderSpec,
        registry: Registry | None = None,
        *,
        target: Target | None = None,
        nodes: int | None = None,
    ) -> Decoder:
        """Build a watched decoder; see `Decoder.from_spec` for errors.

        Args:
            spec: its spec.
            registry: strategies to choose from.
            target: a loaded target to use instead of the spec's.
            nodes: refuse trees that have more.
        """
        resolved = resolve_for(spec, registry or default_registry(), target)
        target = target or load_target(spec.target, spec.folder, spec.runtime.quantize)
        if isinstance(resolved.tree, FittedTree):
            # A watched cycle is never captured: its costs would not be those of others.
            resolved = Decoder(resolved, target).resolved
        if nodes is not None and resolved.tree.shape.nodes > nodes:
            raise RequestError(
                f"the tree has {resolved.tree.shape.nodes} nodes; at most {nodes} are looked at"
            )
        return Decoder(self.watch(resolved), target)

    @staticmethod
    def beside(
        base: Decoder, spec: DecoderSpec, *, plain: bool = False, nodes: int | None = None
    ) -> tuple[Decoder, Trace | None]:
        """Build a watched decoder that shares another one's target, in all processes that hold it.

        Args:
            base: the other decoder. Where several processes hold its target: the one of an open
                engine, in the process that leads; the others build and do what this one does.
            spec: its spec, but for the target.
            plain: do not watch it; there is no trace then.
            nodes: refuse trees that have more.

        Raises:
            RequestError: no engine leads the processes that hold the target.
            EagleError: see `Decoder.from_spec`.
        """
        from eagle.decoding.leading import Look, beside  # which makes traces in the others

        return beside(base, Look(spec, plain, nodes))

    def watch(self, resolved: Resolved) -> Resolved:
        """Return a spec's components with stand-ins that note what goes through them."""
        # A captured cycle would not come by here again, whoever asks for one.
        runtime = resolved.spec.runtime.model_copy(update={"cuda_graph": False})
        return replace(
            resolved,
            spec=resolved.spec.model_copy(update={"runtime": runtime}),
            tree=_watched(resolved.tree, self),
            acceptance=_WatchedRule(resolved.acceptance, self),
        )

    def cycle(self, slot: int = 0) -> TracedCycle:
        """Return the latest cycle of a slot. It reads from the device, unlike the cycle itself.

        Raises:
            LookupError: there has been no cycle yet.
        """
        if self._tree is None or self._target is None or self._choice is None:
            raise LookupError("no cycle has run yet")
        tree, sampling = self._tree, _softened(self._target.sampling)
        target = probabilities(self._target.logits, sampling)[slot]
        drafts = self._by_path(slot, sampling, tree, target.shape[-1])
        accepted: list[int] = self._choice.path[slot, : int(self._choice.count[slot]) + 1].tolist()
        columns = (tree.tokens, tree.parents, tree.depths, tree.ranks)
        paths: dict[int, tuple[int, ...]] = {}
        nodes = []
        for index, (token, parent, depth, rank) in enumerate(
            zip(*(column[slot].tolist() for column in columns), strict=True)
        ):
            if index and parent < 0:
                continue  # padding
            above = drafts.get(paths[parent]) if index else None
            paths[index] = (*paths[parent], token) if index else ()
            nodes.append(
                TracedNode(
                    index=index,
                    parent=parent,
                    depth=depth,
                    rank=rank,
                    token=token,
                    draft_prob=None if above is None else above[token].item(),
                    target_prob=target[parent, token].item() if index else None,
                    accepted=index in accepted,
                )
            )
        bonus = int(self._choice.bonus[slot])
        return TracedCycle(
            nodes=tuple(nodes),
            last=accepted[-1],
            bonus=bonus,
            bonus_prob=target[accepted[-1], bonus].item(),
            temperature=sampling.temperature[slot].item(),
        )

    def _by_path(
        self, slot: int, sampling: Sampling, tree: TokenTree, vocab: int
    ) -> dict[tuple[int, ...], Tensor]:
        """Return draft distributions by the drafted tokens that they follow, as the target's ids.

        What a tree builder expands is numbered in its own way; the text that leads to a node is
        what expansions and nodes have in common.
        """
        found: dict[tuple[int, ...], Tensor] = {}
        paths: list[tuple[int, ...]] = []
        for tokens, parents, logits in self._drafts:
            probs = tree.widened(probabilities(logits, sampling)[slot], vocab)
            if tree.draft_vocab is not None:
                tokens = tree.draft_vocab[tokens]
            if not tokens.shape[1]:
                found[()] = probs[0]
                continue
            # Nodes of one call cannot stand above each other, so their parents are all known.
            new = [
                (*(paths[parent] if parent >= 0 else ()), token)
                for token, parent in zip(tokens[slot].tolist(), parents[slot].tolist(), strict=True)
            ]
            paths += new
            found |= dict(zip(new, probs, strict=True))
        return found

    def begin(self) -> None:
        """Forget the cycle before; called when a tree is begun."""
        self._drafts, self._tree, self._target, self._choice = [], None, None, None

    def drafted(self, tokens: Tensor, parents: Tensor, logits: Tensor) -> None:
        """Note what the draft head was asked and what it said; no tokens for the root."""
        self._drafts.append((tokens, parents, logits))

    def judged(self, tree: TokenTree, target: TargetProbs, choice: Acceptance) -> None:
        """Note what the acceptance rule was asked and what it chose."""
        self._tree, self._target, self._choice = tree, target, choice


def _softened(sampling: Sampling) -> Sampling:
    """Return sampling parameters at temperature 1 where they are greedy: 0 and 1 say little."""
    warm = sampling.temperature > 0
    return replace(
        sampling,
        temperature=torch.where(warm, sampling.temperature, 1),
        min_p=torch.where(warm, sampling.min_p, 0),
        greedy=False,
    )


class _WatchedDrafter:
    """A drafter that notes its answers."""

    def __init__(self, drafter: Drafter, trace: Trace) -> None:
        self._drafter, self._trace = drafter, trace

    @property
    def sampling(self) -> Sampling:
        return self._drafter.sampling

    @property
    def root(self) -> Tensor:
        return self._drafter.root

    @property
    def draft_vocab(self) -> Tensor | None:
        return self._drafter.draft_vocab

    def begin(self) -> Tensor:
        logits = self._drafter.begin()
        none = self.root[:, None][:, :0]
        self._trace.drafted(none, none, logits)
        return logits

    def levels(self) -> Tensor | None:
        return self._drafter.levels()

    def expand(self, tokens: Tensor, parents: Tensor, *, level: int | None = None) -> Tensor:
        logits = self._drafter.expand(tokens, parents, level=level)
        self._trace.drafted(tokens, parents, logits)
        return logits


class _WatchedTree:
    """A tree builder whose drafter is watched."""

    capturable = False  # a captured cycle would not come by here again

    def __init__(self, builder: TreeBuilder, trace: Trace) -> None:
        self._builder, self._trace = builder, trace

    @property
    def shape(self) -> TreeShape:
        return self._builder.shape

    @property
    def laws(self) -> frozenset[Law]:
        return self._builder.laws

    @property
    def uniforms(self) -> int:
        return self._builder.uniforms

    @property
    def offered(self) -> bool:
        return getattr(self._builder, "offered", False)

    def build(self, drafter: Drafter, draws: Draws) -> TokenTree:
        self._trace.begin()
        return self._builder.build(_WatchedDrafter(drafter, self._trace), draws)


class _WatchedVarying(_WatchedTree):
    """Trees of varying shape, all of whose builders are watched."""

    def __init__(self, builder: TreeBuilder, varying: VaryingTree, trace: Trace) -> None:
        super().__init__(builder, trace)
        self._varying = varying
        self.alternatives = [_WatchedTree(one, trace) for one in varying.alternatives]

    def choose(self, seen: Seen) -> int:
        return self._varying.choose(seen)


def _watched(builder: TreeBuilder, trace: Trace) -> _WatchedTree:
    if isinstance(builder, VaryingTree):
        return _WatchedVarying(builder, builder, trace)
    return _WatchedTree(builder, trace)


class _WatchedRule:
    """An acceptance rule whose question and answer are noted."""

    capturable = False

    def __init__(self, rule: AcceptanceRule, trace: Trace) -> None:
        self._rule, self._trace = rule, trace

    @property
    def lossless(self) -> bool:
        return self._rule.lossless

    @property
    def laws(self) -> frozenset[Law]:
        return self._rule.laws

    def uniforms(self, shape: TreeShape) -> int:
        return self._rule.uniforms(shape)

    def accept(
        self, tree: TokenTree, target: TargetProbs, shape: TreeShape, draws: Draws
    ) -> Acceptance:
        choice = self._rule.accept(tree, target, shape, draws)
        self._trace.judged(tree, target, choice)
        return choice

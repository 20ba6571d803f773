"""Checks that hold a component to its role's contract; each raises AssertionError saying how not.

They test what the loop relies on and cannot afford to check itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eagle.cache import Step
from eagle.plugin import (
    Acceptance,
    AcceptanceRule,
    AttentionBackend,
    Committed,
    Drafted,
    Drafter,
    DraftHead,
    FeatureExtractor,
    Law,
    LearnsVerified,
    OfferingHead,
    OwnVocabulary,
    ParallelHead,
    RequestAware,
    Sampling,
    SamplingParams,
    Scores,
    Seen,
    TargetModel,
    TargetProbs,
    TokenTree,
    TreeBuilder,
    TreeShape,
    UniformDraws,
    VaryingTree,
    ancestor_mask,
)
from eagle.testing.capture import assert_capturable, no_chance_of_its_own
from eagle.testing.drafters import RandomDrafter
from eagle.testing.learning import check_learning

if TYPE_CHECKING:
    from hypothesis import settings as Settings

__all__ = [
    "check_acceptance_rule",
    "check_attention_backend",
    "check_draft_head",
    "check_feature_extractor",
    "check_tree_builder",
]


def check_feature_extractor(extractor: FeatureExtractor, target: TargetModel) -> None:
    """Check that features have the declared size and that each belongs to one token alone.

    What is declared capturable reads nothing on the host.
    """
    info, wanted = target.info, extractor.feature_size(target.info)
    last = torch.randn(2, 5, info.hidden_size)
    hidden = [torch.randn(2, 5, info.hidden_size) for _ in extractor.layers]
    for layer in extractor.layers:
        assert -info.layers - 1 <= layer <= info.layers, f"the target has no hidden state {layer}"
    features = extractor.extract(last, hidden)
    assert features.shape == (2, 5, wanted), f"features are {list(features.shape)}, not F={wanted}"
    if extractor.capturable:
        assert_capturable(lambda: extractor.extract(last, hidden))
    part = extractor.extract(last[:, 2:3], [h[:, 2:3] for h in hidden])
    torch.testing.assert_close(features[:, 2:3], part, msg="a feature depends on other tokens")


def check_attention_backend(
    backend: AttentionBackend,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    tolerance: float = 1e-4,
    cases: int = 20,
) -> None:
    """Compare a backend with the definition of attention, on random trees and lengths.

    Windows, caps and sinks are among the cases where it declares that it serves them.
    """
    generator = torch.Generator().manual_seed(0)
    modifiers: frozenset[str] = getattr(backend, "modifiers", frozenset())

    def pick(*choices: int) -> int:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    for _ in range(cases):
        slots, kv_heads, groups, size = pick(1, 2, 3), pick(1, 2), pick(1, 3, 4), pick(16, 64)
        if backend.unsupported(torch.device(device), dtype, size):
            continue
        nodes, depth = pick(1, 2, 7, 26), 5
        parents = torch.tensor([[-1] + [pick(*range(n)) for n in range(1, nodes)]] * slots)
        lengths = torch.randint(0, 40, (slots,), generator=generator)
        span = int(lengths.max()) + nodes + pick(0, 9)
        seen = ancestor_mask(parents, depth)
        step = Step.tree(lengths, seen.sum(2) - 1, seen, span)
        shape = (slots, kv_heads, span, size)
        query = torch.randn(slots, kv_heads * groups, nodes, size, generator=generator)
        keys, values = (torch.randn(shape, generator=generator) for _ in range(2))
        window, softcap, sinks = None, None, None
        if "window" in modifiers and pick(0, 1):
            window = pick(1, 2, 5, 17, 90)
        if "softcap" in modifiers and pick(0, 1):
            softcap = 1.5
        if "sinks" in modifiers and pick(0, 1):
            sinks = torch.randn(kv_heads * groups, generator=generator)
        mask = step.mask()
        if window is not None:
            mask &= _near(step, window)
        scores = query @ keys.repeat_interleave(groups, 1).transpose(2, 3) * size**-0.5
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~mask, -torch.inf)
        if sinks is not None:
            lost = sinks[None, :, None, None].expand(*scores.shape[:3], 1)
            scores = torch.cat((scores, lost), -1)
        weights = scores.softmax(-1)[..., :span]
        expected = (weights @ values.repeat_interleave(groups, 1)).transpose(1, 2)
        tensors: dict[str, Any] = {
            name: t.to(device) for name, t in vars(step).items() if isinstance(t, Tensor)
        }
        moved = replace(step, **tensors)
        within: dict[str, Any] = {} if window is None else {"window": window}
        plan = backend.plan(moved, kv_heads * groups, kv_heads, dtype, **within)
        q, k, v = (x.to(device, dtype) for x in (query, keys, values))
        asked: dict[str, Any] = {}
        if softcap is not None or sinks is not None:
            asked["scores"] = Scores(softcap, None if sinks is None else sinks.to(device, dtype))
        found = backend.attend(q, k, v, plan, size**-0.5, **asked).float().cpu()
        assert found.shape == expected.shape, f"{list(found.shape)}, not {list(expected.shape)}"
        error = ((found - expected).norm() / expected.norm()).item()
        given = f"B={slots}, N={nodes}, window={window}, softcap={softcap}, sinks={sinks}"
        assert error <= tolerance, f"attention is off by {error:.2g} ({given})"


def _near(step: Step, window: int) -> Tensor:
    """Return bool ``[B, 1, N, span]``: which rows are at positions that a window reaches."""
    places = torch.arange(step.span).expand(len(step.lengths), -1).clone()
    for slot, length in enumerate(step.lengths.tolist()):
        nodes = step.positions.shape[1]
        places[slot, length : length + nodes] = step.positions[slot]
    return (step.positions[:, :, None] - places[:, None] < window)[:, None]


def check_draft_head(
    head: DraftHead, target: TargetModel, *, tolerance: float = 1e-4, first_token: bool = False
) -> None:
    """Check that a loaded head's cache holds what it was told, and nothing more.

    Absorbing a text in one pass, in pieces, with padding, or beside another slot must give the
    same states, which depend on the text from its first token on; and drafting a branch must not
    disturb its siblings or the committed text. What is declared capturable reads nothing on the
    host. A head that learns of verifications (`eagle.plugin.LearnsVerified`) must keep what it
    learns slot by slot, in the memory that it shows, and learn nothing of what there is not.

    Args:
        head: the head.
        target: its target.
        tolerance: by how much states may differ.
        first_token: whether its states depend on token 0 of a text, which a head gets as
            `eagle.plugin.Committed.own` alone: so must those of a draft language model, and of
            what looks a text up. False of a head that sees tokens one step ahead only, as EAGLE.
    """
    info = target.info
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(info.vocab_size, (2, 10), generator=generator)
    tokens = text[:, 1:]
    size = head.feature_size(info)
    features = torch.randn(2, 9, size, generator=generator).to(target.dtype)

    def close(found: Tensor, expected: Tensor, what: str) -> None:
        # An untrained head's states are small, and what is wrong with them smaller.
        atol = tolerance * min(1.0, float(expected.abs().max())) if expected.numel() else 0.0
        torch.testing.assert_close(
            found, expected, atol=atol, rtol=tolerance, msg=lambda m: f"{what}: {m}"
        )

    def absorb(
        start: int, count: int, slot: int | None = None, *, real: int | None = None
    ) -> Tensor:
        chosen = slice(None) if slot is None else slice(slot, slot + 1)
        lengths = torch.full((2 if slot is None else 1,), start)
        piece = slice(start, start + count)
        one = None if slot is None else torch.tensor([slot])
        step = Step.chain(lengths, count, 16, one)
        return head.absorb(
            Committed(
                tokens[chosen, piece],
                text[chosen, piece],
                features[chosen, piece],
                torch.full_like(lengths, count if real is None else real),
                step,
            )
        )

    def begin(slots: int = 2) -> None:
        head.allocate(slots, 32)
        if isinstance(head, RequestAware):
            for slot in range(slots):
                head.begin_request(slot, text[slot].tolist())
        if isinstance(head, OfferingHead):
            for slot in range(slots):
                head.follow(slot, [])
            offered = head.offer(slots)
            assert len(offered) == slots, f"offer({slots}) returned {len(offered)} numbers"
            assert min(offered) >= 0, "a head offers less than no level"

    def watched(work: Callable[[], Tensor]) -> Tensor:
        if head.capturable:
            assert_capturable(work)
        return work()

    begin()
    whole = absorb(0, 9)
    assert whole.shape[:2] == (2, 9), f"states are {list(whole.shape)}"
    assert whole.shape[2] == head.state_size(info), "states have another size than declared"
    own = head.draft_vocab if isinstance(head, OwnVocabulary) else None
    vocab = info.vocab_size if own is None else len(own)
    if not isinstance(head, ParallelHead):
        logits = watched(lambda: head.logits(whole))
        assert logits.shape == (2, 9, vocab), "draft logits are not [B, W, V]"
        _check_finite(logits)
    begin()
    absorb(0, 6, real=4)  # two entries too many, as padding: they are written again
    close(absorb(4, 5), whole[:, 4:], "absorbing in pieces changes the states")
    begin()
    close(absorb(0, 9, slot=1), whole[1:], "a slot's states depend on the other slot")
    absorb(0, 9, slot=0)
    if head.capturable:
        assert_capturable(lambda: absorb(0, 9))
    if first_token:
        kept = text.clone()

        def seen() -> list[Tensor]:
            begin()
            states = absorb(0, 9)
            return [states] if isinstance(head, ParallelHead) else [states, head.logits(states)]

        def moved(repeated: int) -> bool:
            # What looks a text up only sees a first token that is part of what is repeated.
            text.copy_(kept)
            text[:, 10 - repeated :] = kept[:, :repeated]
            before = seen()
            text[:, 0] = (text[:, 0] + 1) % info.vocab_size
            return any(bool((now != then).any()) for now, then in zip(seen(), before, strict=True))

        assert any(moved(repeated) for repeated in range(6)), (
            "the head is blind to the first token of a text, `Committed.own` at position 0"
        )
        text.copy_(kept)
        begin()
        absorb(0, 9)

    if isinstance(head, LearnsVerified) and head.verified_memory:
        check_learning(head, target, text, features, begin, close)
        begin()
        absorb(0, 9)

    lengths = torch.full((2,), 9)
    if isinstance(head, ParallelHead):
        parallel = head
        step = Step.chain(lengths, 3, 16)
        logits = watched(lambda: parallel.draft(tokens[:, -1], whole[:, -1], step))
        assert logits.shape == (2, 3, vocab), "draft logits of all levels are not [B, D, V]"
        _check_finite(logits)
        return
    drafts = torch.randint(info.vocab_size, (2, 2), generator=generator)
    above = whole[:, -1:].expand(-1, 2, -1)
    rows = lengths[:, None] + torch.arange(2)
    alone = torch.eye(2, dtype=torch.bool).expand(2, -1, -1)
    both = Drafted(drafts, above, 1, Step(rows * 0 + 9, rows, lengths, alone, 16))
    siblings = watched(lambda: head.extend(both))
    assert siblings.shape == whole[:, :2].shape, "states of drafted nodes are not [B, W, S]"
    only = torch.ones(2, 1, 1, dtype=torch.bool)
    step = Step(rows[:, :1], rows[:, :1], lengths, only, 16)
    first = head.extend(Drafted(drafts[:, 1:], above[:, 1:], 1, step))
    close(siblings[:, 1:], first, "a drafted node's state depends on its sibling")


def _check_finite(logits: Tensor) -> None:
    """Check that each row of draft logits is a distribution: -inf throughout makes NaN of it."""
    assert not (logits.isnan() | (logits == torch.inf)).any(), "a draft logit is NaN or +inf"
    assert (logits > -torch.inf).any(-1).all(), (
        "the draft logits of a node are -inf throughout, of which no distribution can be made; a "
        "head that has nothing to propose gives any finite logits, zeros say"
    )


def check_tree_builder(
    builder: TreeBuilder, *, vocab_size: int = 97, slots: int = 3, cycles: int = 5
) -> None:
    """Check the trees of a builder against what it declares, greedy, sampled and mixed.

    Of trees of varying shape, each of the builders to choose from.
    """
    if isinstance(builder, VaryingTree):
        assert builder.alternatives, "there is no builder to choose from"
        laws = frozenset[Law]().union(*(one.laws for one in builder.alternatives))
        assert laws <= builder.laws, "a builder to choose from draws by an undeclared law"
        for other in builder.alternatives:
            check_tree_builder(other, vocab_size=vocab_size, slots=slots, cycles=cycles)
        for committed in ([None] * slots, [1] * slots):
            for offered in ((), (0,) * slots, (3,) * slots):
                seen = Seen(active=slots, committed=tuple(committed), offered=offered)
                chosen = builder.choose(seen)
                assert 0 <= chosen < len(builder.alternatives), "choose() returned none of them"
    shape = builder.shape
    for temperatures in ([0.0] * slots, [1.0] * slots, [float(i % 2) for i in range(slots)]):
        params = [SamplingParams(temperature=t) for t in temperatures]
        for cycle in range(cycles):
            drafter = RandomDrafter(Sampling.of(params, "cpu"), vocab_size, seed=cycle)
            uniforms = torch.rand(slots, builder.uniforms, dtype=torch.float64)
            draws = UniformDraws(uniforms)
            with no_chance_of_its_own("build()"):
                tree = builder.build(drafter, draws)
            exact = builder.capturable
            _check_tree(tree, shape, drafter, builder.laws, vocab_size, exact=exact)
            assert drafter.expanded <= shape.expansions, (
                f"{drafter.expanded} nodes were expanded, {shape.expansions} declared"
            )
        if builder.capturable:
            sampling = Sampling.of(params, "cpu")
            uniforms = torch.rand(slots, builder.uniforms, dtype=torch.float64)

            def build(sampling: Sampling = sampling, uniforms: Tensor = uniforms) -> TokenTree:
                drafter = RandomDrafter(sampling, vocab_size, checks=False)
                return builder.build(drafter, UniformDraws(uniforms))

            assert_capturable(build)


def _check_tree(
    tree: TokenTree,
    shape: TreeShape,
    drafter: Drafter,
    laws: frozenset[Law],
    vocab: int,
    *,
    exact: bool,
) -> None:
    assert isinstance(tree, TokenTree), f"build() returned a {type(tree).__name__}, no TokenTree"
    slots, nodes = tree.tokens.shape
    assert nodes == shape.nodes or (nodes < shape.nodes and not exact), (
        f"the tree has {nodes} nodes, {shape.nodes} were declared"
    )
    for name in ("parents", "depths", "ranks"):
        assert getattr(tree, name).shape == (slots, nodes), f"{name} is not [B, N]"
    for name in ("tokens", "parents", "depths", "ranks"):
        assert getattr(tree, name).dtype == torch.int64, f"{name} is not int64"
    assert tree.ancestors.dtype == torch.bool, "ancestors is not bool"
    assert ((tree.tokens >= 0) & (tree.tokens < vocab)).all(), (
        f"a token is none of the {vocab} that were drafted from, padding included"
    )
    assert torch.equal(tree.tokens[:, 0], drafter.root), "node 0 is not the root"
    assert (tree.parents[:, 0] == -1).all(), "the root has a parent"
    order = torch.arange(nodes)
    assert (tree.parents < order).all(), "a parent comes after its child"
    assert int(tree.depths.max()) <= shape.depth, "a node is deeper than declared"
    real = tree.parents >= 0
    above = tree.depths.gather(1, tree.parents.clamp(min=0)) + 1
    assert (tree.depths == above)[real].all(), "a node's depth is not its parent's plus one"
    seen = ancestor_mask(tree.parents, shape.depth)
    assert torch.equal(tree.ancestors[real], seen[real]), "a node sees others than its ancestors"
    assert tree.ancestors[:, order, order].all(), "a node does not see itself"
    sampled = tree.sampled if tree.sampled is not None else torch.zeros(slots, dtype=torch.bool)
    assert not sampled[drafter.sampling.temperature == 0].any(), "a greedy slot was sampled"
    if real.any() and not sampled.all():
        assert Law.TOP_K in laws, "siblings are a fixed set, but the law top-k is not declared"
    if sampled.any():
        assert any(not law.fixed for law in laws), (
            "siblings are sampled, but no such law is declared"
        )
        for law in tree.every_law:
            assert law in laws, f"siblings came about by {law}, which is not declared"
    for slot in range(slots):
        for node in range(nodes):
            children = (tree.parents[slot] == node).nonzero().flatten().tolist()
            assert len(children) <= shape.siblings, "a node has more children than declared"
            ranks = [int(tree.ranks[slot, child]) for child in children]
            assert len(set(ranks)) == len(ranks), "two siblings have the same rank"
            assert all(0 <= rank < shape.siblings for rank in ranks), "a rank is out of range"
            tokens = [int(tree.tokens[slot, child]) for child in children]
            if all(law.distinct for law in laws):
                assert len(set(tokens)) == len(tokens), "two siblings are the same token"


def check_acceptance_rule(rule: AcceptanceRule, *, settings: Settings | None = None) -> None:
    """Check a rule: lossless as declared, by exact enumeration, under each of its laws.

    Args:
        rule: the rule.
        settings: Hypothesis settings of the enumeration.
    """
    from eagle.testing.exactness import assert_lossless

    shape = TreeShape(nodes=3, depth=2, siblings=1, expansions=1, distributions=2)
    parents = torch.tensor([[-1, 0, 1]])
    tree = TokenTree(parents + 1, parents, parents + 1, parents * 0, ancestor_mask(parents, 2))
    logits = F.one_hot(torch.tensor([[1, 3, 0]]), 4) * 9.0
    greedy = Sampling.of([SamplingParams()], "cpu")
    draws = UniformDraws(torch.zeros(1, rule.uniforms(shape), dtype=torch.float64))
    with no_chance_of_its_own("accept()"):
        choice = rule.accept(tree, TargetProbs(logits, greedy), shape, draws)
    if rule.capturable:
        for temperature in (0.0, 1.0):
            warm = Sampling.of([SamplingParams(temperature=temperature)], "cpu")
            uniforms = torch.full_like(draws.uniforms, 0.5)

            def accept(warm: Sampling = warm, uniforms: Tensor = uniforms) -> Acceptance:
                return rule.accept(tree, TargetProbs(logits, warm), shape, UniformDraws(uniforms))

            assert_capturable(accept)
    assert choice.path.shape == (1, 3), f"path is {list(choice.path.shape)}, not [B, D + 1]"
    if not rule.lossless:
        return
    assert (choice.count.item(), choice.bonus.item()) == (1, 3), (
        "at temperature 0 the argmax path was not followed"
    )
    assert_lossless(rule, settings=settings)

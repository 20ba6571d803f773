"""Small plug-ins of every kind that the field knows, to try the contracts with; none is good."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

import eagle_plugins
from eagle.plugin.blocks.causal import CausalDrafter
from eagle.plugin.blocks.static import StaticTree
from eagle.plugin.blocks.topology import Topology
from eagle.plugin.hooks import hookimpl
from eagle.plugin.laws import EVERY_LAW, Law
from eagle.plugin.registry import Registry
from eagle.plugin.roles import ComponentSpec, Role, Strategy, StrategyConfig
from eagle.plugin.tree import Acceptance, TokenTree, TreeShape, ancestor_mask


class Head:
    """What most toys have in common: features of the target's size, nothing to load."""

    capturable = True

    def __init__(self, config: Any, context: Any) -> None:
        self.config, self.context = config, context

    def feature_size(self, target):
        return target.hidden_size

    def state_size(self, target):
        return target.hidden_size

    def load(self, target, attention):
        self.target, self.attention = target, attention
        self.vocab, self.size = target.info.vocab_size, target.info.hidden_size

    def allocate(self, slots, rows):
        pass

    def linear(self, rows, columns, seed=0):
        generator = torch.Generator().manual_seed(seed)
        made = torch.randn(rows, columns, generator=generator) / columns**0.5
        return made.to(self.target.dtype)


class NGram(Head):
    """Looks up what followed the last token when it last occurred; it has no use for features.

    Its memory is the text itself, in rows of its own, so it has to know which entries are real, and
    token 0; whose they are it learns from the step. A state is where reading goes on, whether
    anything was found, and where the text ends: what lies behind that is of a text that never was.
    """

    packs = True

    def state_size(self, target):
        return 3

    def allocate(self, slots, rows):
        self.text = torch.full((slots, rows + 1), -1)
        self.begun, self.ended = [], []

    def begin_request(self, slot, prompt):
        self.text[slot] = -1
        self.begun.append((slot, tuple(prompt)))

    def end_request(self, slot, text):
        self.ended.append((slot, tuple(text)))

    def absorb(self, committed):
        step, count = committed.step, committed.count
        real = torch.arange(committed.tokens.shape[1]) < count[:, None]
        for ahead, tokens in ((0, committed.own), (1, committed.tokens)):
            old = self.text[step.slots, step.rows + ahead]
            self.text[step.slots, step.rows + ahead] = torch.where(real, tokens, old)
        text = self.text[step.slots.expand_as(step.rows)]
        place = torch.arange(text.shape[2])
        # Entry t looks for its token among those before it.
        same = text == committed.tokens[..., None]
        before = place < (step.rows + 1)[..., None]
        last = torch.where(same & before, place, -1).amax(2)
        found = last >= 0
        end = (step.rows + 1).expand_as(last)
        return torch.stack((last + 1, found.long(), end), 2).to(self.target.dtype)

    def extend(self, drafted):
        where = drafted.states[..., :1] + 1
        return torch.cat((where, drafted.states[..., 1:]), 2)

    def logits(self, states):
        where = states[..., 0].long().clamp(0, self.text.shape[1] - 1)
        token = self.text[: states.shape[0]].gather(1, where)
        known = (states[..., 1] > 0) & (token >= 0) & (where <= states[..., 2])
        scores = torch.zeros(*token.shape, self.vocab, dtype=self.target.dtype)
        # What it does not propose is -inf; it proposes anything where it knows nothing.
        sure = torch.full_like(scores, -torch.inf).scatter(2, token.clamp(min=0)[..., None], 0.0)
        return sure.where(known[..., None], scores)


class Recalls(Head):
    """Drafts the highest of the tokens that the target held likeliest behind a token of a tree.

    A state is the last token; what was verified, at rejected nodes too, is kept slot by slot.
    """

    packs = True

    def state_size(self, target):
        return 1

    def allocate(self, slots, rows):
        self.likeliest = torch.zeros(slots, self.vocab, dtype=torch.int64)

    @property
    def verified_memory(self):
        return (self.likeliest,)

    def absorb(self, committed):
        if committed.verified is not None:
            self.learn(committed.verified)
        return committed.tokens[..., None].to(self.target.dtype)

    def learn(self, found):
        best = (found.logits.argmax(2) + 1).where(found.real, 0)
        self.likeliest[: len(best)].scatter_reduce_(1, found.tree.tokens, best, "amax")

    def extend(self, drafted):
        return drafted.tokens[..., None].to(self.target.dtype)

    def logits(self, states):
        token = states[..., 0].long().clamp(0, self.vocab - 1)
        best = self.likeliest[: len(states)].gather(1, token)[..., None]
        rest = torch.zeros_like(best).where(best == 0, -torch.inf).to(states.dtype)
        rest = rest.expand(-1, -1, self.vocab)
        return rest.scatter(2, (best - 1).clamp(min=0), 0.0)


class DraftModel(CausalDrafter):
    """A whole language model as a draft head: here with the target's own weights."""

    def __init__(self, config, context):
        pass

    def feature_size(self, target):
        return target.hidden_size

    def state_size(self, target):
        return target.hidden_size

    def load(self, target, attention):
        self.adopt(target, target.info.vocab_size, attention)


class Parallel(Head):
    """Medusa's kind: from one state, a distribution for each level."""

    def absorb(self, committed):
        return committed.features + self.target.embed(committed.tokens)

    def extend(self, drafted):
        raise AssertionError("a parallel head is never asked to extend")

    def logits(self, states):
        raise AssertionError("a parallel head is asked for all levels at once")

    def draft(self, tokens, states, step):
        assert tokens.shape == step.lengths.shape
        levels = range(step.rows.shape[1])
        return torch.stack([states @ self.linear(self.vocab, self.size, n).T for n in levels], 1)


class Levels(Head):
    """Multi-token prediction: other weights for each level, kept with the target's."""

    def __init__(self, config, context):
        super().__init__(config, context)
        self.checkpoint, self.seen = context.checkpoint, []

    def absorb(self, committed):
        return committed.features + self.target.embed(committed.tokens)

    def extend(self, drafted):
        self.seen.append(drafted.level)
        own = self.linear(self.size, self.size, drafted.level)
        return torch.tanh(drafted.states @ own.T + self.target.embed(drafted.tokens))

    def logits(self, states):
        return self.target.logits(states)


class OwnEnd(Head):
    """EAGLE-3's kind: joins several layers, feeds its own output back, drafts from few tokens."""

    paged = True  # it remembers nothing at all
    width = 24

    def allocate(self, slots, rows, pages=None):
        self.pages = pages

    def feature_layers(self, target):
        return (0, 1, target.layers)

    def feature_size(self, target):
        return 3 * target.hidden_size

    def state_size(self, target):
        return self.width

    @property
    def draft_vocab(self):
        # In an order of its own, and without the first token.
        return torch.tensor([*range(self.vocab - 1, 1, -2), *range(self.vocab - 2, 0, -2)])

    def load(self, target, attention):
        self.initialise(target, 3)

    def initialise(self, target, seed):
        Head.load(self, target, None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.module = nn.ModuleDict(
                {
                    "fc": nn.Linear(3 * self.size, self.width, bias=False),
                    "token": nn.Linear(self.size, self.width, bias=False),
                    "back": nn.Linear(self.width, self.width, bias=False),
                    "end": nn.Linear(self.width, len(self.draft_vocab), bias=False),
                }
            ).to(target.dtype)

    def _step(self, joined, tokens):
        return torch.tanh(self.module["back"](joined) + self.module["token"](self._embed(tokens)))

    def _embed(self, tokens):
        return self.target.embed(tokens)

    def absorb(self, committed):
        return self._step(self.module["fc"](committed.features), committed.tokens)

    def extend(self, drafted):
        return self._step(drafted.states, drafted.tokens)

    def logits(self, states):
        ends = self.module["end"](states) * 3
        # A token of the few that it never proposes.
        return ends.masked_fill(torch.arange(ends.shape[-1]) == 1, -torch.inf)

    def train_states(self, tokens, own, features, positions, visible):
        first, *fed_back = features
        return self._step(torch.cat((self.module["fc"](first), *fed_back), 1), tokens)

    def feed_back(self, states):
        return states

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.module.state_dict(), folder / "own-end.pt")


class CascadeConfig(StrategyConfig):
    first: ComponentSpec
    second: ComponentSpec


class Cascade(Head):
    """Two heads: the first drafts what follows the root, the second everything below."""

    def __init__(self, config, context):
        super().__init__(config, context)
        self.heads = [context.build(Role.HEAD, part) for part in (config.first, config.second)]

    def state_size(self, target):
        return 1 + sum(head.state_size(target) for head in self.heads)

    def load(self, target, attention):
        super().load(target, attention)
        for head in self.heads:
            head.load(target, attention)
        self.cut = [1, *(head.state_size(target.info) for head in self.heads)]

    def allocate(self, slots, rows):
        for head in self.heads:
            head.allocate(slots, rows)

    def begin_request(self, slot, prompt):
        for head in self.heads:
            if hasattr(head, "begin_request"):
                head.begin_request(slot, prompt)

    def end_request(self, slot, text):
        pass

    def absorb(self, committed):
        first, second = (head.absorb(committed) for head in self.heads)
        return torch.cat((torch.zeros_like(first[..., :1]), first, second), 2)

    def extend(self, drafted):
        _, first, second = drafted.states.split(self.cut, 2)
        below = self.heads[1].extend(replace(drafted, states=second))
        return torch.cat((torch.ones_like(first[..., :1]), first, below), 2)

    def logits(self, states):
        level, first, second = states.split(self.cut, 2)
        return torch.where(level == 0, self.heads[0].logits(first), self.heads[1].logits(second))


class Lossy(Head):
    """Declares another size than its states have."""

    def state_size(self, target):
        return target.hidden_size + 1

    def absorb(self, committed):
        return committed.features

    def extend(self, drafted):
        return drafted.states

    def logits(self, states):
        return self.target.logits(states)


class Varying:
    """Small trees where much was rejected, larger ones where it was not."""

    capturable = True
    laws = frozenset({Law.TOP_K, Law.WITHOUT_REPLACEMENT})

    def __init__(self, config, context):
        paths = [[[0]], [[0], [1], [0, 0]], [[0], [0, 0], [0, 0, 0]]]
        self.alternatives = [StaticTree(Topology.from_paths(one)) for one in paths]
        self.usual = self.alternatives[0]
        self.shape, self.uniforms = self.usual.shape, self.usual.uniforms
        self.build = self.usual.build
        self.asked = []

    def choose(self, seen):
        known = [count for count in seen.committed if count is not None]
        chosen = 0 if not known else 1 if max(known) < 2 else 2
        self.asked.append((seen, chosen))
        return chosen


class Steep(Law):
    """Each sibling is drawn from the squares of what is left, the second one from what is left."""

    name, distinct = "steep", True

    def proposal(self, left, rank):
        weights = left if rank else left**2
        mass = weights.sum(-1, keepdim=True)
        return (weights / mass).where(mass > 0, 0)

    def rest(self, left, token):
        return Law.WITHOUT_REPLACEMENT.rest(left, token)


class Fan:
    """Two children under the root, drawn by a law that is given; no chance at temperature 0."""

    capturable = True
    shape = TreeShape(nodes=3, depth=1, siblings=2, expansions=0, distributions=1)
    uniforms = 2

    def __init__(self, law):
        self.law, self.laws = law, frozenset({law, Law.TOP_K})
        self.inner = StaticTree(Topology.from_branching([2]))

    def build(self, drafter, draws):
        from eagle.plugin.sampling import probabilities

        tree = self.inner.build(drafter, _Silent())
        if drafter.sampling.greedy:
            return tree
        probs = probabilities(drafter.begin(), drafter.sampling)[:, 0]
        warm = (drafter.sampling.temperature > 0)[:, None]
        left, tokens, exist = probs, [tree.tokens[:, :1]], [warm | True]
        for rank in range(2):
            asked = self.law.proposal(left, rank)
            token = draws.categorical(asked * warm)[:, None]
            exist.append((asked.gather(1, token) > 0) | ~warm)
            left = self.law.rest(left, token)
            tokens.append(torch.where(warm, token, tree.tokens[:, rank + 1 : rank + 2]))
        real = torch.cat(exist, 1)
        return replace(
            tree,
            tokens=torch.cat(tokens, 1),
            parents=tree.parents.where(real, -1),
            draft_probs=probs[:, None],
            draft_rows=tree.parents * 0,
            sampled=warm[:, 0],
            law=self.law,
        )


class Mixed:
    """A chain of two, the first token drawn by one law and the second by another."""

    capturable = True
    laws = frozenset({Steep(), Law.IID, Law.TOP_K})
    uniforms = 2

    def __init__(self):
        self.inner = StaticTree(Topology.from_branching([1, 1]))
        self.shape = self.inner.shape

    def build(self, drafter, draws):
        from eagle.plugin.sampling import probabilities

        class Steeper:
            """Draws the first token from squares, the second as it is asked."""

            first = True

            def categorical(self, weights):
                asked = Steep().proposal(weights, 0) if self.first else weights
                self.first = False
                return draws.categorical(asked)

        if drafter.sampling.greedy:
            return self.inner.build(drafter, _Silent())
        warm = drafter.sampling.temperature > 0
        own, probs, tokens = Steeper(), [], [drafter.root[:, None]]
        for level in range(2):
            above = torch.full_like(tokens[0], level - 2)
            logits = drafter.expand(tokens[-1], above) if level else drafter.begin()
            probs.append(probabilities(logits, drafter.sampling)[:, 0])
            drawn = own.categorical(probs[-1] * warm[:, None])[:, None]
            tokens.append(torch.where(warm[:, None], drawn, logits[:, 0].argmax(1, keepdim=True)))
        places = torch.arange(3).expand(len(warm), -1)
        return TokenTree(
            torch.cat(tokens, 1),
            places - 1,
            places,
            places * 0,
            ancestor_mask(places - 1, 2),
            draft_probs=torch.stack(probs, 1),
            draft_rows=places.clamp(max=1),
            sampled=warm,
            laws=(Steep(), Law.IID),
            node_laws=places.clamp(max=1),
        )


class _Silent:
    """Draws for a tree whose candidates are thrown away."""

    def categorical(self, weights):
        return weights.argmax(-1)


class Block:
    """Block verification (arXiv 2403.10444): a chain is accepted or rejected as a whole.

    How far is settled from its end: what is kept is the longest part that passes.
    """

    capturable = True
    lossless = True
    laws = EVERY_LAW
    topology = "chain"

    def __init__(self, config=None, context=None):
        pass

    def uniforms(self, shape):
        return shape.depth + 1

    def accept(self, tree, target, shape, draws):
        depth, root = shape.depth, torch.zeros_like(tree.tokens[:, 0])
        node, path, real, passed = root, [root], [root == 0], [torch.ones(len(root)).double()]
        probs, drafts = [], []
        for level in range(depth + 1):
            p = target.at(node)
            child, exists = tree.child(node, 0)
            token = tree.tokens.gather(1, child[:, None])
            q = torch.zeros_like(p).scatter(1, token, 1.0)
            if tree.draft_probs is not None:
                rows = tree.draft_rows.gather(1, node[:, None]).clamp(min=0)
                index = rows[..., None].expand(-1, 1, tree.draft_probs.shape[2])
                drawn = tree.widened(tree.draft_probs.gather(1, index)[:, 0], p.shape[1])
                drawn = tree.by_law(
                    node, lambda law, q=q, d=drawn: q if law.fixed else law.proposal(d, 0)
                )
                q = drawn.to(p).where(tree.sampled[:, None], q)
            probs.append(p)
            drafts.append(q)
            if level < depth:
                ratio = (p.gather(1, token) / q.gather(1, token))[:, 0]
                exists = exists & real[-1]
                passed.append((passed[-1] * ratio).clamp(max=1).where(exists, 0))
                real.append(exists)
                node = child.where(exists, 0)
                path.append(node)
        kept, settled = root, root < 0
        for level in range(depth, 0, -1):
            last = real[level] if level == depth else real[level] & ~real[level + 1]
            over = (passed[level][:, None] * probs[level] - drafts[level]).clamp(min=0).sum(1)
            part = over / (over + 1 - passed[level])
            chance = passed[level].where(last, part.nan_to_num(1.0))
            asked = chance.where(real[level] & ~settled, 0)
            yes = draws.bernoulli(asked.clamp(0, 1))
            kept = torch.where(yes, level, kept)
            settled = settled | yes
        bonus = torch.zeros_like(probs[0])
        for level in range(depth + 1):
            end = real[level] if level == depth else real[level] & ~real[level + 1]
            rest = (passed[level][:, None] * probs[level] - drafts[level]).clamp(min=0)
            rest = rest.where(rest.sum(1, keepdim=True) > 0, probs[level])
            own = torch.where(end[:, None], probs[level], rest)
            bonus = torch.where((kept == level)[:, None], own, bonus)
        order = torch.arange(depth + 1)
        joined = torch.stack(path, 1).where(order <= kept[:, None], 0)
        return Acceptance(joined, kept, draws.categorical(bonus))


class Inverse:
    """Draws each token from the target by one uniform: the inverse of its cumulative sums."""

    capturable = True
    lossless = True
    laws = EVERY_LAW

    def uniforms(self, shape):
        return shape.depth + 1

    def cuts(self, sums):
        return sums

    def accept(self, tree, target, shape, draws):
        node = torch.zeros_like(tree.tokens[:, 0])
        count, bonus, path = node, node, [node]
        going = node == 0
        for _ in range(shape.depth + 1):
            sums = target.at(node).double().cumsum(1).clamp(max=1)
            u = draws.uniform(lambda sums=sums, going=going: self.cuts(sums) * going[:, None])
            token = (sums <= u[:, None]).sum(1).clamp(max=sums.shape[1] - 1)
            bonus = torch.where(going, token, bonus)
            found = (tree.parents == node[:, None]) & (tree.tokens == token[:, None])
            going = going & found.any(1)
            node = torch.where(going, found.to(torch.uint8).argmax(1), 0)
            count = count + going
            path.append(node)
        return Acceptance(torch.stack(path[: shape.depth + 1], 1), count, bonus)


def _heads():
    plain = {"ngram": NGram, "draft-model": DraftModel, "at-once": Parallel, "mtp": Levels}
    plain |= {"own-end": OwnEnd, "lossy": Lossy, "recalls": Recalls}
    named = [Strategy(name, StrategyConfig, kind, f"toy {name}") for name, kind in plain.items()]
    return [*named, Strategy("cascade", CascadeConfig, Cascade, "two heads")]


class Toys:
    """The plug-in."""

    @hookimpl
    def eagle_draft_heads(self):
        return _heads()

    @hookimpl
    def eagle_tree_builders(self):
        return [
            Strategy("varying", StrategyConfig, Varying, "trees of three sizes"),
            Strategy(
                "steep", StrategyConfig, lambda config, context: Fan(Steep()), "a law of its own"
            ),
            Strategy("mixed", StrategyConfig, lambda config, context: Mixed(), "a law per node"),
        ]

    @hookimpl
    def eagle_acceptance_rules(self):
        return [
            Strategy("block", StrategyConfig, Block, "chains only"),
            Strategy("inverse", StrategyConfig, lambda *_: Inverse(), "continuous draws"),
        ]


def registry():
    """Return the reference strategies with the toys, some of which are named as the field's are."""
    made = Registry()
    made.register(eagle_plugins, "reference", "eagle-decoding")
    made.register(Toys(), "toys", "toys", "1")
    return made

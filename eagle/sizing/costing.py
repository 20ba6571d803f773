"""What the parts of a cycle cost on this machine, measured by running them.

Knows how cycles are executed, and times their phases on trees made for it; decides nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from eagle.cycle import Cycle, Slots
from eagle.kernels import top_k
from eagle.plugin import (
    Costs,
    Curve,
    Drafter,
    Draws,
    Law,
    LimitedDepth,
    Sampling,
    SamplingParams,
    StaticTree,
    TokenTree,
    Topology,
    TreeShape,
    ancestor_mask,
)
from eagle.runtime import Graphs, Job, Runtime
from eagle.spec import Resolved
from eagle.target import Target

__all__ = ["bushy_tree", "measure_costs", "measure_slots"]

_CHILDREN = 4  # of every node, as far as there are nodes
_CONTEXT = 512  # committed tokens, or half of what the decoder holds
# Sizes that are timed. Where phases are compiled, each is compiled anew, so there are fewer.
_NODES, _NODES_COMPILED = (1, 4, 8, 16, 26, 40, 61), (1, 8, 26, 61)
_WIDTHS, _WIDTHS_COMPILED = (1, 4, 10), (1, 10)
_LEVELS = 3  # of the drafts whose further levels are timed
_REST = (4, 4)  # width and levels of the tree that is accepted from and committed
_REPEATS = {"cuda": 30, "cpu": 5}
# Over several slots: rows of one pass, at most, with as many nodes as the smallest trees have in
# any case; and committed tokens, of which nothing is read before.
_ROWS, _FEWEST = {"cuda": 1024, "cpu": 64}, 4
_NODES_OF_MANY = (1, 2, 4, 8, 16, 26)
_CONTEXT_OF_MANY = 256


@torch.inference_mode()
def measure_costs(resolved: Resolved, target: Target, tell: Callable[[str], None]) -> Costs:
    """Time the parts of a cycle over one slot, executed as a decoder of these components does.

    Eager, compiled or captured: the phases are those of `eagle.cycle.Cycle`, run by a
    `eagle.runtime.Runtime` for the same spec. The tree builder's part is played by one that
    drafts a few chains side by side, so what a real one adds to the head's work is left out.

    Args:
        resolved: the components; the head is loaded. Its cache is allocated anew.
        target: the target.
        tell: is told what is being done.
    """
    tell("reading some text")
    return _timed(_Bench(resolved, target), tell)


@torch.inference_mode()
def measure_slots(
    resolved: Resolved, target: Target, tell: Callable[[str], None], counts: Sequence[int]
) -> dict[int, Costs]:
    """Time the parts of cycles over several slots, as `measure_costs` does those over one.

    Most slots first: what is compiled for them serves fewer, too.

    Args:
        resolved: the components; the head is loaded. Its cache is allocated anew.
        target: the target.
        tell: is told what is being done.
        counts: numbers of slots, each at least 2.

    Returns:
        By the number of slots.
    """
    bench, found = _Bench(resolved, target, max(counts)), {}
    for count in sorted(counts, reverse=True):
        tell(f"cycles over {count} slots")
        bench.narrow(count)
        found[count] = _timed(bench, _silent)
    return found


def _timed(bench: _Bench, tell: Callable[[str], None]) -> Costs:
    verify = {}
    for count in bench.counts:
        tell(f"timing the verification of {count} of {bench.counts[-1]} nodes")
        verify[count] = bench.verification(count)
    tell("timing drafts")
    begin = bench.draft(1, 1)
    levels = min(_LEVELS, bench.deepest)
    level = {width: bench.draft(width, levels) for width in bench.widths}
    tell("timing acceptance and commitment")
    rest = bench.rest()
    plain = bench.plain()
    jobs = (*verify.values(), begin, *level.values(), rest, plain)
    for _ in range(_REPEATS.get(bench.device.type, _REPEATS["cpu"])):
        for job in jobs:
            job.time()

    root = statistics.median(begin.times)
    # A clock's tick more than nothing, where noise hides what little a level costs.
    further = {
        width: max((statistics.median(job.times) - root) / max(levels - 1, 1), 1e-6)
        for width, job in level.items()
    }
    return Costs(
        verify=Curve.of((count, statistics.median(job.times)) for count, job in verify.items()),
        begin=root,
        level=Curve.of(further.items()),
        rest=statistics.median(rest.times),
        context=bench.context,
        plain=statistics.median(plain.times),
    )


def _silent(what: str) -> None:
    """Say nothing."""


class _Bench:
    """A cycle with a slot of random text, whose phases are run again and again.

    Nothing is committed: the slot is idle once its text is read. Of several slots no text is read,
    which would take as long as all that is timed: their rows are zeros.

    Args:
        resolved: the components.
        target: the target.
        slots: how many there are.

    Attributes:
        device: the target's.
        counts: numbers of nodes whose verification is timed, rising.
        widths: numbers of nodes, rising, whose extending is timed.
        context: committed tokens.
        deepest: levels that the head can be asked for, at most `_REST`'s.
    """

    def __init__(self, resolved: Resolved, target: Target, slots: int = 1) -> None:
        self.device = device = target.device
        self._capacity = capacity = resolved.spec.runtime.capacity(target.capacity)
        vocab = target.info.vocab_size
        head = resolved.head
        limit = head.deepest_level() if isinstance(head, LimitedDepth) else None
        self.deepest = _REST[1] if limit is None else min(_REST[1], limit)
        # Each is made once: code that is compiled for one does not serve another.
        self._combs: dict[tuple[int, int], _Combs] = {}
        self._nothing = StaticTree(Topology(), Law.TOP_K)
        self._rest = min(_REST[0], vocab), self.deepest
        self._cycle = Cycle(
            target,
            resolved.features,
            resolved.head,
            self._comb(*self._rest),
            resolved.attention,
            resolved.acceptance,
        )
        runtime = Runtime(self._cycle, resolved.spec.runtime, capturable=resolved.capturable)
        self.context = max(1, min(_CONTEXT if slots == 1 else _CONTEXT_OF_MANY, capacity // 2))
        tried = _NODES_COMPILED if runtime.compiled else _NODES
        self.counts = self._fitting(tried if slots == 1 else _NODES_OF_MANY)
        wide = _WIDTHS_COMPILED if runtime.compiled else _WIDTHS
        self.widths = sorted({min(width, vocab) for width in wide})

        longest = self.context + self.counts[-1]
        generator = torch.Generator().manual_seed(0)
        self._text = torch.randint(target.embeddings, (longest,), generator=generator)
        self._whole = self._slots = self._allocated(runtime, slots, longest)
        self._sampling = Sampling.of([SamplingParams()] * slots, device)
        if slots == 1:
            self._read(runtime)
        else:
            self._slots.lengths.fill_(self.context)
        self._span = runtime.span(longest)
        self._graph, self._warm_up = runtime.graph, 3 if runtime.compiled or runtime.graph else 1
        self._graphs = Graphs(device) if runtime.graph else None

    def _fitting(self, tried: Sequence[int]) -> list[int]:
        return [count for count in tried if self.context + count <= self._capacity] or [1]

    def _allocated(self, runtime: Runtime, slots: int, longest: int) -> Slots:
        """Return the slots; of many that lie in blocks, each has those that its text needs."""
        rows, cycle = runtime.rows(longest, self._capacity), self._cycle
        if slots == 1 or not cycle.shares:
            return runtime.allocate(slots, rows)
        each = cycle.blocks(longest)
        made = runtime.allocate(slots, rows, slots * each)
        for slot in range(slots):
            cycle.assign(slot, range(1 + slot * each, 1 + (slot + 1) * each))
        return made

    def _comb(self, width: int, levels: int) -> _Combs:
        return self._combs.setdefault((width, levels), _Combs(width, levels))

    def narrow(self, slots: int) -> None:
        """Go on with the first slots only, and with as many nodes of each as may pay for them."""
        most = max(_ROWS.get(self.device.type, _ROWS["cpu"]) // slots, _FEWEST)
        self.counts = [n for n in self._fitting(_NODES_OF_MANY) if n <= most]
        self._slots = self._whole.first(slots)
        self._sampling = Sampling.of([SamplingParams()] * slots, self.device)
        self._graphs = Graphs(self.device) if self._graph else None

    def _job(self, work: Callable[[], object]) -> Job:
        return Job(work, self._graphs, self.device, self._warm_up)

    def _read(self, runtime: Runtime) -> None:
        first = torch.zeros(1, 1, dtype=torch.float64, device=self._slots.root.device)
        prompt = self._text[: self.context].tolist()
        runtime.prefill(self._slots, 0, prompt, self._sampling, first, None)
        self._slots.active.zero_()

    def verification(self, count: int) -> Job:
        """Return the target's pass over so many nodes."""
        tokens = self._text[self.context : self.context + count].to(self._slots.root.device)
        slots = self._slots.root.shape[0]
        return self._job(
            partial(self._cycle.phase, "verify", self._slots, bushy_tree(tokens, slots), self._span)
        )

    def draft(self, width: int, levels: int) -> Job:
        """Return the drafting of so many chains side by side, of so many levels."""
        return self._job(partial(self._draft, self._comb(width, levels)))

    def _draft(self, combs: _Combs) -> TokenTree:
        cycle = self._cycle
        cycle.tree, cycle.shape = combs, combs.shape
        draws = cycle.draws(self._slots.uniforms)
        tree: TokenTree = cycle.phase("draft", self._slots, self._sampling, self._span, draws)
        return tree

    def plain(self) -> Job:
        """Return a cycle that drafts nothing."""

        def plain() -> None:
            self._cycle.tree, self._cycle.shape = self._nothing, self._nothing.shape
            self._cycle.run(self._slots, self._sampling, self._span)

        return self._job(plain)

    def rest(self) -> Job:
        """Return the part of a cycle behind its verification."""
        cycle, slots, span = self._cycle, self._slots, self._span
        combs = self._comb(*self._rest)
        tree = self._draft(combs)
        logits, features = cycle.phase("verify", slots, tree, span)

        def rest() -> None:
            cycle.shape = combs.shape
            draws = cycle.draws(slots.uniforms)
            choice = cycle.phase("accept", tree, logits, self._sampling, draws)
            cycle.cache.store.compact(slots.lengths, choice.path)
            cycle.phase("commit", slots, tree, choice, logits, logits, features, span)

        return self._job(rest)


def bushy_tree(tokens: Tensor, slots: int = 1) -> TokenTree:
    """Return a tree of tokens ``[N]`` in which every node has some children, breadth first.

    The same in each of some slots.
    """
    index = torch.arange(tokens.shape[0], device=tokens.device)
    parents = (index + _CHILDREN - 1) // _CHILDREN - 1
    levels, last = 0, 1
    while last < tokens.shape[0]:
        levels, last = levels + 1, last * _CHILDREN + 1
    ancestors = ancestor_mask(parents[None], levels)
    return TokenTree(
        tokens=tokens.repeat(slots, 1),
        parents=parents.repeat(slots, 1),
        depths=(ancestors.sum(2) - 1).repeat(slots, 1),
        ranks=((index - 1) % _CHILDREN).clamp(min=0).repeat(slots, 1),
        ancestors=ancestors.repeat(slots, 1, 1),
    )


class _Combs:
    """A tree builder whose trees are W chains side by side, so that every level extends W nodes.

    Args:
        width: W.
        levels: D.
    """

    capturable = True
    laws = frozenset({Law.TOP_K})
    uniforms = 0

    def __init__(self, width: int, levels: int) -> None:
        self.width, self.levels = width, levels
        self.shape = TreeShape(1 + width * levels, levels, width, width * (levels - 1))

    def build(self, drafter: Drafter, draws: Draws) -> TokenTree:
        """Draft one such tree per slot."""
        root = drafter.root[:, None]
        slots, width = root.shape[0], self.width
        token = top_k(drafter.begin(), width)[1].flatten(1)
        tokens = [root, token]
        own = torch.arange(width, device=root.device)
        for level in range(1, self.levels):
            above = own * 0 - 1 if level == 1 else own + (level - 2) * width
            logits = drafter.expand(token, above.expand(slots, -1))
            # As many are looked for as a tree with as many siblings needs.
            token = top_k(logits, width)[1][..., 0]
            tokens.append(token)
        index = torch.arange(self.shape.nodes, device=root.device)
        parents = (index - width).clamp(min=0).where(index > 0, -1)
        depths = (index + width - 1) // width
        ranks = torch.where(depths == 1, index - 1, 0)
        return TokenTree(
            tokens=torch.cat(tokens, 1),
            parents=parents.expand(slots, -1),
            depths=depths.expand(slots, -1),
            ranks=ranks.expand(slots, -1),
            ancestors=ancestor_mask(parents, self.levels).expand(slots, -1, -1),
        )

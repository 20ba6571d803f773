"""The seam that all randomness of a cycle goes through, and what production puts there.

It knows weights and uniforms; it does not know where either comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Protocol, TypeGuard

import torch
from torch import Tensor

from eagle.kernels import clocks, draw, race, race_at
from eagle.plugin.sampling import Sampling

__all__ = ["Draws", "UniformDraws", "fusible"]

_FUSED = ("cuda",) if find_spec("triton") else ()  # devices for which there are kernels


class Draws(Protocol):
    """The only source of randomness of tree builders and acceptance rules.

    In production it reads uniforms drawn from each request's own generator; in tests an oracle
    enumerates every outcome. A lane whose outcome does not matter asks with probability 0, so
    that an oracle need not branch on it.
    """

    def bernoulli(self, probs: Tensor) -> Tensor:
        """Return bool ``[B]``, each True with probability ``probs[b]`` (float ``[B]``)."""
        ...

    def categorical(self, weights: Tensor) -> Tensor:
        """Return int64 ``[B]`` or ``[B, W]``: indices drawn in proportion to the last dimension.

        Args:
            weights: float ``[B, V]`` or ``[B, W, V]``, not negative, not necessarily normalised.
                An index of weight zero is never drawn; where all are zero the result is 0.
        """
        ...

    def uniform(self, cuts: Callable[[], Tensor]) -> Tensor:
        """Return float64 ``[B]``, uniform in [0, 1).

        For what is no draw from a distribution at hand: one number that decides several things at
        once, say. Whatever follows may depend on it only through the interval between neighbouring
        cuts in which it falls. So an oracle can stand in for it, and the rule can be proved; where
        an interval is left out of the cuts, its outcomes have wrong probabilities and are found
        out. What depends on a number in another way (Gumbel noise on a whole vocabulary, with
        draft and target sharing it) cannot be enumerated.

        Args:
            cuts: returns float ``[B, K]`` in [0, 1], in any order. Only an oracle calls it.
        """
        ...

    def race(
        self, weights: Tensor, depth: int, count: int = 1, vocab: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the first tokens of a race at one position of every text, the winner first.

        The winner is a draw in proportion to the weights; the first few are draws without
        replacement. But each position has noise of its own, which is the same for whoever asks, in
        this cycle or in another: equal weights have the same winner, similar ones mostly. So a
        token that a text goes on with is to be drawn once at every position, from the target
        (`Law.SHARED_NOISE`); all else that is drawn there only guesses it.

        Args:
            weights: float ``[B, V]`` or ``[B, W, V]``, not negative, not necessarily normalised.
            depth: of the nodes whose children are drawn: the position is that behind the root
                for 0, and so on.
            count: how many, V at most. Those of weight zero come last.
            vocab: int64 ``[V]``, the target's ids of what the weights are of, where that is not
                its whole vocabulary (`Drafter.draft_vocab`).

        Returns:
            Places, int64 ``[..., count]``, and how fast these were, float64 of that shape: a
            weight divided by an exponential clock. For whoever draws from the target the places
            alone count.
        """
        ...


class UniformDraws:
    """Draws that read uniforms in [0, 1), ``[B, U]``, column after column.

    The order of the calls is fixed, so that a cycle can be captured once and replayed.
    """

    _draw = staticmethod(draw)

    def __init__(self, uniforms: Tensor) -> None:
        self.uniforms = uniforms
        self.used = 0
        self._keys: Tensor | None = None
        self._positions: Tensor | None = None
        self._clocks: dict[tuple[int, int], Tensor] = {}

    def at(self, keys: Tensor, positions: Tensor) -> None:
        """Let races be those of some texts; without, all slots' are those of one.

        Args:
            keys: int64 ``[B]``, of the texts' noise.
            positions: int64 ``[B]``, of the roots.
        """
        self._keys, self._positions = keys, positions

    def read(self, count: int) -> Tensor:
        """Return the next uniforms, ``[B, count]``.

        Raises:
            IndexError: there are not as many.
        """
        start, self.used = self.used, self.used + count
        if self.used > self.uniforms.shape[1]:
            raise IndexError(
                f"a strategy drew {self.used} uniforms per slot in one cycle, "
                f"but only {self.uniforms.shape[1]} were declared"
            )
        return self.uniforms[:, start : self.used]

    def bernoulli(self, probs: Tensor) -> Tensor:
        """See `Draws.bernoulli`; strict, so that u = 0 never accepts probability zero."""
        return self.read(1)[:, 0] < probs

    def categorical(self, weights: Tensor) -> Tensor:
        """See `Draws.categorical` and `eagle.kernels.draw`."""
        width = weights.shape[1] if weights.dim() == 3 else 1
        return self._draw(weights, self.read(width).to(torch.float64).reshape(weights.shape[:-1]))

    def uniform(self, cuts: Callable[[], Tensor]) -> Tensor:
        """See `Draws.uniform`."""
        return self.read(1)[:, 0].to(torch.float64)

    def race(
        self, weights: Tensor, depth: int, count: int = 1, vocab: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Draws.race`, and `eagle.kernels.racing`."""
        size = weights.shape[-1]
        if weights.is_cuda:
            found: tuple[Tensor, Tensor] = race_at(weights, *self._texts(depth, size, vocab), count)
            return found
        own = self._clocks_at(depth, size, vocab)
        return race(weights, own[:, None] if weights.dim() == 3 else own, count)

    def _texts(self, depth: int, size: int, vocab: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the keys of the texts, their positions so deep in the tree, and token ids."""
        none = torch.zeros(len(self.uniforms), dtype=torch.int64, device=self.uniforms.device)
        keys = none if self._keys is None else self._keys
        positions = (none if self._positions is None else self._positions) + depth
        tokens = torch.arange(size, device=keys.device) if vocab is None else vocab
        return keys, positions, tokens

    def _clocks_at(self, depth: int, size: int, vocab: Tensor | None) -> Tensor:
        if vocab is None and (known := self._clocks.get((depth, size))) is not None:
            return known
        made = clocks(*self._texts(depth, size, vocab))
        # The target asks again for what was drafted by; what is traced stays in its own trace.
        if vocab is None and not torch.compiler.is_compiling():
            self._clocks[depth, size] = made
        return made


def fusible(draws: Draws, logits: Tensor, sampling: Sampling) -> TypeGuard[UniformDraws]:
    """Return whether kernels that read uniforms may stand for operators and `Draws`.

    This is the one place where that is decided. PyTorch's operators serve CPUs, draws of any other
    kind, an oracle's above all, and top-k and top-p, which need a sort. The kernels say what they
    say on the same uniforms, and are as few as PyTorch's are many; besides, PyTorch 2.11 fails to
    compile these.
    """
    return type(draws) is UniformDraws and logits.device.type in _FUSED and not sampling.filtered

"""How siblings come about, and what acceptance has to know of it; knows distributions, no tree.

A law is a small value. Plug-ins may define their own: all that an acceptance rule needs of one is
the distribution that each sibling was drawn from, given those before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor

__all__ = ["EVERY_LAW", "KNOWN_LAWS", "Law", "listed"]


class Law:
    """How the siblings under one node came about, which decides what an acceptance rule may do.

    Laws of one name are equal. A law of one's own is a subclass that says, in `proposal` and
    `rest`, what its siblings are drawn from. Both are functions of their arguments alone and keep
    to the rules of a cycle: fixed shapes, and no value read on the host.

    Attributes:
        name: what messages call it.
        fixed: the siblings are a fixed set given the text so far: no chance is involved.
        distinct: siblings never repeat a token.
    """

    TOP_K: ClassVar[Law]
    """A fixed set given the text so far: no chance is involved."""
    WITHOUT_REPLACEMENT: ClassVar[Law]
    """Drawn one after another from the draft distribution, each time without those before."""
    IID: ClassVar[Law]
    """Drawn independently from the draft distribution; siblings may repeat a token."""
    SHARED_NOISE: ClassVar[Law]
    """Drawn with noise that is the text's own: a fixed set, given that noise, by which the token
    that follows is drawn as well (`eagle.plugin.Draws.race`). What is drawn from the target then
    decides the text alone, so trees may depend on the noise in any way."""

    name: str = ""
    fixed: bool = False
    distinct: bool = False

    def proposal(self, left: Tensor, rank: int) -> Tensor:
        """Return what the sibling of a rank is drawn from.

        Args:
            left: ``[B, V]``, the draft distribution or, further on, what `rest` made of it.
            rank: which sibling, from 0.

        Returns:
            Distributions ``[B, V]``. Where nothing is left they are zeros: no sibling is drawn.
        """
        return left

    def rest(self, left: Tensor, token: Tensor) -> Tensor:
        """Return what is left, ``[B, V]``, once siblings, int64 ``[B, 1]``, have been drawn."""
        return left

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Law) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __lt__(self, other: Law) -> bool:
        return self.name < other.name

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Law({self.name!r})"

    @staticmethod
    def named(name: str, among: Iterable[Law] = ()) -> Law:
        """Return the law of a name, one of those known here or of some others.

        Raises:
            ValueError: there is none.
        """
        known = [*KNOWN_LAWS, Law.SHARED_NOISE, *among]
        for law in known:
            if law.name == name:
                return law
        raise ValueError(f"there is no law {name!r}; known: {listed(known)}")


class _TopK(Law):
    name, fixed, distinct = "top-k", True, True


class _WithoutReplacement(Law):
    name, distinct = "without-replacement", True

    def rest(self, left: Tensor, token: Tensor) -> Tensor:
        others = left.scatter(1, token, 0.0)
        mass = others.sum(-1, keepdim=True)
        return (others / mass).where(mass > 0, others)


class _Iid(Law):
    name = "iid"


class _SharedNoise(Law):
    name, fixed, distinct = "shared-noise", True, True


Law.TOP_K, Law.WITHOUT_REPLACEMENT, Law.IID = _TopK(), _WithoutReplacement(), _Iid()
Law.SHARED_NOISE = _SharedNoise()

KNOWN_LAWS = (Law.TOP_K, Law.WITHOUT_REPLACEMENT, Law.IID)
"""The laws that come with this package and go by a cycle's uniforms: all but shared noise."""


class _EveryLaw(frozenset[Law]):
    """All laws, also those that nobody here has heard of; as a set, the known ones."""

    def __contains__(self, law: object) -> bool:
        return isinstance(law, Law)


EVERY_LAW: frozenset[Law] = _EveryLaw(KNOWN_LAWS)
"""What a rule declares that takes siblings of any law, going by what the law says of itself."""


def listed(laws: Iterable[Law]) -> str:
    """Return the names of laws for a message."""
    return ", ".join(sorted({law.name for law in laws})) or "no law"

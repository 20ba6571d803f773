"""Whether two tokenizers mean the same by a number; knows no model."""

from __future__ import annotations

from typing import Any

from eagle.errors import TargetError

__all__ = ["check_same_tokens"]

_STRANGE = 0.01  # of the ids; added tokens and names of padding differ between models of a family


def check_same_tokens(ours: Any, theirs: Any, name: str) -> None:
    """Refuse a model whose token ids are of other tokens, as far as tokenizers are known.

    Args:
        ours: the target's tokenizer, or None.
        theirs: the other model's, or None.
        name: of the other model.

    Raises:
        TargetError: with the first token that differs.
    """
    if ours is None or theirs is None:
        return
    own = {number: token for token, number in ours.get_vocab().items()}
    other = {number: token for token, number in theirs.get_vocab().items()}
    shared = sorted(own.keys() & other.keys())
    strange = [number for number in shared if own[number] != other[number]]
    if len(strange) > _STRANGE * len(shared):
        first = strange[0]
        raise TargetError(
            f"the tokens of {name!r} are not the target's: {len(strange)} of {len(shared)} differ, "
            f"{first} is {other[first]!r:.40} there and {own[first]!r:.40} here; use a model of "
            "the target's family"
        )

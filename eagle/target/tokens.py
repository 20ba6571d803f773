"""What numbers mean as tokens: which end a text, whether two tokenizers agree; knows no model."""

from __future__ import annotations

from typing import Any

from eagle.errors import TargetError

__all__ = ["check_same_tokens", "end_tokens", "is_core"]

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


def end_tokens(generation: Any, tokenizer: Any, name: str) -> frozenset[int]:
    """Return the tokens that end a text, by a model's files.

    Args:
        generation: its generation configuration.
        tokenizer: its tokenizer, asked where that says nothing, or None.
        name: of the model.

    Raises:
        TargetError: they name something else.
    """
    ids = generation.eos_token_id
    if ids is None and tokenizer is not None:
        ids = tokenizer.eos_token_id
    found = [] if ids is None else list(ids) if isinstance(ids, list | tuple) else [ids]
    if not all(isinstance(token, int) for token in found):
        raise TargetError(
            f"the target {name!r} cannot be served: eos_token_id should be a token's number or a "
            f"list of them, not {ids!r:.40}"
        )
    return frozenset(found)


def is_core(tokenizer: Any, *methods: str) -> bool:
    """Return whether methods of a tokenizer do what its Rust core does, and no more.

    Args:
        tokenizer: any.
        methods: names, each of one that transformers' fast tokenizers have in common.
    """
    from transformers import PreTrainedTokenizerFast

    kind, common = type(tokenizer), PreTrainedTokenizerFast
    return (
        isinstance(tokenizer, common)
        and all(getattr(kind, name) is getattr(common, name) for name in methods)
        and not vars(tokenizer).keys() & set(methods)
    )

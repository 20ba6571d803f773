"""The draft vocabulary of an EAGLE-3 head: its stored maps, checked, and one chosen from a text.

A head drafts from Vd of the target's V tokens. Checkpoints hold ``d2t``, int64 ``[Vd]``: an OFFSET
from a draft id to the target's, and ``t2d``, bool ``[V]``: which of the target's tokens are in it
(SafeAILab/EAGLE, ``eagle/model/cnets.py``). Knows ids; no logits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from eagle.plugin import CheckpointError
from eagle.plugin.blocks.heads.checkpoint import HeadFiles
from eagle.plugin.blocks.heads.tensors import MAP_DTYPES, read_tensors

__all__ = ["VOCABULARY_MAPS", "maps_of", "most_frequent", "stored_vocabulary"]

VOCABULARY_MAPS = ("d2t", "t2d")

_TRAIN = "it was damaged or written by another convention, and would draft other tokens"


def stored_vocabulary(files: HeadFiles, size: int, vocab: int) -> Tensor | None:
    """Return the target's ids of a head's tokens, int64 ``[Vd]``; None where they are all of V.

    Args:
        files: the folder.
        size: Vd, as its configuration and its LM head have it.
        vocab: V.

    Raises:
        CheckpointError: a map is missing, of another size, holds target ids in place of offsets,
            leads out of the vocabulary, is not injective, or contradicts the other.
    """
    found = {name: files.tensors[name] for name in VOCABULARY_MAPS if name in files.tensors}
    if "d2t" not in found:
        if size == vocab and not found:
            return None
        raise CheckpointError(
            f"the draft head in {files.folder} drafts from {size} of {vocab} tokens, but has no "
            "d2t, which says which ones: its files are incomplete"
        )
    stored: Mapping[str, Tensor] = read_tensors(found, MAP_DTYPES)
    for name, length in (("d2t", size), ("t2d", vocab)):
        if name in stored and tuple(stored[name].shape) != (length,):
            raise CheckpointError(
                f"the draft head in {files.folder} has {name} of the shape "
                f"{list(stored[name].shape)}, not [{length}]"
            )
    d2t = stored["d2t"].long()
    ids = d2t + torch.arange(size)
    marked = stored["t2d"].bool() if "t2d" in stored else None
    problem = _problem(ids, vocab, marked)
    absolute = not _problem(d2t, vocab, marked)
    if marked is None and problem is None and size < vocab and _rises(d2t):
        # Offsets rise only where tokens are left out; target ids in order rise everywhere.
        problem = "cannot be told from target ids without t2d"
    if problem:
        if absolute:
            problem += ", and reads like target ids: it should hold offsets, the target's id less "
            problem += "the draft's (d2t - arange(len(d2t)))"
        raise CheckpointError(f"the draft head in {files.folder}: d2t {problem}; {_TRAIN}")
    return None if size == vocab and bool((d2t == 0).all()) else ids


def _problem(ids: Tensor, vocab: int, marked: Tensor | None) -> str | None:
    """Return what is wrong with target ids, given which of them are marked, or None."""
    outside = (ids < 0) | (ids >= vocab)
    if outside.any():
        place = int(outside.nonzero()[0])
        return f"leads from draft id {place} to {int(ids[place])}, which is not among {vocab}"
    counts = torch.bincount(ids)
    if (counts > 1).any():
        return f"leads from several draft ids to the token {int(counts.argmax())}"
    if marked is not None:
        own = torch.zeros(vocab, dtype=torch.bool)
        own[ids] = True
        if not torch.equal(own, marked):
            count = int((own != marked).sum())
            return f"contradicts t2d in {count} of {vocab} tokens"
    return None


def _rises(d2t: Tensor) -> bool:
    return len(d2t) > 1 and bool((d2t.diff() > 0).all())


def maps_of(ids: Tensor, vocab: int) -> dict[str, Tensor]:
    """Return the maps as checkpoints hold them, by name.

    Args:
        ids: int64 ``[Vd]``, the target's ids.
        vocab: V.
    """
    ids = ids.cpu()
    marked = torch.zeros(vocab, dtype=torch.bool)
    marked[ids] = True
    return {"d2t": ids - torch.arange(len(ids)), "t2d": marked}


def most_frequent(counts: Tensor, size: int) -> Tensor | None:
    """Return the most frequent tokens of a text, int64 ``[size]`` in the order of their ids.

    Of equally frequent ones, those with smaller ids. None where that is all of them.

    Args:
        counts: ``[V]``, how often each token occurs.
        size: Vd.
    """
    if size >= len(counts):
        return None
    return counts.argsort(descending=True, stable=True)[:size].sort().values

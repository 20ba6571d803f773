"""Is what a head's folder has of the target's own, its embedding and LM head, the target's?

Knows a few rows of each, compared through what the target computes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eagle.plugin import CheckpointError, TargetModel
from eagle_plugins.heads.layouts import Layout
from eagle_plugins.heads.tensors import Stored, rows_of

__all__ = ["EMBEDDING", "LM_HEAD", "check_shared"]

EMBEDDING, LM_HEAD = "embed_tokens.weight", "lm_head.weight"

_ROWS = 64  # of the vocabulary, spread over all of it
_PROBES = 4
# Weights of four bits are 0.07 away from what they were rounded from; another model's are past 1.
_TOLERANCE = 0.1


@torch.no_grad()
def check_shared(layout: Layout, target: TargetModel) -> None:
    """Refuse a head that comes with another embedding or LM head than the target has.

    Heads of EAGLE-1 and 2 read both from the target (arXiv 2401.15077, section 3.2), and are
    trained with them frozen: a copy in the folder says which target that was. With another one
    drafts would be bad, and nothing would say so. 64 rows are read and compared, up to the
    rounding of narrower dtypes; one pass of the LM head over five vectors is what it costs.

    Raises:
        CheckpointError: one of them differs from the target's, or is of another size.
    """
    for name, compute in ((EMBEDDING, _embedded), (LM_HEAD, _projected)):
        stored = layout.tensors.get(name)
        if stored is None:
            continue
        size = target.info.hidden_size
        if len(stored.shape) != 2 or stored.shape[1] != size or stored.shape[0] == 0:
            raise CheckpointError(
                f"the draft head in {layout.folder} comes with {name} of the shape "
                f"{list(stored.shape)}; the target {target.info.name!r} has rows of {size}"
            )
        away = compute(stored, target)
        if not away <= _TOLERANCE:  # NaN is away too
            raise CheckpointError(
                f"the draft head in {layout.folder} comes with {name} that is not that of the "
                f"target {target.info.name!r} (relative difference {away:.2f} in {_ROWS} rows): it "
                "was trained for another target, and a head of EAGLE-1 or 2 reads the target's own"
            )


def _places(stored: Stored, target: TargetModel) -> Tensor:
    """Return rows that both have, int64 ``[n]``."""
    rows = min(stored.shape[0], target.info.vocab_size)
    return torch.linspace(0, rows - 1, min(rows, _ROWS)).long()


def _embedded(stored: Stored, target: TargetModel) -> float:
    places = _places(stored, target)
    own = rows_of(stored, places.tolist())
    theirs = target.embed(places[None].to(target.device))[0].float().cpu()
    return _difference(own, theirs)


def _projected(stored: Stored, target: TargetModel) -> float:
    places = _places(stored, target)
    own = rows_of(stored, places.tolist())
    probes = torch.randn(_PROBES, own.shape[1], generator=torch.Generator().manual_seed(0))
    # Logits so small that a cap on them does nothing; a bias is what a vector of zeros gives.
    probes = probes * (0.5 / (probes @ own.T).std().clamp(min=1e-6))
    probes = torch.cat((probes, torch.zeros_like(probes[:1]))).to(target.device, target.dtype)
    given = target.logits(probes[None])[0].float().cpu()[:, places]
    theirs, expected = given[:-1] - given[-1], probes[:-1].float().cpu() @ own.T
    # Some targets scale their logits, which no head knows of.
    scale = (theirs * expected).sum() / (expected * expected).sum()
    return _difference(expected * scale.clamp(min=0), theirs)


def _difference(own: Tensor, theirs: Tensor) -> float:
    return float((own - theirs).norm() / theirs.norm().clamp(min=1e-30))

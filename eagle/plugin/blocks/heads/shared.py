"""Is what a head's folder has of the target's own, its embedding and LM head, the target's?

Knows a few rows of each, compared through what the target computes, and the names and sizes of
targets that configurations give.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from eagle.plugin import CheckpointError, TargetModel
from eagle.plugin.blocks.heads.checkpoint import EMBEDDING, LM_HEAD, HeadFiles
from eagle.plugin.blocks.heads.tensors import Stored, read_tensors, rows_of

__all__ = ["check_limit", "check_shared", "check_verifier", "own_embedding"]

log = logging.getLogger("eagle.heads")

_ROWS = 64  # of the vocabulary, spread over all of it
_PROBES = 4
# Weights of four bits are 0.07 away from what they were rounded from; another model's are past 1.
_TOLERANCE = 0.1


@torch.no_grad()
def check_shared(files: HeadFiles, target: TargetModel) -> None:
    """Refuse a head that comes with another embedding or LM head than the target has.

    Heads of EAGLE-1 and 2 read both from the target (arXiv 2401.15077, section 3.2), and are
    trained with them frozen: a copy in the folder says which target that was. With another one
    drafts would be bad, and nothing would say so. 64 rows are read and compared, up to the
    rounding of narrower dtypes; one pass of the LM head over five vectors is what it costs.

    Raises:
        CheckpointError: one of them differs from the target's, or is of another size.
    """
    for name, compute in ((EMBEDDING, _embedded), (LM_HEAD, _projected)):
        stored = files.tensors.get(name)
        if stored is None:
            continue
        size = target.info.hidden_size
        if len(stored.shape) != 2 or stored.shape[1] != size or stored.shape[0] == 0:
            raise CheckpointError(
                f"the draft head in {files.folder} comes with {name} of the shape "
                f"{list(stored.shape)}; the target {target.info.name!r} has rows of {size}"
            )
        away = compute(stored, target)
        if not away <= _TOLERANCE:  # NaN is away too
            raise CheckpointError(
                f"the draft head in {files.folder} comes with {name} that is not that of the "
                f"target {target.info.name!r} (relative difference {away:.2f} in {_ROWS} rows): it "
                "was trained for another target, and a head of EAGLE-1 or 2 reads the target's own"
            )


@torch.no_grad()
def own_embedding(files: HeadFiles, target: TargetModel, size: int) -> Tensor | None:
    """Return the embedding that an EAGLE-3 head brings, ``[V, H]``, or None for the target's.

    A copy of the target's is not kept. One that is another is the head's own where its hidden size
    differs, or where its configuration says that it was trained (``embed_requires_grad``).

    Args:
        files: the folder.
        target: the target.
        size: H of the head.

    Raises:
        CheckpointError: it lacks, is of another size or damaged, or is that of another target.
    """
    stored, info = files.tensors.get(EMBEDDING), target.info
    if stored is None:
        if size == info.hidden_size:
            return None
        raise CheckpointError(
            f"the draft head in {files.folder} has hidden_size {size}, the target {info.name!r} "
            f"{info.hidden_size}, so it needs an {EMBEDDING} of its own, which it lacks"
        )
    if stored.shape != (info.vocab_size, size):
        raise CheckpointError(
            f"the draft head in {files.folder} comes with {EMBEDDING} of the shape "
            f"{list(stored.shape)}; it should be {[info.vocab_size, size]}"
        )
    trained = files.config.get("embed_requires_grad") is True
    if size == info.hidden_size and not trained:
        away = _embedded(stored, target)
        if not away <= _TOLERANCE:  # NaN is away too
            raise CheckpointError(
                f"the draft head in {files.folder} comes with {EMBEDDING} that is not that of the "
                f"target {info.name!r} (relative difference {away:.2f} in {_ROWS} rows): it was "
                "trained for another target. If its embedding was trained with it, config.json "
                "should say so: embed_requires_grad: true"
            )
        return None
    whole = read_tensors({EMBEDDING: stored})[EMBEDDING]
    if not whole.isfinite().all():
        raise CheckpointError(
            f"the draft head in {files.folder} is damaged: {EMBEDDING} holds NaN or infinity"
        )
    return whole


def check_verifier(files: HeadFiles, target: TargetModel) -> None:
    """Warn where a folder's configuration names another target.

    By the ``speculators_config`` of speculators, or Medusa's ``base_model_name_or_path``.
    """
    said = files.config.get("speculators_config")
    verifier = said.get("verifier") if isinstance(said, Mapping) else None
    key, name = "speculators_config", None
    if isinstance(verifier, Mapping):
        name = verifier.get("name_or_path")
    elif said is None:
        key = "base_model_name_or_path"
        name = files.config.get(key)
    if isinstance(name, str) and name and _base(name) != _base(target.info.name):
        log.warning(
            "the draft head in %s was made for the target %.80r, as its %s says; "
            "with another one, here %.80r, hardly any draft is accepted",
            files.folder,
            name,
            key,
            target.info.name,
        )


def _base(name: str) -> str:
    return name.rstrip("/\\").replace("\\", "/").rpartition("/")[2].casefold()


def check_limit(files: HeadFiles, target: TargetModel) -> None:
    """Warn of a head made for shorter texts than its target: what it does there was not trained.

    Rotary positions are computed, not looked up: past the limit drafts are made at their true
    positions, and are what the head's weights make of them.
    """
    inner = files.config.get("transformer_layer_config")
    values = inner if isinstance(inner, Mapping) else files.config
    limit, most = values.get("max_position_embeddings"), target.info.max_positions
    if type(limit) is int and limit < most:
        log.warning(
            "the draft head in %s was made for texts of up to %s tokens, the target for %s: in "
            "longer texts it goes on at the true positions, and less of it may be accepted",
            files.folder,
            f"{limit:,}",
            f"{most:,}",
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

"""Do the parts of a run go together? Asked before anything is computed that takes long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from eagle.errors import EagleError, IncompatibleError, SpecError
from eagle.host import free_memory
from eagle.plugin import FeatureExtractor, TrainableHead, TrainingLoss, TrainsLevels
from eagle.target import Target, loading, resolve_device, resolve_dtype
from eagle.train.objective import drafted_states
from eagle.train.spec import TrainSpec

__all__ = ["check_head", "check_target", "memory_explained"]

_BATCHED = 40  # bytes of a token in a batch: four numbers of 64 bits and what counts of them
_FULL = "can't allocate memory"


def check_target(
    spec: TrainSpec, target: Target | None, extractor: FeatureExtractor, shares: int
) -> None:
    """Refuse what the target cannot be trained for, by its configuration alone.

    Args:
        spec: the training spec.
        target: the target, if it is loaded already.
        extractor: the feature extractor.
        shares: see `TrainSpec.rows`.

    Raises:
        SpecError: its dtype is too narrow, rows are longer than it takes, or there is too little
            memory for a step.
        TargetError: it cannot be read or served, there is no such device, or it cannot be cut
            over the processes there are.
    """
    if target is not None:
        info, dtype, device = target.info, target.dtype, target.device
        capacity = target.capacity
    else:
        source = loading.locate(spec.target, spec.document.folder)
        info, text = loading.describe(source)
        if spec.target.tp_plan:
            loading.check_split(info.name, text)
        device = resolve_device(spec.target.device)
        dtype = resolve_dtype(spec.target.dtype, device)
        capacity = info.max_positions
    if dtype not in (torch.float32, torch.bfloat16):
        raise SpecError("target.dtype: training needs bfloat16 or float32")
    if spec.data.length > capacity:
        raise SpecError(
            f"data.length: {spec.data.length} is more than the {capacity} tokens that the "
            f"target {info.name!r} takes"
        )
    top_k = spec.loss.strategy.settings.get("top_k")
    if isinstance(top_k, int) and top_k > info.vocab_size:
        raise SpecError(
            f"loss.top_k: {top_k} is more than the {info.vocab_size} tokens that the "
            f"target {info.name!r} knows"
        )
    _check_room(spec, extractor.feature_size(info) * dtype.itemsize, device, shares)


def _check_room(spec: TrainSpec, size: int, device: torch.device, shares: int) -> None:
    """Refuse steps whose batches, masks and noise alone take more memory than there is.

    Args:
        spec: the training spec.
        size: bytes of a feature.
        device: what takes it.
        shares: see `TrainSpec.rows`.
    """
    tokens = spec.batch * spec.data.length
    mask = spec.batch * (spec.loss.levels * spec.data.length) ** 2
    # The noise of a whole step is drawn by every process; see `Noise`.
    drawn = spec.accumulate * shares if spec.noise.uniform else 1
    need = mask + tokens * (_BATCHED * spec.accumulate + size * drawn)
    room = free_memory(device, reusable=True)
    if need > room:
        raise SpecError(
            f"a step needs {need / 2**30:,.1f} GiB of memory at least, and {room / 2**30:,.1f} are "
            f"free: lower batch ({spec.batch}), accumulate ({spec.accumulate}), data.length "
            f"({spec.data.length}) or loss.levels ({spec.loss.levels})"
        )


@contextmanager
def memory_explained(spec: TrainSpec) -> Iterator[None]:
    """Say which keys to lower where memory runs out.

    Raises:
        SpecError: it did.
    """
    try:
        yield
    # On a CPU PyTorch has no error of its own for it.
    except (MemoryError, RuntimeError) as error:
        words = str(error)
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and _FULL not in words:
            raise
        raise SpecError(
            "memory ran out: lower batch, data.length, loss.levels or loss.chunk, or those of "
            f"evaluation, or use loss.recompute ({' '.join(words.split()):.120})"
        ) from error


@torch.no_grad()
def check_head(
    spec: TrainSpec,
    head: TrainableHead,
    extractor: FeatureExtractor,
    objective: TrainingLoss,
    target: Target,
    deepest: int = 1,
) -> None:
    """Run a head over a text of four tokens, and look at what comes out.

    Args:
        spec: the training spec.
        head: the head, with weights.
        extractor: the feature extractor.
        objective: the loss.
        target: the target.
        deepest: levels that are trained or measured, at most.

    Raises:
        IncompatibleError: it does not take these features or what it feeds back, or predicts no
            features where the loss compares them.
    """
    size = extractor.feature_size(target.info)
    device = target.device
    tokens = torch.zeros(1, 4, dtype=torch.int64, device=device)
    features = torch.zeros(1, 4, size, dtype=target.dtype, device=device)
    visible = torch.ones(1, 1, 4, 4, dtype=torch.bool, device=device).tril()
    positions = torch.arange(4, device=device)[None]
    try:
        # In training a head's weights are float32, whatever it was loaded in.
        with torch.autocast(device.type, torch.bfloat16, enabled=target.dtype != torch.float32):
            states = drafted_states(
                head,
                tokens,
                tokens,
                features,
                positions,
                visible,
                deepest if isinstance(head, TrainsLevels) else min(spec.loss.levels, 2),
            )
            if isinstance(head, TrainsLevels):
                width = None
                head.level_logits(states[-1], len(states) - 1)
            else:
                width = head.feed_back(states[0]).shape[-1]
                head.logits(states[0])
    except EagleError:
        raise
    except Exception as error:  # a plug-in's code, and every kind is the same to who chose it
        raise _misfit(
            spec,
            f"it cannot be run on features of size {size} ({spec.features.name!r}): "
            f"{type(error).__name__}: {error}",
        ) from error
    if objective.compares_features and width is None:
        raise _misfit(
            spec,
            f"it predicts no features, which loss.name {spec.loss.name!r} compares: choose another "
            "loss, such as `loss: {name: eagle3}`, or set loss.feature to 0",
        )
    if objective.compares_features and width != size:
        raise _misfit(
            spec,
            f"what it feeds back has size {width}, the features of {spec.features.name!r} {size}, "
            "so they cannot be compared: set loss.feature to 0, or choose another loss or "
            "extractor",
        )


def _misfit(spec: TrainSpec, problem: str) -> IncompatibleError:
    problem = f"the draft head {spec.head.name!r} does not fit: {problem}"
    return IncompatibleError(spec.document.sentence(("head",), problem))
